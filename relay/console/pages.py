"""How pages are rendered: templates, and how they write times, numbers and addresses."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from relay import __version__
from relay.addresses import mask
from relay.events import REMEDIES, Collection, DeadReason
from relay.outbox.entries import Clock, State

HOME: Final = "/console"
CONTENT_TYPE: Final = "text/html; charset=utf-8"

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_HIGHEST: Final = 36


class Pages:
    """Renders templates, everything in them escaped.

    Args:
        clock: the time of day, seen from which others are so long ago.
        sources: the names of all.
        has_sessions: whether there is something to sign out of.
    """

    def __init__(self, clock: Clock, sources: Sequence[str], *, has_sessions: bool) -> None:
        self._clock = clock
        self._templates = Environment(
            loader=PackageLoader("relay.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "at": at,
            "ago": self._ago,
            "number": number,
            "rate": rate,
            "bars": bars,
        }
        self._templates.globals |= {
            "version": __version__,
            "home": HOME,
            "has_sessions": has_sessions,
            "collections": [*Collection],
            "states": [*State],
            "sources": sources,
            "reasons": [*DeadReason],
            "remedies": REMEDIES,
        }

    def render(self, template: str, *, reveal: bool, **values: Any) -> str:  # noqa: ANN401 (whatever it shows)
        """The page, with addresses in it only if they are to be revealed."""

        def url(path: str, **query: object) -> str:
            """Where that is, revealed if this page is."""
            given = {name: value for name, value in query.items() if value not in {None, ""}}
            if reveal:
                given.setdefault("reveal", 1)
            return f"{HOME}{path}" + (f"?{urlencode(given)}" if given else "")

        def shown(value: object) -> str:
            said = "" if value is None else str(value)
            return said if reveal else mask(said)

        return self._templates.get_template(template).render(
            reveal=reveal, url=url, shown=shown, **values
        )

    def _ago(self, moment: datetime | None) -> str:
        return "never" if moment is None else f"{span(self._clock() - moment)} ago"


def at(moment: datetime | None) -> Markup:
    """The moment, to the second, and precisely for who points at it."""
    if moment is None:
        return Markup("")
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(
        moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        f"{moment:%d %b %H:%M:%S}",
    )


def span(length: timedelta) -> str:
    """So long, in one unit or two."""
    seconds = max(0, int(length.total_seconds()))
    parts = []
    for size, unit in _UNITS:
        if seconds >= size:
            parts.append(f"{seconds // size} {unit}")
            seconds %= size
    return " ".join(parts[:2]) or "0 s"


def number(count: int) -> str:
    """The number with its thousands apart."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def rate(per_second: float | None) -> str:
    """So many a second, or a minute where they are few."""
    if per_second is None:
        return "\N{HORIZONTAL ELLIPSIS}"
    if per_second >= 1:
        return f"{number(round(per_second))}/s"
    return f"{per_second * 60:.0f}/min"


def bars(counts: tuple[int, ...], highest: int | None = None) -> list[Mapping[str, int]]:
    """Where the bars of a chart stand and how high they are, of 36 at the most."""
    most = highest or max(counts, default=0) or 1
    return [
        {"x": place, "height": max(2, round(_HIGHEST * count / most)) if count else 0}
        for place, count in enumerate(counts)
    ]
