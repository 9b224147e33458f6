"""How the operator's commands print: tables for people, JSON for programs, no address unasked."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from tabulate import tabulate

from relay.events import Unusable
from relay.logs import mask
from relay.mapping import Mapped
from relay.outbox.records import Record

_AGO: Final = re.compile(r"(\d{1,6})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType[datetime]):
    """A point in time: so long ago (`30m`, `2h`, `7d`), or an ISO 8601 date or time, else UTC."""

    name = "when"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """The moment, aware UTC."""
        if ago := _AGO.fullmatch(value.strip()):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        try:
            moment = datetime.fromisoformat(value.strip())
            return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither like 30m, 2h, 7d nor like 2026-03-01T12:00", param, ctx
            )


class Output:
    """Prints entries, masked unless they are to be revealed."""

    def __init__(self, *, as_json: bool, reveal: bool) -> None:
        self.as_json = as_json
        self._reveal = reveal

    def text(self, value: object) -> str:
        """The value for a person: on one line, with nothing a terminal would take for a command."""
        shown = "" if value is None else str(value)
        plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
        return plain if self._reveal else mask(plain)

    def line(self, document: Mapping[str, Any]) -> None:
        """Print one JSON object on one line."""
        click.echo(self._json(document))

    def pretty(self, document: object) -> str:
        """JSON for a person."""
        return self._json(document, indent=2)

    def _json(self, document: object, *, indent: int | None = None) -> str:
        # ASCII only, so that no character of it can command a terminal.
        return json.dumps(self.masked(document), indent=indent)

    def masked(self, value: Any) -> Any:  # noqa: ANN401 (any JSON)
        """The document, without addresses in any text of it."""
        if self._reveal:
            return value
        if isinstance(value, dict):
            return {self.masked(key): self.masked(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.masked(item) for item in value]
        return mask(value) if isinstance(value, str) else value

    def parsed(self, body: bytes) -> Any:  # noqa: ANN401 (any JSON)
        """The body as the JSON it is; ValueError where it is none."""
        return json.loads(body)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table."""
        shown = [[self.text(cell) for cell in row] for row in rows]
        click.echo(tabulate(shown, headings, tablefmt="plain", disable_numparse=True))


def summary(record: Record, mapped: Mapped | Unusable) -> dict[str, Any]:
    """What an entry is, but for its body."""
    event = mapped.event if isinstance(mapped, Mapped) else None
    return {
        "id": record.id,
        "message_id": record.message_id,
        "provider": record.provider,
        "state": record.state,
        "collection": record.collection,
        "reason": record.reason,
        "detail": record.detail,
        "received_at": moment(record.received_at),
        "delivered_at": moment(record.delivered_at),
        "attempts": record.attempts,
        "user_id": event.user_id if event else None,
        "address": event.email if event else None,
        "email_id": event.properties.get("email_id") if event else None,
    }


def full(record: Record, mapped: Mapped | Unusable) -> dict[str, Any]:
    """All that is known of an entry: its raw webhook, its history, its track call as of today."""
    none = f"{mapped.reason}: {mapped.detail}" if isinstance(mapped, Unusable) else None
    return {
        **summary(record, mapped),
        "history": [
            {"at": moment(happening.at), "what": happening.what, "said": happening.said}
            for happening in record.history
        ],
        "body": record.body.decode(errors="replace"),
        "track": mapped.message if isinstance(mapped, Mapped) else None,
        "no_track_because": none,
    }


def moment(value: datetime | None) -> str | None:
    """The moment, as it stands in tables and in JSON."""
    return (
        None if value is None else value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


@contextmanager
def progress(label: str, length: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; it is told of each step's size."""
    bar: Any = click.progressbar(
        _unknown() if length is None else None,
        length=length,
        label=label,
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
        show_pos=True,
    )
    with bar:
        yield bar.update


def _unknown() -> Iterator[int]:
    """Steps of which nobody knows how many there are."""
    yield from ()


def counted(count: int, singular: str = "entry", plural: str = "entries") -> str:
    """So many of them."""
    return f"{count:,} {singular if count == 1 else plural}"
