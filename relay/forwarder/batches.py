"""Turns claimed entries into the batches to send."""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from relay.destinations import Limits, batches
from relay.events import Unusable
from relay.outbox.entries import Entry
from relay.routes import Rendered


class Batch(Struct):
    """Entries whose messages are sent in one request.

    Attributes:
        entries: the entries.
        messages: the encoded message of each.
        rest: messages of the only entry that are sent after this one, each by itself.
        sent: how many messages of the only entry are sent before this one.
        fault: why a part of the only entry cannot be sent; it becomes a dead letter with it once
            all its messages are sent.
        repeatable: whether all messages of the only entry are; see `relay.destinations.Message`.
    """

    entries: list[Entry]
    messages: list[bytes]
    rest: tuple[bytes, ...] = ()
    sent: int = 0
    fault: Unusable | None = None
    repeatable: bool = False

    def halves(self) -> tuple["Batch", "Batch"]:
        """Return the batch in two."""
        middle = len(self.entries) // 2
        return (
            Batch(self.entries[:middle], self.messages[:middle]),
            Batch(self.entries[middle:], self.messages[middle:]),
        )

    def following(self) -> "Batch":
        """Return what is sent once this is."""
        first, *rest = self.rest
        return Batch(self.entries, [first], tuple(rest), self.sent + 1, self.fault, self.repeatable)


def in_batches(rendered: Iterable[tuple[Entry, Rendered]], limits: Limits) -> Iterator[Batch]:
    """Yield batches within the limits; leave out messages that were sent by an earlier claim."""
    single: list[tuple[Entry, bytes]] = []
    for entry, each in rendered:
        messages = tuple(message.encoded for message in each.messages[entry.step :])
        if len(messages) == 1 and each.fault is None and limits.batch_messages > 1:
            single.append((entry, messages[0]))
        else:
            yield Batch(
                [entry], [*messages[:1]], messages[1:], entry.step, each.fault, each.repeatable
            )
    for group in batches(single, limits):
        yield Batch([entry for entry, _ in group], [message for _, message in group])
