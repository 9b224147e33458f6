"""The commands that show entries: the newest, one in full, and the dead letters."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final

import click

from relay.cli.app import main
from relay.cli.context import Context, open_context
from relay.cli.options import as_json_option, criteria_of, filter_options, reveal_option
from relay.cli.output import progress
from relay.events import REMEDIES, DeadReason, Unusable
from relay.operations.search import Criteria, Search
from relay.operations.search import reasons as found_reasons
from relay.operations.views import detail, summary
from relay.outbox.entries import State, StoredEntry
from relay.routes import Rendered
from relay.times import isoformat

_FOLLOW_SECONDS: Final = 0.5
_LATE_IDS: Final = 1_000
"""PostgreSQL may show an entry late: up to so many entries with greater ids are seen before it."""
_MAX_LISTED: Final = 100_000
_WIDE_CELL: Final = 300


@main.command()
@filter_options
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(0, _MAX_LISTED),
    help="Show at most this many.",
)
@click.option("--follow", is_flag=True, help="Also print entries as they come in, until Ctrl-C.")
@as_json_option
@reveal_option
def events(*, limit: int, follow: bool, as_json: bool, reveal: bool, **filters: Any) -> None:  # noqa: ANN401 (the filter options)
    """List the newest entries."""
    criteria = criteria_of(filters)
    with open_context(as_json=as_json, reveal=reveal) as ctx:
        before = next(ctx.search.find(Criteria()), None)
        with progress("searching") as tick:
            found = list(islice(ctx.search.find(criteria, looked_at=tick), limit))
        if not follow:
            _list(ctx, found)
            return
        try:
            _follow(ctx, criteria, found[::-1], before.id if before else 0)
        except KeyboardInterrupt:
            return


def _follow(ctx: Context, criteria: Criteria, found: Sequence[StoredEntry], newest: int) -> None:
    output = ctx.output
    if not output.as_json:
        output.row(_HEADINGS, _WIDTHS)
    for entry in chain(found, _incoming(ctx.search, criteria, found, newest)):
        document = summary(entry, ctx.routes.render(entry))
        if output.as_json:
            output.lines([document])
        else:
            output.row(_cells(document), _WIDTHS)


def _incoming(
    search: Search, criteria: Criteria, found: Sequence[StoredEntry], newest: int
) -> Iterator[StoredEntry]:
    start = newest
    seen = deque(range(max(0, newest - _LATE_IDS), newest + 1), maxlen=3 * _LATE_IDS)
    seen.extend(entry.id for entry in found)
    while True:
        for entry in search.find(criteria, start=max(0, start - _LATE_IDS), newest_first=False):
            if entry.id not in seen:
                seen.append(entry.id)
                start = max(start, entry.id)
                yield entry
        time.sleep(_FOLLOW_SECONDS)


_HEADINGS: Final = ("id", "received", "state", "event", "user id", "address", "email id")
_WIDTHS: Final = (8, 24, 9, 20, 20, 20, 0)


def _list(ctx: Context, entries: Sequence[StoredEntry]) -> None:
    summaries = [summary(entry, ctx.routes.render(entry)) for entry in entries]
    if ctx.output.as_json:
        ctx.output.lines(summaries)
    elif summaries:
        ctx.output.table(_HEADINGS, map(_cells, summaries))
    else:
        ctx.output.print("no entries found")


def _cells(document: dict[str, Any]) -> list[object]:
    event = document["reason"] or document["collection"]
    columns = ("user_id", "address", "email_id")
    first = [document["id"], document["received_at"], document["state"], event]
    return [*first, *map(document.get, columns)]


@main.command()
@click.argument("name", metavar="ID")
@as_json_option
@reveal_option
def show(name: str, *, as_json: bool, reveal: bool) -> None:
    """Show one entry in full, by its id or its messageId."""
    with open_context(as_json=as_json, reveal=reveal) as ctx:
        by_number = name.isascii() and name.isdigit() and len(name) < 19  # noqa: PLR2004 (64 bits)
        criteria = Criteria(ids=(int(name),)) if by_number else Criteria(message_id=name)
        entry = next(ctx.search.find(criteria, with_history=True), None)
        if entry is None:
            raise click.ClickException(f"no entry has the id {ctx.output.text(name)}")
        rendered = ctx.routes.render(entry)
        if as_json:
            ctx.output.lines([detail(entry, rendered)])
        else:
            _print(ctx, entry, rendered)


def _print(ctx: Context, entry: StoredEntry, rendered: Rendered | Unusable) -> None:
    output = ctx.output
    document = summary(entry, rendered)
    rows = [(name.replace("_", " "), value) for name, value in document.items() if value]
    output.table((), rows, max_cell=_WIDE_CELL)
    output.print("", "history")
    output.table((), _history(entry, _title(ctx, entry)), max_cell=_WIDE_CELL)
    output.print("", "webhook", output.body(entry.body))
    output.print("", "track call, as it would be sent now")
    if isinstance(rendered, Unusable):
        output.print(output.text(f"none: {rendered.reason}: {rendered.detail}"))
    else:
        output.print(output.pretty(rendered.document))


def _title(ctx: Context, entry: StoredEntry) -> str:
    titles = {destination.name: destination.title for destination in ctx.routes.destinations}
    return titles.get(entry.destination, entry.destination)


def _history(entry: StoredEntry, destination: str) -> list[tuple[str | None, str]]:
    texts = {
        "posted": f"sent; {destination}: {{}}",
        "delivered": f"delivered: {destination} answered 2xx",
        "dead": "dead letter: {}",
        "replayed": "replayed",
    }
    history = [(isoformat(entry.received_at), "received, and on disk before it was answered")]
    history += [
        (isoformat(event.at), texts.get(event.what, event.what).format(event.detail))
        for event in entry.history
    ]
    if entry.delivered_at:
        return [*history, (isoformat(entry.delivered_at), texts["delivered"])]
    if entry.state is State.PENDING:
        return [*history, (None, "pending: waits to be sent, or is being sent")]
    if not any(event.what == "dead" for event in entry.history):
        history.append((isoformat(entry.received_at), f"dead letter on receipt: {entry.reason}"))
    return [*history]


@main.command()
@as_json_option
@reveal_option
def dead(*, as_json: bool, reveal: bool) -> None:
    """Count dead letters by reason, each with an example and a remedy."""
    with open_context(as_json=as_json, reveal=reveal) as ctx:
        output = ctx.output
        reasons = found_reasons(ctx.outbox)
        if as_json:
            for reason in reasons:
                example = summary(reason.example, ctx.routes.render(reason.example))
                output.lines([{"reason": reason.reason, "count": reason.count, "example": example}])
            return
        if not reasons:
            output.print("no dead letters")
            return
        output.table(
            ("reason", "count", "newest", "example", "what is wrong with the example"),
            [
                (
                    r.reason,
                    r.count,
                    isoformat(r.example.received_at),
                    r.example.id,
                    r.example.detail,
                )
                for r in reasons
            ],
            max_cell=_WIDE_CELL,
        )
        output.print("")
        for reason in reasons:
            output.print(f"{reason.reason}: {REMEDIES[DeadReason(reason.reason)]}")
        output.print("`relay show ID` shows an example in full.")
