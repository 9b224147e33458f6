from relay.logs.sampling import EVERY_SECONDS, LogSampler


def test_of_frequent_events_one_a_minute_is_logged_with_how_many_were_not() -> None:
    now = 0.0
    sampler = LogSampler(clock=lambda: now)
    at_once = [sampler.sample("this") for _ in range(4)]
    other = sampler.sample("that")
    now += EVERY_SECONDS
    later = [sampler.sample("this"), sampler.sample("this"), sampler.sample("that")]

    assert at_once == [0, None, None, None]
    assert other == 0
    assert later == [3, None, 0]


def test_the_interval_can_be_chosen() -> None:
    now = 0.0
    sampler = LogSampler(every_seconds=10, clock=lambda: now)
    first = sampler.sample("this")
    now += 9
    too_soon = sampler.sample("this")
    now += 1
    later = sampler.sample("this")

    assert (first, too_soon, later) == (0, None, 1)
