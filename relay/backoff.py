"""Backoff: how long to wait before a destination that failed is tried again."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Final

FIRST: Final = timedelta(seconds=1)
LONGEST: Final = timedelta(minutes=5)

_SHORTEST_SECONDS: Final = 0.02
_MOST_DOUBLINGS: Final = 16


def full_jitter(bound: float) -> float:
    """Return a random wait up to the bound, in seconds: spreads many relays' probes the most."""
    return random.uniform(0, bound)  # noqa: S311 (no secret hangs on it)


def wait_seconds(
    failures: int,
    retry_after: timedelta | None,
    jitter: Callable[[float], float] = full_jitter,
) -> float:
    """Return the wait before the next probe: it doubles with each failure, with jitter.

    Args:
        failures: consecutive ones before this one.
        retry_after: what the destination asked for; it counts if it is longer.
        jitter: returns a wait, of so many seconds at most.
    """
    bound = FIRST.total_seconds() * 2.0 ** min(failures, _MOST_DOUBLINGS)
    wait = jitter(min(bound, LONGEST.total_seconds()))
    asked = retry_after.total_seconds() if retry_after else 0
    return max(wait, asked, _SHORTEST_SECONDS)
