"""The commands for entries: find them, tell their story, send them again, forget them."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeVar

import click
from msgspec import Struct, structs

from relay.cli.app import configure_logs, configured, main, opened, reported, segment_of
from relay.cli.output import Moment, Output, counted, full, moment, progress, summary
from relay.events import WHAT_TO_DO, Collection, DeadReason, Unusable
from relay.lookup import PAGE, Criteria, Lookup
from relay.mapping import Mapped, Mapping
from relay.outbox import Outbox, State
from relay.outbox.records import Record
from relay.replay import DEDUPLICATION, Plan, plan
from relay.replay import replay as replayed

_FOLLOW_SECONDS: Final = 0.5
_LATE: Final = 1_000
"""Of PostgreSQL's ids, one may become visible after so many that are greater."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Tools(Struct):
    outbox: Outbox
    lookup: Lookup
    mapping: Mapping
    output: Output


@contextmanager
def _tools(*, as_json: bool, reveal: bool) -> Iterator[_Tools]:
    settings, providers = configured()
    configure_logs(settings)
    mapping = Mapping(providers, segment_of(settings))
    with opened(settings) as outbox, reported():
        yield _Tools(
            outbox,
            Lookup(outbox.records, providers),
            mapping,
            Output(as_json=as_json, reveal=reveal),
        )


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _choice(values: Iterable[str]) -> click.Choice[str]:
    return click.Choice([str(value) for value in values], case_sensitive=False)


_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
_reveal = click.option("--reveal", is_flag=True, help="Show addresses.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_dry_run = click.option("--dry-run", is_flag=True, help="Count and show; change nothing.")
_person = _options(
    click.option("--user-id", help="Of the recipient."),
    click.option("--address", help="Of the recipient; or its SHA-256 in hex."),
)
_filters = _options(
    click.option("--id", "ids", multiple=True, type=int, help="Of the entry; several."),
    click.option(
        "--state", "states", multiple=True, type=_choice(State), help="Of these; several."
    ),
    click.option("--provider", help="Whose webhook it was."),
    click.option("--collection", type=_choice(Collection), help="Which of the seven."),
    click.option("--reason", type=_choice(DeadReason), help="Why it is a dead letter."),
    click.option("--since", type=Moment(), help="Received since: 30m, 2h, 7d, 2026-03-01T12:00."),
    click.option("--until", type=Moment(), help="Received before."),
    click.option("--message-id", help="Its messageId at Segment."),
    click.option("--email-id", help="The provider's id of the email."),
    _person,
)


def _criteria(**given: Any) -> Criteria:  # noqa: ANN401 (the options of _filters)
    return Criteria(**given | {"states": tuple(State(state) for state in given["states"])})


@main.command()
@_filters
@click.option("--limit", default=20, show_default=True, help="How many.")
@click.option("--follow", is_flag=True, help="Go on with those that come in, until Ctrl-C.")
@_json
@_reveal
def events(*, limit: int, follow: bool, as_json: bool, reveal: bool, **given: Any) -> None:  # noqa: ANN401
    """List the newest entries."""
    with _tools(as_json=as_json, reveal=reveal) as tools:
        criteria = _criteria(**given)
        found = list(islice(tools.lookup.find(criteria), limit))
        if not follow:
            _list(tools, found)
            return
        _list(tools, found[::-1])
        for record in _coming(tools.lookup, criteria, found):
            _list(tools, [record], headings=False)


def _coming(lookup: Lookup, criteria: Criteria, found: Sequence[Record]) -> Iterator[Record]:
    newest = next(iter(lookup.find(Criteria())), None)
    start = newest.id if newest else 0
    seen = deque((record.id for record in found), maxlen=2 * _LATE)
    seen.extend(range(max(0, start - _LATE), start + 1))
    while True:
        for record in lookup.find(criteria, start=max(0, start - _LATE), newest_first=False):
            if record.id not in seen:
                seen.append(record.id)
                start = max(start, record.id)
                yield record
        time.sleep(_FOLLOW_SECONDS)


_HEADINGS: Final = ("id", "received", "state", "event", "user id", "address", "email id")


def _list(tools: _Tools, records: Sequence[Record], *, headings: bool = True) -> None:
    summaries = [summary(record, tools.mapping.map(record)) for record in records]
    if tools.output.as_json:
        for told in summaries:
            tools.output.line(told)
        return
    columns = ("id", "received_at", "state", "what", "user_id", "address", "email_id")
    rows = [
        [(told | {"what": told["reason"] or told["collection"]})[column] for column in columns]
        for told in summaries
    ]
    tools.output.table(_HEADINGS if headings else (), rows)


@main.command()
@click.argument("entry", metavar="ID")
@_json
@_reveal
def show(entry: str, *, as_json: bool, reveal: bool) -> None:
    """Tell the whole story of one event, by its entry's id or its messageId."""
    with _tools(as_json=as_json, reveal=reveal) as tools:
        by_number = entry.isascii() and entry.isdigit() and len(entry) < 19  # noqa: PLR2004 (64 bits)
        criteria = Criteria(ids=(int(entry),)) if by_number else Criteria(message_id=entry)
        record = next(tools.lookup.find(criteria, with_history=True), None)
        if record is None:
            raise click.ClickException(f"no entry goes by {tools.output.text(entry)}")
        mapped = tools.mapping.map(record)
        if as_json:
            tools.output.line(full(record, mapped))
        else:
            _tell(tools.output, record, mapped)


def _tell(output: Output, record: Record, mapped: Mapped | Unusable) -> None:
    told = summary(record, mapped)
    described = [(name.replace("_", " "), value) for name, value in told.items() if value]
    output.table((), described)
    click.echo("\nwhat happened")
    output.table((), _story(record))
    click.echo("\nthe webhook")
    try:
        click.echo(output.pretty(output.parsed(record.body)))
    except ValueError:
        click.echo(output.text(record.body.decode(errors="replace")))
    click.echo("\nthe track call, as it would go out now")
    if isinstance(mapped, Unusable):
        click.echo(output.text(f"none: {mapped.reason}: {mapped.detail}"))
    else:
        click.echo(output.pretty(mapped.message))


def _story(record: Record) -> list[tuple[str | None, str]]:
    story = [(moment(record.received_at), "received, and on disk before it was answered")]
    told = {
        "posted": "posted; Segment: {}",
        "delivered": "delivered",
        "dead": "dead letter: {}",
        "replayed": "replayed",
    }
    story += [
        (moment(happening.at), told.get(happening.what, happening.what).format(happening.said))
        for happening in record.history
    ]
    if record.delivered_at:
        story.append((moment(record.delivered_at), "delivered: Segment answered 2xx"))
    elif record.state is State.PENDING:
        story.append((None, "pending: it waits to be posted, or is being posted"))
    elif not any(happening.what == "dead" for happening in record.history):
        story.append((moment(record.received_at), f"dead letter from the start: {record.reason}"))
    return story


@main.command()
@_json
@_reveal
def dead(*, as_json: bool, reveal: bool) -> None:
    """Group the dead letters by reason: how many, an example, what to do."""
    with _tools(as_json=as_json, reveal=reveal) as tools:
        reasons = tools.outbox.records.reasons()
        if as_json:
            for reason in reasons:
                example = summary(reason.example, tools.mapping.map(reason.example))
                tools.output.line(
                    {"reason": reason.reason, "count": reason.count, "example": example}
                )
            return
        if not reasons:
            click.echo("no dead letters")
            return
        tools.output.table(
            ("reason", "count", "newest", "example", "what is wrong with it"),
            [
                (r.reason, r.count, moment(r.example.received_at), r.example.id, r.example.detail)
                for r in reasons
            ],
        )
        click.echo()
        for reason in reasons:
            click.echo(f"{reason.reason}: {WHAT_TO_DO[DeadReason(reason.reason)]}")
        click.echo("`relay show ID` tells an example's story.")


@main.command()
@_filters
@_dry_run
@_yes
@_json
@_reveal
def replay(
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    reveal: bool,
    **given: Any,  # noqa: ANN401
) -> None:
    """Map stored webhooks anew and send them again, each under the messageId it has.

    Dead letters only, unless --state or --id names others.
    """
    criteria = _criteria(**given)
    if criteria == Criteria():
        raise click.UsageError("say which: --id, --state, --reason, --since or another filter")
    if not criteria.states and not criteria.ids and not criteria.message_id:
        criteria = _criteria(**given | {"states": (State.DEAD,)})
    with _tools(as_json=as_json, reveal=reveal) as tools:
        found = tools.lookup.find(criteria, newest_first=False)
        with progress("mapping") as tick:
            planned = plan(_ticking(found, tick), tools.mapping, now=datetime.now(UTC))
        if not as_json:
            _tell_plan(planned)
        if dry_run:
            _show_examples(tools.output, planned)
            return
        if planned.again and not yes:
            click.confirm(f"Send {planned.again:,} delivered ones again?", abort=True, err=True)
        revived = _replay(tools, criteria, planned)
        if as_json:
            tools.output.line({**_numbers(planned), "replayed": revived})
        else:
            click.echo(f"{counted(revived)} replayed: pending now, and forwarded by `relay serve`")


def _numbers(planned: Plan) -> dict[str, Any]:
    told = structs.asdict(planned)
    del told["examples"]
    return told


def _tell_plan(planned: Plan) -> None:
    click.echo(f"{counted(planned.to_send)} to send")
    if planned.again:
        click.echo(f"  {planned.again:,} of them Segment has had before")
    if planned.too_late:
        hours = DEDUPLICATION.total_seconds() / 3600
        click.echo(
            f"  {planned.too_late:,} of these more than {hours:.0f} h ago: Segment recognises a"
            " messageId no longer than that, so they may count twice"
        )
    if planned.pending:
        click.echo(f"{counted(planned.pending)} left alone: on the way already")
    for reason, count in planned.unusable.most_common():
        click.echo(f"{counted(count)} left alone: still {reason}")


def _show_examples(output: Output, planned: Plan) -> None:
    if output.as_json:
        shown = [{"id": r.id, "track": mapped.message} for r, mapped in planned.examples]
        output.line({**_numbers(planned), "examples": shown})
        return
    for record, mapped in planned.examples:
        click.echo(f"\nentry {record.id} would be sent as")
        click.echo(output.pretty(mapped.message))
    click.echo("\nnothing was changed (--dry-run)")


def _replay(tools: _Tools, criteria: Criteria, planned: Plan) -> int:
    records = tools.outbox.records
    operation = records.begin("replay", _described(criteria))
    found = tools.lookup.find(criteria, newest_first=False, with_history=True)
    revived = 0
    with progress("replaying", planned.found) as tick:
        for looked_at, made_pending in replayed(records, found, tools.mapping, operation):
            revived += made_pending
            tick(looked_at)
    records.finish(operation)
    return revived


def _ticking(records: Iterator[Record], tick: Callable[[int], None]) -> Iterator[Record]:
    for number, record in enumerate(records, 1):
        yield record
        if number % PAGE == 0:
            tick(PAGE)


def _described(criteria: Criteria) -> str:
    """The criteria for the record of operations, which tells nothing of whom they name."""
    words = [f"state={state}" for state in criteria.states]
    words += [f"id={id_}" for id_ in criteria.ids]
    for name in ("provider", "collection", "reason", "message_id", "email_id"):
        if value := getattr(criteria, name):
            words.append(f"{name}={value}")
    for name in ("since", "until"):
        if value := getattr(criteria, name):
            words.append(f"{name}={moment(value)}")
    words += [f"{name}=***" for name in ("user_id", "address") if getattr(criteria, name)]
    return " ".join(words)


@main.command()
@_filters
@_reveal
def export(*, reveal: bool, **given: Any) -> None:  # noqa: ANN401
    """Print entries as JSON lines, oldest first: raw webhooks, track calls, histories."""
    with _tools(as_json=True, reveal=reveal) as tools, progress("exporting") as tick:
        found = tools.lookup.find(_criteria(**given), newest_first=False, with_history=True)
        for record in _ticking(found, tick):
            tools.output.line(full(record, tools.mapping.map(record)))


@main.command()
@_person
@_dry_run
@_yes
@_json
def erase(
    *, user_id: str | None, address: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Forget everything about one person, in every state.

    What Segment has already is Segment's to delete.
    """
    if (user_id is None) == (address is None):
        raise click.UsageError("say whom: --user-id or --address")
    what = "by address" if address else "by user id"
    with _tools(as_json=as_json, reveal=False) as tools:
        criteria = Criteria(user_id=user_id, address=address)
        ids: list[int] = []
        states: dict[State, int] = {}
        for record in tools.lookup.find(criteria):
            ids.append(record.id)
            states[record.state] = states.get(record.state, 0) + 1
        if not as_json:
            told = ", ".join(f"{count:,} {state}" for state, count in states.items())
            click.echo(f"{counted(len(ids))} found" + (f": {told}" if told else ""))
        if ids and not dry_run and not yes:
            click.confirm("Erase them for good?", abort=True, err=True)
        erased = 0
        if ids and not dry_run:
            operation = tools.outbox.records.begin("erase", what)
            with progress("erasing", len(ids)) as tick:
                for first in range(0, len(ids), PAGE):
                    step = ids[first : first + PAGE]
                    erased += tools.outbox.records.erase(step, operation)
                    tick(len(step))
            tools.outbox.records.finish(operation)
        if as_json:
            tools.output.line({"found": len(ids), "states": states, "erased": erased})
        elif dry_run:
            click.echo("nothing was changed (--dry-run)")
        else:
            click.echo(f"{counted(erased)} erased")
            if states.get(State.PENDING):
                click.echo("What was being posted at this moment may still reach Segment.")


@main.command()
@click.option("--limit", default=20, show_default=True, help="How many.")
@_json
def operations(*, limit: int, as_json: bool) -> None:
    """List what operators did: replays and erasures."""
    with _tools(as_json=as_json, reveal=False) as tools:
        rows = [
            {
                "id": operation.id,
                "what": operation.kind,
                "which": operation.what,
                "started": moment(operation.started_at),
                "finished": moment(operation.finished_at),
                "entries": operation.entries,
            }
            for operation in tools.outbox.records.operations(limit)
        ]
        if as_json:
            for row in rows:
                tools.output.line(row)
        else:
            headings = ("id", "what", "which", "started", "finished", "entries")
            tools.output.table(headings, [tuple(row.values()) for row in rows])
