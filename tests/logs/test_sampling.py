from relay.logs.sampling import EVERY_SECONDS, Seldom


def test_what_happens_often_is_told_once_in_a_while_with_how_often() -> None:
    now = 0.0
    seldom = Seldom(lambda: now)
    at_once = [seldom.due("this") for _ in range(4)]
    other = seldom.due("that")
    now += EVERY_SECONDS
    later = [seldom.due("this"), seldom.due("this"), seldom.due("that")]

    assert at_once == [0, None, None, None]
    assert other == 0
    assert later == [3, None, 0]
