"""Several receivers and forwarders on one PostgreSQL, while each of them fails in its own way."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import cycle
from random import Random

import pytest

from tests.harness.fakes import SegmentServer
from tests.harness.oracle import Ledger, misbehaving, well
from tests.harness.postgres import PASSWORD, PostgresServer, StopMode
from tests.harness.processes import PATH, ForwarderProcess, RelayProcess, ask, within
from tests.harness.stores import PostgresStore, pending

CONNECTIONS = 16
RATES = (100, 320)
"""Webhooks a second, by all connections together: in `make test`, and in `make faults`."""
MODES: list[StopMode] = ["fast", "fast", "immediate", "fast"]
RESTARTS = 3 * MODES + MODES[:1]
LEASE_SECONDS = 60


def send(
    ports: Sequence[int], ledger: Ledger, rate: int, over: threading.Event, first: int
) -> None:
    """Post until it is over; what one relay does not take goes to the next one in the end."""
    post_at = time.monotonic()
    for permit in cycle(range(len(ports))):
        port = ports[(first + permit) % len(ports)]
        with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            while not over.wait(max(0, post_at - time.monotonic())):
                post_at += CONNECTIONS / rate
                webhook = ledger.next()
                try:
                    reply = ask(connection, "POST", PATH, webhook.body)
                except (OSError, HTTPException):
                    ledger.unanswered(webhook)
                    break
                if reply.status == 503:
                    ledger.refused(webhook)
                    break
                ledger.answered(webhook, reply)
        if over.is_set():
            return


@contextmanager
def crowd(ports: Sequence[int], ledger: Ledger, rate: int) -> Iterator[None]:
    """Senders on as many connections, spread over the ports, which may change meanwhile."""
    over = threading.Event()
    senders = [
        threading.Thread(target=send, args=(ports, ledger, rate, over, number))
        for number in range(CONNECTIONS)
    ]
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        over.set()
        for sender in senders:
            sender.join()


@pytest.mark.timeout(420)
@pytest.mark.slow
def test_whatever_fails_in_a_cluster_no_accepted_webhook_is_lost(
    postgres: PostgresServer, postgres_store: PostgresStore, times: Callable[[int, int], int]
) -> None:
    rate = times(*RATES)
    seed = time.time_ns()
    rng = Random(seed)  # noqa: S311 (no secret hangs on it)
    ledger = Ledger(rng, forgetful=True)
    with SegmentServer() as server, ExitStack() as processes:
        server.judge = misbehaving(Random(seed))  # noqa: S311 (as above)
        receivers = [
            processes.enter_context(
                RelayProcess(postgres_store, server.url, options=["--no-forward"])
            )
            for _ in range(2)
        ]
        forwarders = [
            processes.enter_context(ForwarderProcess(postgres_store, server.url)) for _ in range(4)
        ]
        killed, suspended, *_ = forwarders
        with crowd([receiver.port for receiver in receivers], ledger, rate):
            ledger.await_answers(3 * rate)
            suspended.suspend()
            outlived_at = time.monotonic() + LEASE_SECONDS + 5
            killed.kill()
            for mode in RESTARTS:
                ledger.await_answers(rng.randrange(2 * rate))
                postgres.restart(mode)
            while time.monotonic() < outlived_at:
                ledger.await_answers(rate)
            suspended.resume()
            ledger.await_answers(3 * rate)
        server.judge = well
        drained = within(180, lambda: not pending(postgres_store))
        ended = [*receivers, *forwarders[1:]]
        for process in ended:
            process.terminate()
        exit_codes = [process.wait(20) for process in ended]
    broken = ledger.broken_promises(postgres_store, server)
    done = (
        f"seed {seed}: {ledger.answers} answers to {len(ledger.webhooks)} webhooks,"
        f" {ledger.refusals} refused, {len(server.received)} requests to Segment"
    )

    assert drained, done
    assert not broken, "\n".join([f"{done}; {len(broken)} broken promises:", *broken[:10]])
    assert exit_codes == [0] * len(ended)
    assert not any(PASSWORD in str(process.log()) for process in [*receivers, *forwarders])


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_no_sender_sees_a_rolling_restart(
    postgres_store: PostgresStore, times: Callable[[int, int], int]
) -> None:
    rate, restarts = times(*RATES), times(8, 20)
    ledger = Ledger(Random(0))  # noqa: S311 (no secret hangs on it)
    with SegmentServer() as server, ExitStack() as processes:
        server.judge = well

        def start() -> RelayProcess:
            relay = RelayProcess(postgres_store, server.url, options=["--no-forward"])
            return processes.enter_context(relay)

        relays = [start(), start()]
        forwarder = processes.enter_context(ForwarderProcess(postgres_store, server.url))
        ports = [relay.port for relay in relays]
        exit_codes = []
        with crowd(ports, ledger, rate):
            for restart in range(restarts):
                ledger.await_answers(rate)
                place = restart % 2
                relays[place].terminate()
                exit_codes.append(relays[place].wait(20))
                relays[place] = start()
                ports[place] = relays[place].port
        drained = within(60, lambda: not pending(postgres_store))
        forwarder.terminate()
        exit_codes.append(forwarder.wait(20))
    broken = ledger.broken_promises(postgres_store, server)

    assert ledger.refusals == 0
    assert exit_codes == [0] * (restarts + 1)
    assert drained
    assert not broken, "\n".join(broken[:10])
