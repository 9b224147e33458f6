"""Forwards entries to one destination: claims, renders, sends and settles them.

A crash at any point loses nothing. An entry that was not settled is claimed again, at the latest
when its lease ends, and sent again under the same id; the destination keeps one copy of an id.
"""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

import structlog

from relay.backoff import full_jitter
from relay.destinations import Destination
from relay.errors import OutboxBrokenError, OutboxError
from relay.forwarder.claims import Claim, Claims
from relay.forwarder.connections import Connections
from relay.forwarder.delivery import OUTBOX_PAUSE_SECONDS, Delivery
from relay.forwarder.failures import Failures
from relay.forwarder.permits import Permits
from relay.forwarder.progress import Progress
from relay.forwarder.unsettled import UnsettledEntries
from relay.metrics.definitions import start_at_zero
from relay.outbox.entries import Clock, Entry, utc_now
from relay.outbox.protocol import Outbox
from relay.process.heartbeats import Heartbeats
from relay.routes import Routes
from relay.throttle import Permit

LINGER_SECONDS: Final = 0.2
"""How long the first entry waits for others; a request costs as much as a hundred messages."""
STUCK_SECONDS: Final = 90
"""No step takes longer than a lease; half a lease more allows for a busy machine."""
LOOK_SECONDS: Final = 0.05
"""How often the outbox is asked whether anything has changed."""
POLL_SECONDS: Final = 1.0
"""How often due entries are looked for even if nothing has changed: a lease may have ended."""
_LONGEST_SLEEP_SECONDS: Final = 30.0

_log = structlog.get_logger()


def new_lineage() -> int:
    """Return a random number that a process shares with those that are started in its place."""
    return secrets.randbelow(2**40 - 1) + 1


class Forwarder:
    """A forwarder of one destination's entries, which works in threads until it is stopped.

    Args:
        outbox: where entries come from and are settled.
        destination: where they go.
        routes: render them; all routes, as an entry may come from any source.
        unsettled: shared by all forwarders of this process.
        clock: seconds, monotonic.
        now: the time of day.
        lineage: of this process and those started in its place; see `Outbox.begin_post`.
        sleep: waits for so many seconds; by default cut short by `stop`.
        jitter: takes a longest wait and returns a wait, in seconds.

    Attributes:
        broken: set once the outbox can no longer be used in this process.
    """

    def __init__(  # noqa: PLR0913 (time and chance are given)
        self,
        outbox: Outbox,
        destination: Destination,
        routes: Routes,
        *,
        unsettled: UnsettledEntries | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Clock = utc_now,
        lineage: int | None = None,
        sleep: Callable[[float], object] | None = None,
        jitter: Callable[[float], float] = full_jitter,
    ) -> None:
        self._outbox = outbox
        self._destination = destination
        self._name = destination.name
        self._limits = destination.limits
        self._unsettled = UnsettledEntries() if unsettled is None else unsettled
        self._clock = clock
        self._progress = Progress(sleep)
        self._sleep = self._progress.sleep
        self._permits = Permits(
            outbox, self._name, self._limits.requests_per_second, clock=clock, jitter=jitter
        )
        start_at_zero(self._name)
        self._claims = Claims(
            outbox,
            destination,
            routes,
            unsettled=self._unsettled,
            permits=self._permits,
            clock=clock,
            lineage=new_lineage() if lineage is None else lineage,
        )
        self._connections = Connections(self._limits.in_flight, clock)
        self._delivery = Delivery(
            outbox,
            destination,
            claims=self._claims,
            permits=self._permits,
            failures=Failures(
                destination,
                claims=self._claims,
                permits=self._permits,
                connections=self._connections,
                now=now,
                jitter=jitter,
            ),
            progress=self._progress,
            await_permit=self._await_permit,
            clock=clock,
            now=now,
        )
        self.broken = threading.Event()
        self._suspects_looked_for_at = float("-inf")
        self._claiming = threading.Lock()
        self._workers = [
            threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
            for number in range(self._limits.in_flight)
        ]

    @property
    def heartbeats(self) -> Heartbeats:
        """The heartbeats of its workers; one that is silent for `STUCK_SECONDS` hangs."""
        return self._progress.heartbeats

    @property
    def problem(self) -> str | None:
        """Why the latest attempt of a worker failed; see `Progress`."""
        return self._progress.problem

    def start(self) -> None:
        """Begin to forward; what an earlier process left comes first."""
        for worker in self._workers:
            worker.start()

    def stop_soon(self) -> None:
        """Claim nothing more; requests under way go on."""
        self._progress.stop()

    def stop(self, timeout: float) -> None:
        """Stop; when this returns, what was claimed is settled, or due again.

        Args:
            timeout: seconds that requests under way have to be answered.
        """
        self.stop_soon()
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            if worker.is_alive():
                worker.join(max(0, deadline - time.monotonic()))
        unsettled = self._unsettled.of(self._name)
        if unsettled:
            self._release(unsettled)

    def _release(self, unsettled: Sequence[Entry]) -> None:
        try:
            self._outbox.release(unsettled)
        except OutboxError as error:  # they are due again when their lease ends
            _log.error("forward.not_released", messages=len(unsettled), error=str(error))
        else:
            _log.info("forward.released", messages=len(unsettled))

    def step(self) -> bool:
        """Forward one claim, waiting for a permit first; return False if nothing was due."""
        with self._claiming:
            claim = self._claim(self._claims.take_due) or self._claim(self._claims.take_suspect)
        if claim is not None:
            self._delivery.deliver(claim)
        return claim is not None

    def _work(self) -> None:
        worker = self._progress.begin()
        while not self._progress.stopping:
            try:
                self.heartbeats.pause(worker)
                self._forward()
                self._progress.get_on()
            except OutboxError as error:
                self._progress.get_on(str(error))
                _log.error("forward.outbox_failed", destination=self._name, error=str(error))
                if isinstance(error, OutboxBrokenError):
                    self.broken.set()
                self._sleep(OUTBOX_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 (a fault in relay itself must not end the worker)
                self._progress.problem = f"relay failed: {type(error).__name__}"
                _log.exception("forward.failed", destination=self._name)
                self._sleep(OUTBOX_PAUSE_SECONDS)

    def _forward(self) -> None:
        """Forward one claim, if something becomes due before it is time to poll again."""
        with ExitStack() as connection:
            # One worker at a time claims and renders; the others send. Rendering holds Python's
            # global lock, so a second thread would only slow it down.
            with self._claiming:
                self._progress.beat()
                self._await_entries()
                self._try_suspects()
                self._await_connection()
                connection.enter_context(self._connections.used())
                claim = self._claim(self._claims.take_due)
            if claim is not None:
                self._delivery.deliver(claim)

    def _try_suspects(self) -> None:
        """Forward the suspects: entries that were claimed when processes crashed.

        Each is forwarded while nothing else is claimed. If this process crashes, too, only that
        entry is suspected.
        """
        if self._clock() < self._suspects_looked_for_at + POLL_SECONDS:
            return
        self._suspects_looked_for_at = self._clock()
        if not self._outbox.has_suspects(self._name):
            return
        while not self._progress.stopping:
            if self._unsettled.of(self._name):  # of other workers, which claim nothing meanwhile
                self._progress.get_on()
                self._sleep(LOOK_SECONDS)
            elif not self._try_suspect():
                return
            elif self._unsettled.has_waiters:  # between two suspects, the others may claim
                self._sleep(2 * LOOK_SECONDS)

    def _try_suspect(self) -> bool:
        """Forward one suspect; return False if there is none, or another forwarder tries one."""
        permit = self._await_permit()
        if permit is None:
            return False
        # Not before the permit: while this destination gives none, the others must not wait.
        with self._unsettled.isolating(self._name) as isolated:
            if isolated and self._await_settled():
                claim = self._claims.take_suspect(permit)
            else:
                self._permits.release(permit)
                claim = None
            if claim is None:
                return False
            _log.warning("forward.suspect", message_id=claim.entries[0].message_id)
            self._delivery.deliver(claim)
        return True

    def _await_settled(self) -> bool:
        """Return True once the other forwarders of this process have settled what they claimed.

        Return False if relay is stopping.
        """
        while self._unsettled and not self._progress.stopping:
            self._progress.get_on()
            self._sleep(LOOK_SECONDS)
        return not self._progress.stopping

    def _claim(self, take: Callable[[Permit], Claim | None]) -> Claim | None:
        """Return a claim with a permit to send it; None if there is nothing to send."""
        self._await_others()
        permit = self._await_permit()
        return take(permit) if permit else None

    def _await_others(self) -> None:
        """Return when no other forwarder of this process has isolated a suspect."""
        if not self._unsettled.is_isolated_from(self._name):
            return
        with self._unsettled.waiting():
            while self._unsettled.is_isolated_from(self._name) and not self._progress.stopping:
                self._progress.get_on()
                self._sleep(LOOK_SECONDS)

    def _await_connection(self) -> None:
        """Return when another request may be under way."""
        while not (self._connections.may_use or self._progress.stopping):
            self._progress.get_on()
            self._sleep(LOOK_SECONDS)

    def _await_entries(self) -> None:
        """Return when there is enough for a batch, or when it is time to poll."""
        poll_at = self._clock() + POLL_SECONDS
        ordered = self._destination.ordered
        while not self._progress.stopping and self._clock() < poll_at:
            if self._claims.more_are_due.is_set():
                return
            if self._outbox.changed(self._name, ordered=ordered):
                if self._limits.batch_messages > 1:
                    self._sleep(LINGER_SECONDS)
                return
            self._sleep(LOOK_SECONDS, self._claims.more_are_due)

    def _await_permit(self, until: float = float("inf")) -> Permit | None:
        """Return a permit; None if relay is stopping, or if there is none before `until`."""
        while not self._progress.stopping:
            permit = self._permits.acquire()
            if isinstance(permit, Permit):
                return permit
            if self._clock() + permit > until:
                return None
            self._progress.get_on()
            self._sleep(min(permit, _LONGEST_SLEEP_SECONDS))
        return None
