from relay.process.heartbeats import Heartbeats


def test_a_worker_that_makes_progress_is_never_silent() -> None:
    heartbeats = Heartbeats()
    for _ in range(100):
        heartbeats.beat("a")

        assert heartbeats.check() == 0


def test_the_slowest_worker_counts_until_its_next_beat() -> None:
    heartbeats = Heartbeats()
    heartbeats.beat("slow")
    silent = []
    for _ in range(4):
        heartbeats.beat("quick")
        silent.append(heartbeats.check())
    heartbeats.beat("slow")
    heartbeats.beat("quick")

    assert silent == [0, 1, 2, 3]
    assert heartbeats.check() == 0


def test_a_paused_worker_is_not_silent_and_starts_from_zero() -> None:
    heartbeats = Heartbeats()
    heartbeats.beat("a")
    heartbeats.check()
    heartbeats.check()
    heartbeats.pause("a")
    paused = [heartbeats.check() for _ in range(100)]
    heartbeats.beat("a")

    assert paused == [0] * 100
    assert [heartbeats.check(), heartbeats.check()] == [0, 1]


def test_nothing_is_silent_before_the_first_beat() -> None:
    assert Heartbeats().check() == 0
