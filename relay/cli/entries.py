"""The commands that show entries: the newest, one in full, and the dead letters."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, Final

import click

from relay.cli.app import main
from relay.cli.context import Context, open_context
from relay.cli.options import as_json_option, criteria_of, filter_options, reveal_option
from relay.cli.output import Output, progress
from relay.events import REMEDIES, DeadReason, Unusable
from relay.operations.search import Criteria, Search
from relay.operations.search import reasons as found_reasons
from relay.operations.views import detail, documents, fault_of, noun, sent, summary
from relay.operations.waiting import Wait, wait_of
from relay.outbox.entries import StoredEntry
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
        document = summary(entry, ctx.routes.event(entry))
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
    summaries = [summary(entry, ctx.routes.event(entry)) for entry in entries]
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
        wait = wait_of(ctx.outbox, entry, ctx.routes, datetime.now(UTC))
        if as_json:
            ctx.output.lines([{**detail(entry, ctx.routes.event(entry), rendered), **_waits(wait)}])
        else:
            _print(ctx, entry, rendered, wait)


def _waits(wait: Wait | None) -> dict[str, Any]:
    behind, retry_at = (wait.behind, wait.retry_at) if wait else (None, None)
    return {"behind": behind, "retry_at": retry_at and isoformat(retry_at)}


def _print(
    ctx: Context, entry: StoredEntry, rendered: Rendered | Unusable, wait: Wait | None
) -> None:
    output, route = ctx.output, ctx.routes.get(entry.source)
    title = route.destination.title if route else entry.destination
    document = summary(entry, ctx.routes.event(entry))
    rows = [(name.replace("_", " "), value) for name, value in document.items() if value]
    output.table((), rows, max_cell=_WIDE_CELL)
    output.print("", "history")
    output.table((), _history(entry, title, wait), max_cell=_WIDE_CELL)
    output.print("", f"{noun(route.source if route else None)}, as received")
    output.print(output.body(entry.body))
    output.print("", f"to {title}, as it would be sent now")
    _print_messages(output, entry, rendered)


def _print_messages(output: Output, entry: StoredEntry, rendered: Rendered | Unusable) -> None:
    messages, count = documents(rendered), sent(entry, rendered)
    for number, message in enumerate(messages, 1):
        if len(messages) > 1 or fault_of(rendered):
            output.print(f"{number} of {len(messages)}{', sent already' * (number <= count)}")
        output.print(output.pretty(message))
    if fault := fault_of(rendered):
        what = "not sent" if messages else "none"
        output.print(output.text(f"{what}: {fault.reason}: {fault.detail}"))


def _history(
    entry: StoredEntry, destination: str, wait: Wait | None
) -> list[tuple[str | None, str]]:
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
    if wait:
        return [*history, (None, f"pending: {_what_for(wait, entry, destination)}")]
    if not any(event.what == "dead" for event in entry.history):
        history.append((isoformat(entry.received_at), f"dead letter on receipt: {entry.reason}"))
    return [*history]


def _what_for(wait: Wait, entry: StoredEntry, destination: str) -> str:
    """Return what the entry waits for."""
    if wait.status is None:
        return f"waits for {entry.destination}, which is not configured"
    if wait.behind is not None:
        return f"waits behind entry {wait.behind}, which concerns the same person"
    if wait.status.hold:
        return f"waits, because {destination} is on hold: it answered {wait.status.hold}"
    if wait.retry_at:
        return f"{destination} fails at it; it is tried again at {isoformat(wait.retry_at)}"
    if wait.status.failures:
        return f"waits, because {destination} is unavailable: {wait.status.answer}"
    return "waits to be sent, or is being sent"


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
                example = summary(reason.example, ctx.routes.event(reason.example))
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
