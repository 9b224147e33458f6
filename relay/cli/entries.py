"""The commands that show entries: the newest, one's whole story, the dead letters, all of them."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final

import click

from relay.cli.app import main
from relay.cli.context import Context, open_context
from relay.cli.filters import as_json_option, criteria_of, filters, reveal_option
from relay.cli.output import Output, progress
from relay.events import REMEDIES, DeadReason, Unusable
from relay.operations.search import Criteria, Search
from relay.operations.search import reasons as found_reasons
from relay.operations.views import detail, moment, summary
from relay.outbox.entries import State, StoredEntry
from relay.routes import Rendered

_FOLLOW_SECONDS: Final = 0.5
_LATE: Final = 1_000
"""Of PostgreSQL's ids, one may become visible after so many that are greater."""
_MOST_LISTED: Final = 100_000
_WIDE: Final = 300


@main.command()
@filters
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(0, _MOST_LISTED), help="How many."
)
@click.option("--follow", is_flag=True, help="Go on with those that come in, until Ctrl-C.")
@as_json_option
@reveal_option
def events(*, limit: int, follow: bool, as_json: bool, reveal: bool, **given: Any) -> None:  # noqa: ANN401 (the filters)
    """List the newest entries."""
    criteria = criteria_of(given)
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
    for entry in chain(found, _coming(ctx.search, criteria, found, newest)):
        told = summary(entry, ctx.routes.render(entry))
        if output.as_json:
            output.lines([told])
        else:
            output.row(_cells(told), _WIDTHS)


def _coming(
    search: Search, criteria: Criteria, found: Sequence[StoredEntry], newest: int
) -> Iterator[StoredEntry]:
    start = newest
    seen = deque(range(max(0, newest - _LATE), newest + 1), maxlen=3 * _LATE)
    seen.extend(entry.id for entry in found)
    while True:
        for entry in search.find(criteria, start=max(0, start - _LATE), newest_first=False):
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
        ctx.output.say("no such entries")


def _cells(told: dict[str, Any]) -> list[object]:
    what = told["reason"] or told["collection"]
    columns = ("user_id", "address", "email_id")
    return [told["id"], told["received_at"], told["state"], what, *map(told.get, columns)]


@main.command()
@click.argument("name", metavar="ID")
@as_json_option
@reveal_option
def show(name: str, *, as_json: bool, reveal: bool) -> None:
    """Tell the whole story of one event, by its entry's id or its messageId."""
    with open_context(as_json=as_json, reveal=reveal) as ctx:
        by_number = name.isascii() and name.isdigit() and len(name) < 19  # noqa: PLR2004 (64 bits)
        criteria = Criteria(ids=(int(name),)) if by_number else Criteria(message_id=name)
        entry = next(ctx.search.find(criteria, with_history=True), None)
        if entry is None:
            raise click.ClickException(f"no entry goes by {ctx.output.text(name)}")
        rendered = ctx.routes.render(entry)
        if as_json:
            ctx.output.lines([detail(entry, rendered)])
        else:
            _tell(ctx.output, entry, rendered)


def _tell(output: Output, entry: StoredEntry, rendered: Rendered | Unusable) -> None:
    told = summary(entry, rendered)
    described = [(name.replace("_", " "), value) for name, value in told.items() if value]
    output.table((), described, widest=_WIDE)
    output.say("", "what happened")
    output.table((), _story(entry), widest=_WIDE)
    output.say("", "the webhook", output.body(entry.body))
    output.say("", "the track call, as it would go out now")
    if isinstance(rendered, Unusable):
        output.say(output.text(f"none: {rendered.reason}: {rendered.detail}"))
    else:
        output.say(output.pretty(rendered.document))


def _story(entry: StoredEntry) -> list[tuple[str | None, str]]:
    story = [(moment(entry.received_at), "received, and on disk before it was answered")]
    told = {
        "posted": "posted; Segment: {}",
        "delivered": "delivered: Segment answered 2xx",
        "dead": "dead letter: {}",
        "replayed": "replayed",
    }
    story += [
        (moment(event.at), told.get(event.what, event.what).format(event.detail))
        for event in entry.history
    ]
    if entry.delivered_at:
        story.append((moment(entry.delivered_at), told["delivered"]))
    elif entry.state is State.PENDING:
        story.append((None, "pending: it waits to be posted, or is being posted"))
    elif not any(event.what == "dead" for event in entry.history):
        story.append((moment(entry.received_at), f"dead letter from the start: {entry.reason}"))
    return story


@main.command()
@as_json_option
@reveal_option
def dead(*, as_json: bool, reveal: bool) -> None:
    """Group the dead letters by reason: how many, an example, what to do."""
    with open_context(as_json=as_json, reveal=reveal) as ctx:
        output = ctx.output
        reasons = found_reasons(ctx.outbox)
        if as_json:
            for reason in reasons:
                example = summary(reason.example, ctx.routes.render(reason.example))
                output.lines([{"reason": reason.reason, "count": reason.count, "example": example}])
            return
        if not reasons:
            output.say("no dead letters")
            return
        output.table(
            ("reason", "count", "newest", "example", "what is wrong with it"),
            [
                (r.reason, r.count, moment(r.example.received_at), r.example.id, r.example.detail)
                for r in reasons
            ],
            widest=_WIDE,
        )
        output.say("")
        for reason in reasons:
            output.say(f"{reason.reason}: {REMEDIES[DeadReason(reason.reason)]}")
        output.say("`relay show ID` tells an example's story.")


@main.command()
@filters
@reveal_option
@click.option("--json", is_flag=True, expose_value=False, hidden=True)  # it prints nothing else
def export(*, reveal: bool, **given: Any) -> None:  # noqa: ANN401 (the filters)
    """Print entries as JSON lines, oldest first: raw webhooks, track calls, histories."""
    criteria = criteria_of(given)
    with open_context(as_json=True, reveal=reveal) as ctx, progress("exporting") as tick:
        found = ctx.search.find(criteria, newest_first=False, with_history=True, looked_at=tick)
        ctx.output.lines(detail(entry, ctx.routes.render(entry)) for entry in found)
