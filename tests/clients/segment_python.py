"""Makes the calls of examples with segment-analytics-python, as Segment's page about Vero has them.

Usage: python segment_python.py HOST WRITE_KEY EXAMPLE...

Prints how many calls there were, and the errors. An example begins when the one before it has been
sent.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence

from segment import analytics

_BURST = 300


def _identify() -> None:
    analytics.identify("example@example.com", {"email": "example@example.com", "plan": "free"})


def _alias() -> None:
    analytics.alias("example@example.com", "8765309")


def _tags() -> None:
    tags = {"id": "235FAG", "action": "add", "values": ["warriors", "giants", "niners"]}
    analytics.identify(
        "324LKJF", {"email": "example@example.com"}, integrations={"Vero": {"tags": tags}}
    )


def _group() -> None:
    analytics.group("324LKJF", "acme-1", {"name": "Acme", "sizes": [7, 2.5, None]})


def _page() -> None:
    properties = {"url": "https://shop.example.com/pricing", "title": "Pricing"}
    analytics.page("324LKJF", name="Pricing", properties=properties)


def _screen() -> None:
    analytics.screen("324LKJF", name="Settings")


def _unsubscribe() -> None:
    analytics.track("12345", "Unsubscribe", {"id": "12345"})


def _burst() -> None:
    for number in range(_BURST):
        analytics.track(f"1234{number % 10}", "Ordered", {"number": number})


_EXAMPLES: Mapping[str, Callable[[], None]] = {
    "identify": _identify,
    "alias": _alias,
    "tags": _tags,
    "group": _group,
    "page": _page,
    "screen": _screen,
    "unsubscribe": _unsubscribe,
    "burst": _burst,
}


def _main(host: str, write_key: str, *names: str) -> None:
    errors: list[str] = []

    def on_error(error: Exception, calls: Sequence[object]) -> None:
        errors.extend(str(error) for _ in calls)

    analytics.write_key, analytics.host, analytics.on_error = write_key, host, on_error
    for name in names:
        _EXAMPLES[name]()
        analytics.flush()
    analytics.shutdown()
    calls = sum(_BURST if name == "burst" else 1 for name in names)
    sys.stdout.write(json.dumps({"calls": calls, "errors": errors}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
