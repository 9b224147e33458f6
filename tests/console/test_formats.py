from datetime import timedelta

import pytest

from relay.console.formats import bars, coded, number, rate, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3_599, "59 min 59 s"),
        (3_605, "1 h 5 s"),
        (90_061, "1 d 1 h"),
    ],
)
def test_a_length_of_time_is_written_in_two_units_at_most(seconds: float, text: str) -> None:
    assert span(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(None, "…"), (0, "0/min"), (0.5, "30/min"), (1, "1/s"), (1_234.6, "1\u202f235/s")],
)
def test_a_rate_is_written_per_second_or_per_minute(per_second: float | None, text: str) -> None:
    assert rate(per_second) == text


def test_thousands_are_set_apart() -> None:
    assert number(1_234_567) == "1\u202f234\u202f567"


def test_bars_fill_the_chart_and_none_vanishes() -> None:
    assert [bar["height"] for bar in bars((0, 1, 500, 1_000))] == [0, 2, 18, 36]
    assert [bar["x"] for bar in bars((5, 5))] == [0, 1]
    assert [bar["height"] for bar in bars((0, 0))] == [0, 0]


def test_what_stands_between_backticks_is_shown_as_code() -> None:
    assert coded("use `relay <erase>`, & go") == "use <code>relay &lt;erase&gt;</code>, &amp; go"
    assert coded("plain") == "plain"
