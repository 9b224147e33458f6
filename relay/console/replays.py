"""Replays one entry, or all dead letters of one reason, for the console."""

import threading
from datetime import datetime
from itertools import islice
from typing import Final

import structlog
from msgspec import structs

from relay.errors import OutboxError
from relay.events import Unusable
from relay.operations.replay import Plan, plan, replay
from relay.operations.search import Criteria, Search
from relay.outbox.entries import State, StoredEntry
from relay.outbox.protocol import Outbox
from relay.routes import Rendered, Routes

MOST_LATER: Final = 100
"""So many later entries are counted."""

_log = structlog.get_logger()


class Replays:
    """The replays of one process.

    They are the same operations as those of `relay replay`: either resumes what the other began.
    """

    def __init__(self, outbox: Outbox, search: Search, routes: Routes) -> None:
        self._outbox = outbox
        self._search = search
        self._routes = routes
        self._thread: threading.Thread | None = None
        self._beginning = threading.Lock()

    @property
    def under_way(self) -> bool:
        """Whether dead letters are being replayed."""
        return self._thread is not None and self._thread.is_alive()

    def plan(self, id_: int, now: datetime) -> Plan:
        """Return what a replay of the entry would do."""
        found = self._search.find(Criteria(ids=(id_,)), with_history=True)
        return plan(found, self._routes, now=now, began_at=now)

    def later(self, entry: StoredEntry, rendered: Rendered | Unusable) -> int:
        """Count what was received after an entry and goes to the same lanes, up to `MOST_LATER`."""
        if isinstance(rendered, Unusable) or not rendered.lanes:
            return 0
        event = rendered.event
        about = [Criteria(user_id=person) for person in event.people]
        about = about or [Criteria(address=event.email)]
        ids = set[int]()
        for criteria in about:
            found = self._search.find_read(criteria, start=None, end=entry.id + 1)
            ids.update(each.id for each in islice(found, MOST_LATER))
        return min(len(ids), MOST_LATER)

    def one(self, id_: int) -> int:
        """Replay the entry; return how many entries became pending: one or none."""
        return self._replay(Criteria(ids=(id_,)), f"id={id_}")

    def all_dead(self, reason: str) -> bool:
        """Begin to replay the dead letters of the reason; False while others are replayed."""
        criteria = Criteria(states=(State.DEAD,), reason=reason)
        with self._beginning:
            if self.under_way:
                return False
            self._thread = threading.Thread(
                target=self._run, args=(criteria, f"state=dead reason={reason}"), daemon=True
            )
            self._thread.start()
        return True

    def _run(self, criteria: Criteria, what: str) -> None:
        try:
            self._replay(criteria, what)
        except OutboxError as error:
            _log.error("console.replay_interrupted", what=what, error=str(error))
        except Exception:  # noqa: BLE001 (an error that ends this thread is logged nowhere else)
            _log.exception("console.replay_failed", what=what)

    def _replay(self, criteria: Criteria, what: str) -> int:
        operation = self._outbox.entries.begin("replay", what)
        if criteria.reason and not criteria.until:
            # Entries that become dead letters during the replay are not part of it.
            criteria = structs.replace(criteria, until=operation.started_at)
        found = self._search.find(criteria, newest_first=False, with_history=True)
        steps = replay(
            self._outbox.entries, found, self._routes, operation, began_at=operation.started_at
        )
        replayed = sum(pending for _, pending in steps)
        self._outbox.entries.finish(operation)
        _log.info("console.replayed", what=what, entries=replayed)
        return replayed
