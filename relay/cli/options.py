"""Defines the options that several commands share, like filters for entries and `--json`."""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click
from msgspec import Struct

from relay.events import CallType, Collection, DeadReason
from relay.operations.search import Criteria
from relay.outbox.entries import State

_Command = TypeVar("_Command", bound=Callable[..., Any])

_LARGEST_ID: Final = 2**63 - 1
_AGO: Final = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

_SINGULAR: Final = {"ids": "id", "states": "state"}
_PRIVATE: Final = ("email_id", "user_id", "address")


class When(Struct, frozen=True):
    """A point in time as the operator gave it: relative to now, or fixed."""

    text: str
    ago: timedelta | None = None
    fixed: datetime | None = None

    def seen_from(self, now: datetime) -> datetime:
        """Return the point in time; if it is relative, relative to `now`."""
        return self.fixed or now - (self.ago or timedelta(0))


class WhenType(click.ParamType[When]):
    """A type of option: how long ago (`30m`, `2h`, `7d`), or an ISO 8601 time, by default UTC."""

    name = "when"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> When:
        """Return the point in time; fail if the text names none."""
        text = value.strip()
        try:
            if ago := _AGO.fullmatch(text):
                when = When(text, ago=timedelta(**{_UNITS[ago[2]]: int(ago[1])}))
                when.seen_from(datetime.now(UTC))
                return when
            time = datetime.fromisoformat(text)
            return When(text, fixed=time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC))
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither like 30m, 2h, 7d nor like 2026-03-01T12:00", param, ctx
            )


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _choice(values: Iterable[str]) -> click.Choice[str]:
    return click.Choice([str(value) for value in values], case_sensitive=False)


def _stripped(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Return the value without surrounding blanks; refuse a blank value.

    A blank value is most likely an unset variable of the shell. Without this check it would be no
    filter at all.
    """
    if value is not None and not value.strip():
        raise click.BadParameter("it is blank")
    return value and value.strip()


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one per line.")
reveal_option = click.option("--reveal", is_flag=True, help="Show email addresses.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be done; change nothing."
)
person_options = _options(
    click.option(
        "--user-id",
        callback=_stripped,
        help="User id of the recipient of an email, or of a person that a call names.",
    ),
    click.option(
        "--address",
        callback=_stripped,
        help="Email address of the recipient or of the person, or its SHA-256 in hex.",
    ),
)
filter_options = _options(
    click.option(
        "--id",
        "ids",
        multiple=True,
        type=click.IntRange(0, _LARGEST_ID),
        metavar="ID",
        help="Entry id (repeatable).",
    ),
    click.option(
        "--state", "states", multiple=True, type=_choice(State), help="Entry state (repeatable)."
    ),
    click.option("--source", callback=_stripped, help="Name of the source."),
    click.option("--destination", callback=_stripped, help="Name of the destination."),
    click.option(
        "--collection",
        type=_choice((*Collection, *CallType)),
        help="Collection of an email event, or type of a call.",
    ),
    click.option("--reason", type=_choice(DeadReason), help="Reason of a dead letter."),
    click.option(
        "--since",
        type=WhenType(),
        help="Received at this time or later: 30m, 2h, 7d (ago), or 2026-03-01T12:00 (UTC).",
    ),
    click.option("--until", type=WhenType(), help="Received before this time."),
    click.option("--message-id", callback=_stripped, help="messageId that relay gave it."),
    click.option("--email-id", callback=_stripped, help="The source's id of the email."),
    person_options,
)


def criteria_of(values: Mapping[str, Any], *, now: datetime | None = None) -> Criteria:
    """Return what the filter options ask for; relative times are relative to `now`."""
    now = now or datetime.now(UTC)
    times = {name: values[name] and values[name].seen_from(now) for name in ("since", "until")}
    return Criteria(**{**values, **times, "states": tuple(map(State, values["states"]))})


def criteria_text(values: Mapping[str, Any], fingerprint: Callable[[str], str]) -> str:
    """Return the filter options as text for the record of operations.

    Ids and addresses of persons appear as fingerprints. The same filters give the same text, in
    whatever order they were given.
    """
    words = []
    for option in Criteria.__struct_fields__:
        name, value = _SINGULAR.get(option, option), values.get(option)
        for single in value if isinstance(value, tuple) else (value,):
            if name in _PRIVATE and single:
                words.append(f"{name}=#{fingerprint(f'{name} {single.lower()}')}")
            elif single is not None:
                words.append(f"{name}={single.text if isinstance(single, When) else single}")
    return " ".join(words)
