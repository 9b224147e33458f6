from collections.abc import Callable, Sequence
from datetime import timedelta
from operator import attrgetter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.backoff import full_jitter
from relay.throttle import PROBE_LEASE, Permit, Throttle
from tests.harness.fakes import Clock

REQUESTS_PER_SECOND = 50


@pytest.fixture
def clock() -> Clock:
    """The taker's clock."""
    return Clock()


class PermitTaker:
    """A throttle under a clock, whose waits are as long as they may be."""

    def __init__(
        self, clock: Clock, jitter: Callable[[float], float] = lambda bound: bound
    ) -> None:
        self.throttle = Throttle()
        self._clock = clock
        self._jitter = jitter

    @property
    def hold(self) -> str | None:
        """The answer that put forwarding on hold."""
        return self.throttle.hold

    def acquire(self) -> Permit | float:
        """Return a permit, or after how long to ask again."""
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
def taker(clock: Clock) -> PermitTaker:
    """A throttle under the clock."""
    return PermitTaker(clock)


def permit(taker: PermitTaker) -> Permit:
    """A turn that is there for the taking."""
    permit = taker.acquire()
    assert isinstance(permit, Permit)
    return permit


def wait(taker: PermitTaker) -> float:
    """How long there is no turn."""
    seconds = taker.acquire()
    assert isinstance(seconds, float)
    return seconds


def fail(taker: PermitTaker, clock: Clock, times: int) -> None:
    """Let so many turns, one after the other, fail."""
    for _ in range(times):
        clock.sleep(3600)
        taker.failed(permit(taker))


def test_fifty_permits_may_be_taken_at_once_and_the_next_after_a_second(
    taker: PermitTaker, clock: Clock
) -> None:
    for _ in range(25):
        permit(taker)
    clock.sleep(0.4)
    for _ in range(25):
        permit(taker)

    assert wait(taker) == pytest.approx(0.6)
    clock.sleep(0.601)
    for _ in range(25):
        permit(taker)
    assert wait(taker) == pytest.approx(0.399)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (8, 128), (9, 256), (10, 300), (5000, 300)]
)
def test_each_failure_doubles_the_wait_up_to_five_minutes(
    taker: PermitTaker, clock: Clock, failures: int, seconds: float
) -> None:
    fail(taker, clock, failures)

    assert wait(taker) == pytest.approx(seconds)


def test_the_wait_is_a_random_part_of_its_bound(clock: Clock) -> None:
    bounds = []

    def half(bound: float) -> float:
        bounds.append(bound)
        return bound / 2

    taker = PermitTaker(clock, half)
    fail(taker, clock, 3)

    assert bounds == [1, 2, 4]
    assert wait(taker) == pytest.approx(2)
    assert len({full_jitter(4) for _ in range(9)}) > 1
    assert all(0 <= full_jitter(4) <= 4 for _ in range(999))


def test_even_without_jitter_probes_stay_apart(clock: Clock) -> None:
    taker = PermitTaker(clock, lambda _bound: 0.0)
    fail(taker, clock, 1)

    assert wait(taker) == pytest.approx(0.02)


@pytest.mark.parametrize(("asked", "seconds"), [(0.5, 2), (2, 2), (90, 90), (3600, 3600)])
def test_retry_after_counts_when_it_is_longer_than_the_backoff(
    taker: PermitTaker, clock: Clock, asked: float, seconds: float
) -> None:
    fail(taker, clock, 1)
    clock.sleep(1)
    taker.failed(permit(taker), timedelta(seconds=asked))

    assert wait(taker) == pytest.approx(seconds)


def test_after_a_failure_a_single_probe_goes(taker: PermitTaker, clock: Clock) -> None:
    fail(taker, clock, 1)
    clock.sleep(1)
    permit(taker)
    clock.sleep(59)

    assert wait(taker) > 0


def test_a_probe_whose_process_has_died_is_given_up_after_a_minute(
    taker: PermitTaker, clock: Clock
) -> None:
    fail(taker, clock, 1)
    clock.sleep(1)
    permit(taker)
    clock.sleep(60.001)

    assert permit(taker)
    assert wait(taker) > 0


def test_releasing_an_expired_probe_lets_no_third_probe_go(
    taker: PermitTaker, clock: Clock
) -> None:
    fail(taker, clock, 1)
    clock.sleep(1)
    lapsed = permit(taker)
    clock.sleep(60.001)
    permit(taker)
    taker.release(lapsed)

    assert wait(taker) > 0


def test_a_clock_put_back_does_not_stop_forwarding(taker: PermitTaker, clock: Clock) -> None:
    clock.sleep(10**6)
    turns(taker, 50)
    fail(taker, clock, 12)
    clock.sleep(300)
    permit(taker)
    earlier = PermitTaker(Clock())
    earlier.throttle = taker.throttle

    assert permit(earlier)


def test_a_successful_probe_ends_probing(taker: PermitTaker, clock: Clock) -> None:
    fail(taker, clock, 5)
    clock.sleep(3600)
    taker.succeeded(permit(taker))
    permit(taker)
    permit(taker)
    fail(taker, clock, 1)

    assert wait(taker) == pytest.approx(1)


def test_a_released_permit_lets_another_probe_go(taker: PermitTaker, clock: Clock) -> None:
    fail(taker, clock, 1)
    clock.sleep(1)
    taker.release(permit(taker))

    assert permit(taker)
    clock.sleep(59)
    assert wait(taker) > 0


def turns(taker: PermitTaker, count: int) -> Sequence[Permit]:
    """So many turns, all under way at once."""
    return [permit(taker) for _ in range(count)]


def test_requests_that_fail_together_count_as_one_failure(taker: PermitTaker, clock: Clock) -> None:
    for late in turns(taker, 4):
        taker.failed(late, timedelta(seconds=3))

    assert wait(taker) == pytest.approx(3)
    clock.sleep(3)
    taker.failed(permit(taker))
    assert wait(taker) == pytest.approx(2)


def test_a_success_from_before_the_failure_does_not_end_probing(
    taker: PermitTaker, clock: Clock
) -> None:
    failing, succeeding, refused, unsent = turns(taker, 4)
    taker.failed(failing)
    taker.succeeded(succeeding)
    taker.refused(refused, "401 Unauthorized")
    clock.sleep(1)
    permit(taker)
    taker.release(unsent)
    clock.sleep(59)

    assert taker.hold is None
    assert wait(taker) > 0


def test_on_hold_a_probe_goes_once_a_minute(taker: PermitTaker, clock: Clock) -> None:
    holds, waits = set(), []
    for _ in range(3):
        taker.refused(permit(taker), "401 Unauthorized")
        holds.add(taker.hold)
        waits.append(wait(taker))
        clock.sleep(60)
    taker.succeeded(permit(taker))

    assert holds == {"401 Unauthorized"}
    assert waits == pytest.approx([60, 60, 60])
    assert taker.hold is None
    assert turns(taker, 4)


def test_a_hold_names_the_latest_answer(taker: PermitTaker, clock: Clock) -> None:
    taker.refused(permit(taker), "401 Unauthorized")
    clock.sleep(60)
    taker.refused(permit(taker), "302 redirect")

    assert taker.hold == "302 redirect"


class _Requests(RuleBasedStateMachine):
    """Requests that end in any way, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.taker = PermitTaker(self.clock)
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
            taken = self.taker.acquire()
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
        self.taker.failed(ended, None if asked is None else timedelta(seconds=asked))
        self._change(probing=True, really=current)

    @precondition(attrgetter("under_way"))
    @rule(which=st.integers(min_value=0))
    def refuse(self, which: int) -> None:
        ended, current = self._end(which)
        self.taker.refused(ended, "401 Unauthorized")
        self._change(probing=True, really=current)

    @precondition(attrgetter("under_way"))
    @rule(which=st.integers(min_value=0))
    def succeed(self, which: int) -> None:
        ended, current = self._end(which)
        self.taker.succeeded(ended)
        self._change(probing=False, really=current and self.probing)

    @precondition(attrgetter("under_way"))
    @rule(which=st.integers(min_value=0))
    def release(self, which: int) -> None:
        ended, _ = self._end(which)
        self.taker.release(ended)
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
        assert self.probing or self.taker.hold is None

    def teardown(self) -> None:
        while self.under_way:
            self.release(0)
        self.clock.sleep(3600)

        assert isinstance(self.taker.acquire(), Permit)


TestRequests = _Requests.TestCase
TestRequests.settings = settings(deadline=None)
