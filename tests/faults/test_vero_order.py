"""What concerns one person reaches Vero in the order of the calls, whatever fails meanwhile."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from random import Random

import pytest

from tests.faults.calling import Crowd, environ_for
from tests.faults.leases import end_leases
from tests.faults.segment import Road
from tests.harness.fakes import Answer
from tests.harness.order import Ledger, well
from tests.harness.processes import ForwarderProcess, RelayProcess, closed_port, within
from tests.harness.routes import NOBODY
from tests.harness.stores import PostgresStore, Store, pending
from tests.harness.vero import Fault, Judge, Request, VeroServer, people_in, says

Times = Callable[[int, int], int]

CALLS = 40
"""Answered in each round, at least."""
PROGRAMS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_600)]


@pytest.fixture
def seed() -> int:
    return time.time_ns()


@pytest.fixture
def rng(seed: int) -> Random:
    return Random(seed)  # noqa: S311 (no secret hangs on it)


@pytest.fixture
def vero() -> Iterator[VeroServer]:
    with VeroServer() as vero:
        vero.judge = well
        yield vero


def relay(store: Store, host: str, port: int = 0, *options: str) -> RelayProcess:
    return RelayProcess(store, NOBODY, port=port, options=options, **environ_for(host))


def too_many(rng: Random) -> Fault:
    """Return an answer that there are too many requests."""
    return Fault(says(429, "Slow down", **{"Retry-After": rng.choice("01")}))


def ambiguous(rng: Random) -> Fault:
    """Return an answer, or none, that does not say whether Vero has taken the request."""
    answers = [Answer(0), Answer(502), says(500, "Oops"), says(503, "Later")]
    return Fault(rng.choice(answers), taken=rng.random() < 0.5)


def failing(rng: Random, share: float, fault: Callable[[Random], Fault] = ambiguous) -> Judge:
    """Return a judge by which a share of the requests fails, and answers take up to 50 ms."""

    def judge(request: Request) -> Fault:
        if (refused := well(request)) is not None:
            return refused
        return fault(rng) if rng.random() < share else Fault(delay=rng.uniform(0, 0.05))

    return judge


def slowly(rng: Random) -> Judge:
    """Return a judge by which nothing fails, and requests are under way for a while."""
    return failing(rng, 0)


def failing_at_one(rng: Random, shop: str, fault: Fault) -> Judge:
    """Return a judge by which all requests about one customer of the shop fail."""
    failing_at: set[str] = set()

    def judge(request: Request) -> Fault | None:
        people = {*people_in(request.body)}
        if not failing_at:
            failing_at.update(name for name in people if name.startswith(shop))
        return fault if people & failing_at else slowly(rng)(request)

    return judge


def broken(ledger: Ledger, vero: VeroServer, store: Store, seed: int) -> str:
    """Return what is broken once all is sent; nothing if nothing is."""
    drained = within(150, lambda: not pending(store))
    problems = ledger.broken_promises(vero, store)
    if drained and not problems:
        return ""
    done = f"seed {seed}: {len(ledger.calls)} calls, {len(vero.requests)} requests"
    return "\n".join([f"{done}, {pending(store)} pending; {len(problems)} broken:", *problems[:10]])


@pytest.mark.parametrize("ending", ["killed", "stopped"])
def test_whenever_relay_ends_the_order_is_kept(
    ending: str, store: Store, vero: VeroServer, rng: Random, seed: int, times: Times
) -> None:
    """A relay that is stopped sends nothing again: its endings excuse no repeats."""
    vero.judge = slowly(rng)
    ledger, port = Ledger(), closed_port()
    crowd = Crowd([port], ledger, rng, PROGRAMS)
    with ExitStack() as last:
        with crowd.running():
            for _ in range(times(2, 20)):
                with relay(store, vero.url, port) as running:
                    crowd.await_calls(rng.randrange(1, CALLS))
                    if ending == "killed":
                        with ledger.killing():
                            running.kill()
                        end_leases(store)
                    else:
                        running.end()
            last.enter_context(relay(store, vero.url, port))
            crowd.await_calls(CALLS)

        assert broken(ledger, vero, store, seed) == ""


def test_whenever_the_forwarder_is_killed_the_order_is_kept(
    sqlite_store: Store, vero: VeroServer, rng: Random, seed: int, times: Times
) -> None:
    vero.judge = slowly(rng)
    ledger = Ledger()
    with relay(sqlite_store, vero.url) as running:
        crowd = Crowd([running.port], ledger, rng, PROGRAMS)
        with crowd.running():
            for _ in range(times(2, 20)):
                crowd.await_calls(rng.randrange(1, CALLS))
                with ledger.killing():
                    running.kill_forwarder()
            crowd.await_calls(CALLS)

        assert broken(ledger, vero, sqlite_store, seed) == ""


@pytest.mark.parametrize("fault", [too_many, ambiguous])
def test_answers_that_settle_nothing_leave_the_order_as_it_is(
    fault: Callable[[Random], Fault],
    store: Store,
    vero: VeroServer,
    rng: Random,
    seed: int,
    times: Times,
) -> None:
    ledger = Ledger()
    with relay(store, vero.url) as running:
        crowd = Crowd([running.port], ledger, rng, PROGRAMS)
        with crowd.running():
            for _ in range(times(2, 20)):
                vero.judge = failing(rng, 0.1, fault)
                crowd.await_calls(2 * CALLS)
                vero.judge = slowly(rng)
                crowd.await_calls(CALLS)

        assert broken(ledger, vero, store, seed) == ""
    assert not all(request.settled for request in vero.requests)


def test_an_outage_of_vero_leaves_the_order_as_it_is(
    store: Store, vero: VeroServer, rng: Random, seed: int, times: Times
) -> None:
    """It begins with requests whose answers are lost; then nothing listens."""
    ledger = Ledger()
    with closing(Road(vero)) as road, relay(store, road.host()) as running:
        crowd = Crowd([running.port], ledger, rng, PROGRAMS)
        with crowd.running():
            for _ in range(times(2, 20)):
                vero.judge = slowly(rng)
                crowd.await_calls(CALLS)
                vero.judge = failing(rng, 1)
                crowd.await_calls(CALLS // 2)
                road.close()
                crowd.await_calls(CALLS)
                road.open()
            vero.judge = slowly(rng)

        assert broken(ledger, vero, store, seed) == ""


def test_one_person_at_whom_vero_fails_holds_nobody_of_another_shop(
    store: Store, vero: VeroServer, rng: Random, seed: int, times: Times
) -> None:
    """Customers of the same shop may wait for the person, because of an alias or tags."""

    def waiting() -> set[str]:
        """Return the shops of whose calls some are pending."""
        bodies = store.run_sql("SELECT body FROM entries WHERE state = 'pending'")
        return {json.loads(body)["messageId"].partition("-")[0] for (body,) in bodies}

    ledger = Ledger()
    with relay(store, vero.url) as running:
        crowd = Crowd([running.port], ledger, rng, PROGRAMS)
        for _ in range(times(1, 20)):
            vero.judge = failing_at_one(rng, "shop0", ambiguous(rng))
            with crowd.running():
                crowd.await_calls(CALLS)

            assert within(60, lambda: waiting() == {"shop0"}), f"seed {seed}"
            vero.judge = slowly(rng)

        assert broken(ledger, vero, store, seed) == ""


def test_four_forwarders_keep_the_order_while_some_are_killed(
    postgres_store: PostgresStore, vero: VeroServer, rng: Random, seed: int, times: Times
) -> None:
    """What a killed one has claimed holds its lanes until the minute of its lease is over."""
    vero.judge = failing(rng, 0.03)
    ledger = Ledger()
    with ExitStack() as processes:

        def forwarder() -> ForwarderProcess:
            process = ForwarderProcess(
                postgres_store, NOBODY, port=0, options=(), **environ_for(vero.url)
            )
            return processes.enter_context(process)

        receivers = [
            processes.enter_context(relay(postgres_store, vero.url, 0, "--no-forward"))
            for _ in range(2)
        ]
        forwarders = [forwarder() for _ in range(4)]
        crowd = Crowd([each.port for each in receivers], ledger, rng, 2 * PROGRAMS)
        with crowd.running():
            for _ in range(times(2, 20)):
                crowd.await_calls(rng.randrange(1, 2 * CALLS))
                with ledger.killing():
                    forwarders.pop(rng.randrange(4)).kill()
                forwarders.append(forwarder())
            crowd.await_calls(CALLS)
        if not within(
            times(1, 150), lambda: not pending(postgres_store)
        ):  # the leases last a minute
            for each in [*receivers, *forwarders]:
                each.end()
            end_leases(postgres_store)
            forwarder()

        assert broken(ledger, vero, postgres_store, seed) == ""
