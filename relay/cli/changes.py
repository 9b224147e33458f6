"""The commands that change entries: send them again, forget them; and the record of both."""

from datetime import UTC, datetime
from typing import Any, Final

import click
from msgspec import structs

from relay.cli.app import main
from relay.cli.context import Context, open_context
from relay.cli.filters import (
    as_json_option,
    criteria_of,
    described,
    dry_run_option,
    filters,
    person,
    reveal_option,
    yes_option,
)
from relay.cli.output import Output, counted, progress
from relay.operations.replay import DEDUPLICATION, Plan, plan
from relay.operations.replay import replay as replayed
from relay.operations.search import PAGE, Criteria
from relay.operations.views import moment
from relay.outbox.entries import Operation, State

_MOST_OPERATIONS: Final = 100_000
_DRY_RUN: Final = "nothing was changed (--dry-run)"


@main.command()
@filters
@dry_run_option
@yes_option
@as_json_option
@reveal_option
def replay(
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    reveal: bool,
    **given: Any,  # noqa: ANN401 (the filters)
) -> None:
    """Map stored webhooks anew and send them again, each under the messageId it has.

    Dead letters only, unless --state, --id or --message-id names others. Interrupted and started
    again with the same options, it replays nothing twice.
    """
    if not any(given.values()):
        raise click.UsageError("say which: --id, --state, --reason, --since or another filter")
    if not (given["states"] or given["ids"] or given["message_id"]):
        given["states"] = (State.DEAD.value,)
    with open_context(as_json=as_json, reveal=reveal) as ctx:
        what = described(given, ctx.fingerprint)
        begun = _unfinished(ctx, "replay", what)
        began_at = begun.started_at if begun else datetime.now(UTC)
        criteria = criteria_of(given, now=began_at)
        planned = _planned(ctx, criteria, began_at)
        if not as_json:
            _tell_plan(ctx.output, planned, begun)
        if dry_run:
            _show_examples(ctx.output, planned)
            return
        if planned.again and not yes:
            click.confirm(f"Send {planned.again:,} delivered ones again?", abort=True, err=True)
        requeued = _replay(ctx, criteria, planned, what, began_at)
        if as_json:
            ctx.output.lines([{**_numbers(planned), "replayed": requeued}])
        else:
            ctx.output.say(
                f"{counted(requeued)} replayed"
                + (": pending now, and forwarded by `relay serve`" if requeued else "")
            )


def _unfinished(ctx: Context, kind: str, what: str) -> Operation | None:
    """The same operation, begun earlier and interrupted, which this one will go on with."""
    for operation in ctx.outbox.entries.operations(_MOST_OPERATIONS):
        if (operation.kind, operation.what, operation.finished_at) == (kind, what, None):
            return operation
    return None


def _planned(ctx: Context, criteria: Criteria, began_at: datetime) -> Plan:
    with progress("mapping") as tick:
        found = ctx.search.find(criteria, newest_first=False, with_history=True, looked_at=tick)
        return plan(found, ctx.routes, now=datetime.now(UTC), began_at=began_at)


def _replay(ctx: Context, criteria: Criteria, planned: Plan, what: str, began_at: datetime) -> int:
    entries = ctx.outbox.entries
    operation = entries.begin("replay", what)
    found = ctx.search.find(criteria, newest_first=False, with_history=True)
    requeued = 0
    with progress("replaying", planned.found) as tick:
        for looked_at, made_pending in replayed(
            entries, found, ctx.routes, operation, began_at=began_at
        ):
            requeued += made_pending
            tick(looked_at)
    entries.finish(operation)
    return requeued


def _numbers(planned: Plan) -> dict[str, Any]:
    told = structs.asdict(planned)
    del told["examples"]
    return told


def _tell_plan(output: Output, planned: Plan, begun: Operation | None) -> None:
    if begun:
        output.say(
            f"going on with the same replay, begun at {moment(begun.started_at)} and interrupted;"
            f" {counted(begun.entries)} replayed by then"
        )
    output.say(f"{counted(planned.to_send)} to send")
    if planned.again:
        output.say(f"  {planned.again:,} of them Segment has had before")
    if planned.too_late:
        hours = DEDUPLICATION.total_seconds() / 3600
        output.say(
            f"  {planned.too_late:,} of these more than {hours:.0f} h ago: Segment recognises a"
            " messageId no longer than that, so they may count twice"
        )
    if planned.pending:
        output.say(f"{counted(planned.pending)} left alone: on the way already")
    if planned.done:
        output.say(f"{counted(planned.done)} left alone: settled since the replay began")
    for reason, count in planned.unusable.most_common():
        output.say(f"{counted(count)} left alone: still {reason}")


def _show_examples(output: Output, planned: Plan) -> None:
    if output.as_json:
        shown = [{"id": r.id, "track": rendered.document} for r, rendered in planned.examples]
        output.lines([{**_numbers(planned), "examples": shown}])
        return
    for entry, rendered in planned.examples:
        output.say("", f"entry {entry.id} would be sent as", output.pretty(rendered.document))
    output.say("", _DRY_RUN)


@main.command()
@person
@dry_run_option
@yes_option
@as_json_option
def erase(
    *, user_id: str | None, address: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Forget everything about one person, in every state.

    Dead letters that cannot be read go, too, if they name the person. What Segment has already is
    Segment's to delete.
    """
    if (user_id is None) == (address is None):
        raise click.UsageError("say whom: --user-id or --address")
    with open_context(as_json=as_json) as ctx:
        output = ctx.output
        ids, states = _about(ctx, Criteria(user_id=user_id, address=address))
        if not as_json:
            told = ", ".join(f"{count:,} {state}" for state, count in states.items())
            output.say(f"{counted(len(ids))} found" + (f": {told}" if told else ""))
        if ids and not dry_run and not yes:
            click.confirm("Erase them for good?", abort=True, err=True)
        what = described({"user_id": user_id, "address": address}, ctx.fingerprint)
        erased = 0 if dry_run else _erase(ctx, ids, what)
        if as_json:
            output.lines([{"found": len(ids), "states": states, "erased": erased}])
        elif dry_run:
            output.say(_DRY_RUN)
        else:
            output.say(f"{counted(erased)} erased")
            if states.get(State.PENDING):
                output.say("What was being posted at this moment may still reach Segment.")


def _about(ctx: Context, criteria: Criteria) -> tuple[list[int], dict[State, int]]:
    ids: list[int] = []
    states: dict[State, int] = {}
    with progress("searching") as tick:
        for entry in ctx.search.find(criteria, looked_at=tick):
            ids.append(entry.id)
            states[entry.state] = states.get(entry.state, 0) + 1
    return ids, states


def _erase(ctx: Context, ids: list[int], what: str) -> int:
    """Erase them; that nobody was found is noted, too."""
    entries = ctx.outbox.entries
    operation = entries.begin("erase", what)
    erased = 0
    with progress("erasing", len(ids)) as tick:
        for first in range(0, len(ids), PAGE):
            step = ids[first : first + PAGE]
            erased += entries.erase(step, operation)
            tick(len(step))
    entries.finish(operation)
    return erased


@main.command()
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(0, _MOST_OPERATIONS),
    help="How many.",
)
@as_json_option
def operations(*, limit: int, as_json: bool) -> None:
    """List what operators did: replays and erasures."""
    with open_context(as_json=as_json) as ctx:
        rows = [
            {
                "id": operation.id,
                "what": operation.kind,
                "which": operation.what,
                "started": moment(operation.started_at),
                "finished": moment(operation.finished_at),
                "entries": operation.entries,
            }
            for operation in ctx.outbox.entries.operations(limit)
        ]
        if as_json:
            ctx.output.lines(rows)
        elif rows:
            ctx.output.table([*rows[0]], [[*row.values()] for row in rows], widest=300)
        else:
            ctx.output.say("no operations")
