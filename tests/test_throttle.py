from collections.abc import Callable, Sequence
from datetime import timedelta
from operator import attrgetter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.throttle import PROBE_LEASE, Permit, Throttle, full_jitter
from tests.harness.fakes import Clock

REQUESTS_PER_SECOND = 50


@pytest.fixture
def clock() -> Clock:
    """The pacer's clock."""
    return Clock()


class Pacer:
    """A pace by the clock, which waits as long as it may."""

    def __init__(
        self, clock: Clock, jitter: Callable[[float], float] = lambda bound: bound
    ) -> None:
        self.throttle = Throttle()
        self._clock = clock
        self._jitter = jitter

    @property
    def hold(self) -> str | None:
        """What Segment answered if forwarding is on hold."""
        return self.throttle.hold

    def acquire(self) -> Permit | float:
        """A turn, or how long there is none."""
        return self.throttle.acquire(self._clock.monotonic(), REQUESTS_PER_SECOND)

    def failed(self, permit: Permit, retry_after: timedelta | None = None) -> None:
        """Not now."""
        self.throttle.failed(permit, self._clock.monotonic(), "503", retry_after, self._jitter)

    def refused(self, permit: Permit, answer: str) -> None:
        """Our fault."""
        self.throttle.refused(permit, self._clock.monotonic(), answer)

    def succeeded(self, permit: Permit) -> None:
        """Taken."""
        self.throttle.succeeded(permit)

    def release(self, permit: Permit) -> None:
        """Not used."""
        self.throttle.release(permit)


@pytest.fixture
def pacer(clock: Clock) -> Pacer:
    """A pace by the clock."""
    return Pacer(clock)


def permit(pacer: Pacer) -> Permit:
    """A turn that is there for the taking."""
    permit = pacer.acquire()
    assert isinstance(permit, Permit)
    return permit


def wait(pacer: Pacer) -> float:
    """How long there is no turn."""
    seconds = pacer.acquire()
    assert isinstance(seconds, float)
    return seconds


def fail(pacer: Pacer, clock: Clock, times: int) -> None:
    """Let so many turns, one after the other, fail."""
    for _ in range(times):
        clock.sleep(3600)
        pacer.failed(permit(pacer))


def test_fifty_turns_may_come_at_once_and_no_more_until_a_second_has_passed(
    pacer: Pacer, clock: Clock
) -> None:
    for _ in range(25):
        permit(pacer)
    clock.sleep(0.4)
    for _ in range(25):
        permit(pacer)

    assert wait(pacer) == pytest.approx(0.6)
    clock.sleep(0.601)
    for _ in range(25):
        permit(pacer)
    assert wait(pacer) == pytest.approx(0.399)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (8, 128), (9, 256), (10, 300), (5000, 300)]
)
def test_each_failure_doubles_the_wait_up_to_five_minutes(
    pacer: Pacer, clock: Clock, failures: int, seconds: float
) -> None:
    fail(pacer, clock, failures)

    assert wait(pacer) == pytest.approx(seconds)


def test_the_wait_is_a_random_part_of_its_bound(clock: Clock) -> None:
    bounds = []

    def half(bound: float) -> float:
        bounds.append(bound)
        return bound / 2

    pacer = Pacer(clock, half)
    fail(pacer, clock, 3)

    assert bounds == [1, 2, 4]
    assert wait(pacer) == pytest.approx(2)
    assert len({full_jitter(4) for _ in range(9)}) > 1
    assert all(0 <= full_jitter(4) <= 4 for _ in range(999))


def test_even_without_jitter_probes_stay_apart(clock: Clock) -> None:
    pacer = Pacer(clock, lambda _bound: 0.0)
    fail(pacer, clock, 1)

    assert wait(pacer) == pytest.approx(0.02)


@pytest.mark.parametrize(("asked", "seconds"), [(0.5, 2), (2, 2), (90, 90), (3600, 3600)])
def test_what_segment_asks_for_counts_when_it_is_longer(
    pacer: Pacer, clock: Clock, asked: float, seconds: float
) -> None:
    fail(pacer, clock, 1)
    clock.sleep(1)
    pacer.failed(permit(pacer), timedelta(seconds=asked))

    assert wait(pacer) == pytest.approx(seconds)


def test_after_a_failure_a_single_probe_goes(pacer: Pacer, clock: Clock) -> None:
    fail(pacer, clock, 1)
    clock.sleep(1)
    permit(pacer)
    clock.sleep(59)

    assert wait(pacer) > 0


def test_a_probe_whose_process_has_died_is_given_up_after_a_minute(
    pacer: Pacer, clock: Clock
) -> None:
    fail(pacer, clock, 1)
    clock.sleep(1)
    permit(pacer)
    clock.sleep(60.001)

    assert permit(pacer)
    assert wait(pacer) > 0


def test_a_probe_given_up_and_then_given_back_lets_no_third_one_go(
    pacer: Pacer, clock: Clock
) -> None:
    fail(pacer, clock, 1)
    clock.sleep(1)
    lapsed = permit(pacer)
    clock.sleep(60.001)
    permit(pacer)
    pacer.release(lapsed)

    assert wait(pacer) > 0


def test_a_clock_put_back_does_not_stop_forwarding(pacer: Pacer, clock: Clock) -> None:
    clock.sleep(10**6)
    turns(pacer, 50)
    fail(pacer, clock, 12)
    clock.sleep(300)
    permit(pacer)
    earlier = Pacer(Clock())
    earlier.throttle = pacer.throttle

    assert permit(earlier)


def test_a_probe_that_succeeds_ends_the_trouble(pacer: Pacer, clock: Clock) -> None:
    fail(pacer, clock, 5)
    clock.sleep(3600)
    pacer.succeeded(permit(pacer))
    permit(pacer)
    permit(pacer)
    fail(pacer, clock, 1)

    assert wait(pacer) == pytest.approx(1)


def test_a_turn_given_back_lets_another_probe_go(pacer: Pacer, clock: Clock) -> None:
    fail(pacer, clock, 1)
    clock.sleep(1)
    pacer.release(permit(pacer))

    assert permit(pacer)
    clock.sleep(59)
    assert wait(pacer) > 0


def turns(pacer: Pacer, count: int) -> Sequence[Permit]:
    """So many turns, all under way at once."""
    return [permit(pacer) for _ in range(count)]


def test_failures_of_what_was_under_way_together_count_once(pacer: Pacer, clock: Clock) -> None:
    for late in turns(pacer, 4):
        pacer.failed(late, timedelta(seconds=3))

    assert wait(pacer) == pytest.approx(3)
    clock.sleep(3)
    pacer.failed(permit(pacer))
    assert wait(pacer) == pytest.approx(2)


def test_what_was_sent_before_the_trouble_tells_nothing_about_its_end(
    pacer: Pacer, clock: Clock
) -> None:
    failing, succeeding, refused, unsent = turns(pacer, 4)
    pacer.failed(failing)
    pacer.succeeded(succeeding)
    pacer.refused(refused, "401 Unauthorized")
    clock.sleep(1)
    permit(pacer)
    pacer.release(unsent)
    clock.sleep(59)

    assert pacer.hold is None
    assert wait(pacer) > 0


def test_on_hold_a_probe_goes_once_a_minute_until_one_succeeds(pacer: Pacer, clock: Clock) -> None:
    holds, waits = set(), []
    for _ in range(3):
        pacer.refused(permit(pacer), "401 Unauthorized")
        holds.add(pacer.hold)
        waits.append(wait(pacer))
        clock.sleep(60)
    pacer.succeeded(permit(pacer))

    assert holds == {"401 Unauthorized"}
    assert waits == pytest.approx([60, 60, 60])
    assert pacer.hold is None
    assert turns(pacer, 4)


def test_a_hold_names_the_latest_answer(pacer: Pacer, clock: Clock) -> None:
    pacer.refused(permit(pacer), "401 Unauthorized")
    clock.sleep(60)
    pacer.refused(permit(pacer), "302 redirect")

    assert pacer.hold == "302 redirect"


class _Requests(RuleBasedStateMachine):
    """Requests that end in any way, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.pacer = Pacer(self.clock)
        self.taken_at: list[float] = []
        self.probing = False
        self.changes = 0
        self.under_way: list[tuple[Permit, int]] = []

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.25, 1.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @rule(times=st.integers(1, 80))
    def acquire(self, times: int) -> None:
        for _ in range(times):
            taken = self.pacer.acquire()
            if isinstance(taken, Permit):
                self.taken_at.append(self.clock.monotonic())
                self.under_way.append((taken, self.changes))
            else:
                assert taken > 0
                self.clock.sleep(taken)

    @precondition(attrgetter("under_way"))
    @rule(which=st.integers(min_value=0), asked=st.none() | st.integers(0, 3600))
    def fail(self, which: int, asked: int | None) -> None:
        ended, current = self._end(which)
        self.pacer.failed(ended, None if asked is None else timedelta(seconds=asked))
        self._change(probing=True, really=current)

    @precondition(attrgetter("under_way"))
    @rule(which=st.integers(min_value=0))
    def refuse(self, which: int) -> None:
        ended, current = self._end(which)
        self.pacer.refused(ended, "401 Unauthorized")
        self._change(probing=True, really=current)

    @precondition(attrgetter("under_way"))
    @rule(which=st.integers(min_value=0))
    def succeed(self, which: int) -> None:
        ended, current = self._end(which)
        self.pacer.succeeded(ended)
        self._change(probing=False, really=current and self.probing)

    @precondition(attrgetter("under_way"))
    @rule(which=st.integers(min_value=0))
    def release(self, which: int) -> None:
        ended, _ = self._end(which)
        self.pacer.release(ended)
        self.taken_at.remove(ended.taken_at)

    def _end(self, which: int) -> tuple[Permit, bool]:
        """A turn that ends, and whether nothing has changed since it was given."""
        ended, changes = self.under_way.pop(which % len(self.under_way))
        return ended, changes == self.changes

    def _change(self, *, probing: bool, really: bool) -> None:
        if really:
            self.probing = probing
            self.changes += 1

    @invariant()
    def no_second_has_more_than_fifty_turns(self) -> None:
        first_and_51st = zip(self.taken_at, self.taken_at[50:], strict=False)

        assert all(last - first >= 1 - 1e-6 for first, last in first_and_51st)

    @invariant()
    def in_trouble_a_single_probe_is_under_way(self) -> None:
        probes = [
            permit
            for permit, changes in self.under_way
            if changes == self.changes
            and permit.taken_at + PROBE_LEASE.total_seconds() > self.clock.monotonic()
        ]

        assert len(probes) <= 1 or not self.probing

    @invariant()
    def only_trouble_is_a_hold(self) -> None:
        assert self.probing or self.pacer.hold is None

    def teardown(self) -> None:
        while self.under_way:
            self.release(0)
        self.clock.sleep(3600)

        assert isinstance(self.pacer.acquire(), Permit)


TestRequests = _Requests.TestCase
TestRequests.settings = settings(deadline=None)
