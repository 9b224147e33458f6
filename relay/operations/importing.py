"""Imports webhooks and calls from a file, one JSON document per line, as if they had just come."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from operator import attrgetter
from typing import BinaryIO, Final

from msgspec import Struct, field

from relay.errors import OutboxError, TooManyEventsError
from relay.events import Ignored
from relay.outbox.entries import Arrival, Clock, utc_now
from relay.outbox.protocol import Outbox
from relay.routes import Route

BATCH_LINES: Final = 1_000
"""Lines stored in one transaction; fewer if they are long, or hold more events than that."""
MAX_LINE_BYTES: Final = 2**20
"""As many as the body of a webhook may have."""
_BATCH_BYTES: Final = 8 * 2**20


class BadLine(Struct, frozen=True):
    """A line with what cannot be sent; `kept` says whether that is stored as a dead letter."""

    number: int
    error: str
    kept: bool = True


class ImportCounts(Struct):
    """What became of a batch of lines.

    Attributes:
        outcomes: what became of each webhook or call: `accepted`, `duplicate`, `ignored`, `dead`;
            or `refused` for a line that is too long, or has too many calls.
        bad: the lines with what cannot be sent, in their order.
        bytes: how many were read.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[BadLine] = []
    bytes: int = 0

    def refuse(self, number: int, error: str) -> None:
        """Count a line of which nothing is stored."""
        self.bad.append(BadLine(number, error, kept=False))
        self.outcomes["refused"] += 1


class Importer:
    """An import of lines; importing the same lines again adds nothing.

    A line is a webhook, or for a source of calls one call or a batch. What is stored has the order
    of the lines.

    Args:
        outbox: stores them.
        route: accepts them.
        exceeded: returns why nothing more may be stored now; None if more may be.
        clock: returns the time at which a line counts as received.
    """

    def __init__(
        self,
        outbox: Outbox,
        route: Route,
        *,
        exceeded: Callable[[], str | None] = lambda: None,
        clock: Clock = utc_now,
    ) -> None:
        self._outbox = outbox
        self._route = route
        self._exceeded = exceeded
        self._clock = clock
        self._copies: Counter[bytes] = Counter()

    def run(self, lines: Iterable[bytes]) -> Iterator[ImportCounts]:
        """Store the lines; yield after each batch what became of it.

        Raises:
            OutboxError: this batch is not stored; those before it are.
        """
        counts, batch = ImportCounts(), list[tuple[int, Arrival]]()
        for number, line in enumerate(lines, 1):
            counts.bytes += len(line)
            body = line.strip()
            if len(body) > MAX_LINE_BYTES:
                counts.refuse(number, f"longer than {MAX_LINE_BYTES} bytes")
            elif body:
                batch += self._arrivals(number, body, counts)
            is_full = len(batch) >= BATCH_LINES or counts.bytes >= _BATCH_BYTES
            if number % BATCH_LINES == 0 or is_full:
                yield self._store(batch, counts)
                counts, batch = ImportCounts(), []
        yield self._store(batch, counts)

    def _arrivals(
        self, number: int, line: bytes, counts: ImportCounts
    ) -> Iterator[tuple[int, Arrival]]:
        """Yield what to store for the line, each with its number; count what is not stored."""
        try:
            bodies = self._route.split_line(line)
        except TooManyEventsError as error:
            counts.refuse(number, str(error))
            return
        for body in bodies:
            arrival = self._arrival(body)
            if isinstance(arrival, Ignored):
                counts.outcomes["ignored"] += 1
            else:
                yield number, arrival

    def _arrival(self, body: bytes) -> Arrival | Ignored:
        def nth_copy() -> tuple[str, ...]:
            digest = sha256(body).digest()
            self._copies[digest] += 1
            return ("copy", digest.hex(), str(self._copies[digest]))

        return self._route.accept(body, self._clock(), fallback_key=nth_copy)

    def _store(self, batch: list[tuple[int, Arrival]], counts: ImportCounts) -> ImportCounts:
        if batch and (exceeded := self._exceeded()):
            raise OutboxError(exceeded)
        started = time.monotonic()
        new = self._outbox.add([arrival for _, arrival in batch])
        for (number, arrival), is_new in zip(batch, new, strict=True):
            if arrival.fault:
                counts.outcomes["dead"] += 1
                counts.bad.append(
                    BadLine(number, f"{arrival.fault.reason}: {arrival.fault.detail}")
                )
            else:
                counts.outcomes["accepted" if is_new else "duplicate"] += 1
        counts.bad.sort(key=attrgetter("number"))  # lines that are too long were added first
        # Leave the disk to webhooks that come in meanwhile.
        time.sleep(min(time.monotonic() - started, 1))
        return counts


def lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the file's lines; cut off a line that is too long just past the limit."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while line and not line.endswith(b"\n") and len(line) > MAX_LINE_BYTES:
            line = file.readline(MAX_LINE_BYTES + 1)
