"""The commands that change entries, `replay` and `erase`, and `operations`, which lists them."""

from datetime import UTC, datetime
from typing import Any, Final

import click
from msgspec import structs

from relay.cli.app import main
from relay.cli.context import Context, open_context
from relay.cli.options import (
    as_json_option,
    criteria_of,
    criteria_text,
    dry_run_option,
    filter_options,
    person_options,
    reveal_option,
    yes_option,
)
from relay.cli.output import Output, counted, progress
from relay.operations.replay import Plan, plan
from relay.operations.replay import replay as requeue
from relay.operations.search import BATCH_ROWS, Criteria
from relay.operations.views import documents
from relay.outbox.entries import Operation, State
from relay.times import isoformat

_MAX_OPERATIONS: Final = 100_000
_DRY_RUN: Final = "nothing was changed (--dry-run)"


@main.command()
@filter_options
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
    **filters: Any,  # noqa: ANN401 (the filter options)
) -> None:
    """Send stored webhooks and calls again, each under its messageId.

    Each is mapped as a new one would be. Without --state, --id or --message-id, only dead letters
    are replayed. A call to Vero is sent after all that was received later about the same person,
    and may undo it. If it is interrupted, run the same command again: nothing is replayed twice.
    """
    if not any(filters.values()):
        raise click.UsageError("choose entries: --id, --state, --reason, --since or another filter")
    if not (filters["states"] or filters["ids"] or filters["message_id"]):
        filters["states"] = (State.DEAD.value,)
    with open_context(as_json=as_json, reveal=reveal) as ctx:
        what = criteria_text(filters, ctx.fingerprint)
        unfinished = _unfinished(ctx, "replay", what)
        began_at = unfinished.started_at if unfinished else datetime.now(UTC)
        criteria = criteria_of(filters, now=began_at)
        planned = _planned(ctx, criteria, began_at)
        if not as_json:
            _print_plan(ctx.output, planned, unfinished)
        if dry_run:
            _show_examples(ctx.output, planned)
            return
        if (planned.again or planned.in_lanes) and not yes:
            click.confirm(_question(planned), abort=True, err=True)
        requeued = _replay(ctx, criteria, planned, what, began_at)
        if as_json:
            ctx.output.lines([{**_numbers(planned), "replayed": requeued}])
        else:
            ctx.output.print(
                f"{counted(requeued)} replayed"
                + (": now pending, `relay serve` forwards them" if requeued else "")
            )


def _unfinished(ctx: Context, kind: str, what: str) -> Operation | None:
    """Return the operation to continue: the same one, begun earlier and interrupted; else None."""
    for operation in ctx.outbox.entries.operations(_MAX_OPERATIONS):
        if (operation.kind, operation.what, operation.finished_at) == (kind, what, None):
            return operation
    return None


def _are_chosen(criteria: Criteria) -> bool:
    """Return whether the operator has chosen entries by their ids or their reason."""
    return bool(criteria.ids or criteria.message_id or criteria.reason)


def _planned(ctx: Context, criteria: Criteria, began_at: datetime) -> Plan:
    with progress("mapping") as tick:
        found = ctx.search.find(criteria, newest_first=False, with_history=True, looked_at=tick)
        now, chosen = datetime.now(UTC), _are_chosen(criteria)
        return plan(found, ctx.routes, now=now, began_at=began_at, chosen=chosen)


def _replay(ctx: Context, criteria: Criteria, planned: Plan, what: str, began_at: datetime) -> int:
    entries = ctx.outbox.entries
    operation = entries.begin("replay", what)
    found = ctx.search.find(criteria, newest_first=False, with_history=True)
    requeued = 0
    with progress("replaying", planned.found) as tick:
        for looked_at, made_pending in requeue(
            entries,
            found,
            ctx.routes,
            operation,
            began_at=began_at,
            chosen=_are_chosen(criteria),
        ):
            requeued += made_pending
            tick(looked_at)
    entries.finish(operation)
    return requeued


def _question(planned: Plan) -> str:
    """Return the question whether to do what may do harm."""
    harms = []
    if again := planned.again.total():
        harms.append(f"{again:,} delivered entries again")
    if in_lanes := planned.in_lanes.total():
        harms.append(f"{in_lanes:,} after what was received later about the same people")
    return f"Send {' and '.join(harms)}?"


def _numbers(planned: Plan) -> dict[str, Any]:
    numbers = structs.asdict(planned)
    del numbers["examples"]
    totals = {name: numbers[name].total() for name in ("in_lanes", "again", "too_late")}
    return {**numbers, **totals}


def _print_plan(output: Output, planned: Plan, unfinished: Operation | None) -> None:
    if unfinished:
        output.print(
            f"continuing the same replay, begun at {isoformat(unfinished.started_at)} and"
            f" interrupted; {counted(unfinished.entries)} replayed so far"
        )
    output.print(f"{counted(planned.to_send)} to send")
    for title, count in planned.again.items():
        output.print(f"  {count:,} of them delivered to {title} before")
    for title, count in planned.too_late.items():
        output.print(
            f"  {count:,} of these so long ago that {title} no longer recognises them: they may"
            " count twice"
        )
    for title, count in planned.in_lanes.items():
        output.print(
            f"  {count:,} of them go to {title} after what was received later about the same"
            " people: they may undo it"
        )
    if planned.pending:
        output.print(f"{counted(planned.pending)} left alone: pending already")
    if planned.done:
        output.print(f"{counted(planned.done)} left alone: settled since the replay began")
    for reason, count in planned.unusable.most_common():
        output.print(f"{counted(count)} left alone: still {reason}")


def _show_examples(output: Output, planned: Plan) -> None:
    if output.as_json:
        shown = [
            {"id": entry.id, "messages": documents(rendered)}
            for entry, rendered in planned.examples
        ]
        output.lines([{**_numbers(planned), "examples": shown}])
        return
    for entry, rendered in planned.examples:
        output.print("", f"entry {entry.id} would be sent as")
        output.print(*map(output.pretty, documents(rendered)))
    output.print("", _DRY_RUN)


@main.command()
@person_options
@dry_run_option
@yes_option
@as_json_option
def erase(
    *, user_id: str | None, address: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Erase every entry about one person: events, and calls that name the person anywhere.

    Dead letters that cannot be read are erased, too, if they name the person. What was delivered
    must be deleted at its destination.
    """
    if (user_id is None) == (address is None):
        raise click.UsageError("choose a person: --user-id or --address")
    with open_context(as_json=as_json) as ctx:
        output = ctx.output
        ids, states = _about(ctx, Criteria(user_id=user_id, address=address))
        if not as_json:
            found = ", ".join(f"{count:,} {state}" for state, count in states.items())
            output.print(f"{counted(len(ids))} found" + (f": {found}" if found else ""))
        if ids and not dry_run and not yes:
            click.confirm("Erase them? This cannot be undone.", abort=True, err=True)
        what = criteria_text({"user_id": user_id, "address": address}, ctx.fingerprint)
        erased = 0 if dry_run else _erase(ctx, ids, what)
        if as_json:
            output.lines([{"found": len(ids), "states": states, "erased": erased}])
        elif dry_run:
            output.print(_DRY_RUN)
        else:
            output.print(f"{counted(erased)} erased")
            if states.get(State.PENDING):
                output.print("Entries that were being sent at this moment may still be delivered.")


def _about(ctx: Context, criteria: Criteria) -> tuple[list[int], dict[State, int]]:
    ids: list[int] = []
    states: dict[State, int] = {}
    with progress("searching") as tick:
        for entry in ctx.search.find(criteria, looked_at=tick):
            ids.append(entry.id)
            states[entry.state] = states.get(entry.state, 0) + 1
    return ids, states


def _erase(ctx: Context, ids: list[int], what: str) -> int:
    """Erase the entries and record it, even if there were none; return how many were erased."""
    entries = ctx.outbox.entries
    operation = entries.begin("erase", what)
    erased = 0
    with progress("erasing", len(ids)) as tick:
        for first in range(0, len(ids), BATCH_ROWS):
            batch = ids[first : first + BATCH_ROWS]
            erased += entries.erase(batch, operation)
            tick(len(batch))
    entries.finish(operation)
    return erased


@main.command()
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(0, _MAX_OPERATIONS),
    help="Show at most this many.",
)
@as_json_option
def operations(*, limit: int, as_json: bool) -> None:
    """List the replays and erasures by operators."""
    with open_context(as_json=as_json) as ctx:
        rows = [
            {
                "id": operation.id,
                "what": operation.kind,
                "which": operation.what,
                "started": isoformat(operation.started_at),
                "finished": operation.finished_at and isoformat(operation.finished_at),
                "entries": operation.entries,
            }
            for operation in ctx.outbox.entries.operations(limit)
        ]
        if as_json:
            ctx.output.lines(rows)
        elif rows:
            ctx.output.table([*rows[0]], [[*row.values()] for row in rows], max_cell=300)
        else:
            ctx.output.print("no operations")
