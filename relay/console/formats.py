"""Writes times, numbers and charts for pages."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from markupsafe import Markup, escape

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_CHART_HEIGHT: Final = 36


def at(time: datetime | None) -> Markup:
    """Return the time to the second, with its milliseconds in a tooltip; nothing for None."""
    if time is None:
        return Markup("")
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(
        time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        f"{time:%d %b %H:%M:%S}",
    )


def coded(text: str) -> Markup:
    """Return the text with what stands between backticks as code."""
    code = Markup("<code>{}</code>")
    return Markup("").join(
        code.format(part) if number % 2 else escape(part)
        for number, part in enumerate(text.split("`"))
    )


def span(length: timedelta) -> str:
    """Return the length of time in its largest unit, or its two largest."""
    seconds = max(0, int(length.total_seconds()))
    parts = []
    for size, unit in _UNITS:
        if seconds >= size:
            parts.append(f"{seconds // size} {unit}")
            seconds %= size
    return " ".join(parts[:2]) or "0 s"


def number(count: int) -> str:
    """Return the number with its thousands separated."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def rate(per_second: float | None) -> str:
    """Return the rate per second, or per minute if it is less than one; an ellipsis for None."""
    if per_second is None:
        return "\N{HORIZONTAL ELLIPSIS}"
    if per_second >= 1:
        return f"{number(round(per_second))}/s"
    return f"{per_second * 60:.0f}/min"


def bars(counts: tuple[int, ...]) -> list[Mapping[str, int]]:
    """Return the places and heights of a chart's bars; the highest is 36 high, and 0 is no bar."""
    highest = max(counts, default=0) or 1
    return [
        {"x": place, "height": max(2, round(_CHART_HEIGHT * count / highest)) if count else 0}
        for place, count in enumerate(counts)
    ]
