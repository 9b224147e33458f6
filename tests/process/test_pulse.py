from relay.process.pulse import Pulse


def test_who_gets_on_is_never_silent() -> None:
    pulse = Pulse()
    for _ in range(100):
        pulse.step("a")

        assert pulse.look() == 0


def test_silence_is_that_of_the_slowest_and_ends_with_its_next_step() -> None:
    pulse = Pulse()
    pulse.step("slow")
    silent = []
    for _ in range(4):
        pulse.step("quick")
        silent.append(pulse.look())
    pulse.step("slow")
    pulse.step("quick")

    assert silent == [0, 1, 2, 3]
    assert pulse.look() == 0


def test_who_rests_is_not_silent_and_begins_from_nothing() -> None:
    pulse = Pulse()
    pulse.step("a")
    pulse.look()
    pulse.look()
    pulse.rest("a")
    resting = [pulse.look() for _ in range(100)]
    pulse.step("a")

    assert resting == [0] * 100
    assert [pulse.look(), pulse.look()] == [0, 1]


def test_nobody_is_silent_before_the_first_step() -> None:
    assert Pulse().look() == 0
