"""The options by which entries are found, and those that several commands have."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click

from relay.cli.output import Moment
from relay.events import Collection, DeadReason
from relay.operations.search import Criteria
from relay.outbox.entries import State

_Command = TypeVar("_Command", bound=Callable[..., Any])

_LARGEST_ID: Final = 2**63 - 1

_SINGULAR: Final = {"ids": "id", "states": "state"}
_PRIVATE: Final = ("email_id", "user_id", "address")


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _choice(values: Iterable[str]) -> click.Choice[str]:
    return click.Choice([str(value) for value in values], case_sensitive=False)


def _said(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """What was said, without blanks around it: no key has any."""
    if value is not None and not value.strip():
        # A variable of the shell that is not set must not mean everybody.
        raise click.BadParameter("it is blank")
    return value and value.strip()


as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
reveal_option = click.option("--reveal", is_flag=True, help="Show addresses.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Count and show; change nothing.")
person = _options(
    click.option("--user-id", callback=_said, help="Of the recipient."),
    click.option("--address", callback=_said, help="Of the recipient; or its SHA-256 in hex."),
)
filters = _options(
    click.option(
        "--id", "ids", multiple=True, type=click.IntRange(0, _LARGEST_ID), help="Of it; several."
    ),
    click.option(
        "--state", "states", multiple=True, type=_choice(State), help="Of these; several."
    ),
    click.option("--source", callback=_said, help="Whose webhook it was."),
    click.option("--collection", type=_choice(Collection), help="Which of the seven."),
    click.option("--reason", type=_choice(DeadReason), help="Why it is a dead letter."),
    click.option("--since", type=Moment(), help="Received since: 30m, 2h, 7d, 2026-03-01T12:00."),
    click.option("--until", type=Moment(), help="Received before."),
    click.option("--message-id", callback=_said, help="Its messageId at Segment."),
    click.option("--email-id", callback=_said, help="The source's id of the email."),
    person,
)


def criteria_of(given: Mapping[str, Any], *, now: datetime | None = None) -> Criteria:
    """What the options of `filters` say, times ago being seen from `now`."""
    now = now or datetime.now(UTC)
    moments = {name: given[name] and given[name].seen_from(now) for name in ("since", "until")}
    return Criteria(**{**given, **moments, "states": tuple(map(State, given["states"]))})


def described(given: Mapping[str, Any], fingerprint: Callable[[str], str]) -> str:
    """The same for the record of operations, which tells nothing of whom they name."""
    words = []
    for option in Criteria.__struct_fields__:  # not in the order in which they were given
        name, value = _SINGULAR.get(option, option), given.get(option)
        for single in value if isinstance(value, tuple) else (value,):
            if name in _PRIVATE and single:
                words.append(f"{name}=#{fingerprint(f'{name} {single.lower()}')}")
            elif single is not None:
                words.append(f"{name}={getattr(single, 'said', single)}")
    return " ".join(words)
