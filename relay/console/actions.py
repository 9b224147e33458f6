"""What can be done in the console: replay one entry, or all of one reason."""

import threading
from datetime import datetime

import structlog
from msgspec import structs

from relay.errors import OutboxError
from relay.operations.replay import Plan, plan, replay
from relay.operations.search import Criteria, Search
from relay.outbox.entries import State
from relay.outbox.protocol import Outbox
from relay.routes import Routes

_log = structlog.get_logger()


class Replays:
    """Makes entries pending again, as `relay replay` does; so one of the two can go on with it."""

    def __init__(self, outbox: Outbox, search: Search, routes: Routes) -> None:
        self._outbox = outbox
        self._search = search
        self._routes = routes
        self._thread: threading.Thread | None = None
        self._beginning = threading.Lock()

    @property
    def under_way(self) -> bool:
        """Whether a replay of many is being done."""
        return self._thread is not None and self._thread.is_alive()

    def plan(self, id_: int, now: datetime) -> Plan:
        """What a replay of the entry would do."""
        found = self._search.find(Criteria(ids=(id_,)), with_history=True)
        return plan(found, self._routes, now=now, began_at=now)

    def one(self, id_: int) -> int:
        """Replay the entry; how many are pending by it: one or none."""
        return self._do(Criteria(ids=(id_,)), f"id={id_}")

    def all_dead(self, reason: str) -> bool:
        """Begin to replay the dead letters of the reason; False while others are replayed."""
        criteria = Criteria(states=(State.DEAD,), reason=reason)
        with self._beginning:
            if self.under_way:
                return False
            self._thread = threading.Thread(
                target=self._do_all, args=(criteria, f"state=dead reason={reason}"), daemon=True
            )
            self._thread.start()
        return True

    def _do_all(self, criteria: Criteria, what: str) -> None:
        try:
            self._do(criteria, what)
        except OutboxError as error:
            _log.error("console.replay_interrupted", what=what, error=str(error))
        except Exception:  # noqa: BLE001 (nobody waits for this thread)
            _log.exception("console.replay_failed", what=what)

    def _do(self, criteria: Criteria, what: str) -> int:
        operation = self._outbox.entries.begin("replay", what)
        if criteria.reason and not criteria.until:
            # What dies meanwhile is none of its business.
            criteria = structs.replace(criteria, until=operation.started_at)
        found = self._search.find(criteria, newest_first=False, with_history=True)
        steps = replay(
            self._outbox.entries, found, self._routes, operation, began_at=operation.started_at
        )
        replayed = sum(pending for _, pending in steps)
        self._outbox.entries.finish(operation)
        _log.info("console.replayed", what=what, entries=replayed)
        return replayed
