import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from relay.forwarder.report import Report, read_reports, reporting


def test_reports_are_told_apart_and_one_that_is_cut_off_is_dropped() -> None:
    pieces = [b"one 1\n", b"# EOF\n", b"one 2\n", b"two 1\n", b"# EOF\n", b"one 3\n"]

    assert [*read_reports(pieces)] == [Report(b"one 1\n"), Report(b"one 2\ntwo 1\n")]


def test_a_report_comes_whole_at_once_and_once_more_at_the_end() -> None:
    reading, writing = os.pipe()
    count = 0
    with os.fdopen(reading, "rb") as output, ThreadPoolExecutor() as threads:
        reports = read_reports(output)
        with reporting(lambda: b"# HELP\ncount %d\n" % count, writing):
            first = threads.submit(next, reports).result(20)
            count = 7
        os.write(writing, b"count 8\n")  # cut off
        os.close(writing)
        *_, last = threads.submit(list, reports).result(20)

    assert first == Report(b"# HELP\ncount 0\n")
    assert last == Report(b"# HELP\ncount 7\n")


def test_a_problem_of_several_lines_is_reported_beside_the_metrics() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as output:
        with reporting(lambda: b"count 1\n", writing, problem=lambda: "the outbox\nis away"):
            pass
        os.close(writing)
        *_, last = read_reports(output)

    assert last == Report(b"count 1\n", "the outbox is away")


@pytest.mark.parametrize("hung_up", [True, False])
def test_reporting_ends_though_nobody_reads(*, hung_up: bool) -> None:
    reading, writing = os.pipe()
    if hung_up:
        os.close(reading)
    with reporting(lambda: b"x" * 2**20, writing):
        pass

    if not hung_up:
        os.close(reading)
    for thread in threading.enumerate():
        if thread.name == "report":
            thread.join(20)
    os.close(writing)
