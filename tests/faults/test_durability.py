"""The promise, held to by real processes that are killed in the middle of their work."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from random import Random

import pytest

from tests.harness.fakes import Answer, SegmentServer
from tests.harness.oracle import Ledger, Message, misbehaving, well
from tests.harness.processes import PATH, RelayProcess, ask, read_reply, within
from tests.harness.stores import PostgresStore, Store, pending

CONNECTIONS = 16
# A killed process's claims outlast it by a minute in PostgreSQL: it cannot know of the death.
ROUNDS = {"sqlite": (8, 200), "postgres": (6, 60)}


def send(port: int, ledger: Ledger) -> None:
    """Post until relay is gone."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        while True:
            webhook = ledger.next()
            try:
                reply = ask(connection, "POST", PATH, webhook.body)
            except (OSError, HTTPException):
                ledger.unanswered(webhook)
                return
            ledger.answered(webhook, reply)


@contextmanager
def crowd(port: int, ledger: Ledger) -> Iterator[None]:
    """Senders on as many connections, until relay is gone."""
    senders = [threading.Thread(target=send, args=(port, ledger)) for _ in range(CONNECTIONS)]
    for sender in senders:
        sender.start()
    yield
    for sender in senders:
        sender.join()


@pytest.mark.timeout(1_800)
@pytest.mark.slow
def test_whenever_relay_is_killed_no_accepted_webhook_is_lost(
    store: Store, kind: str, times: Callable[[int, int], int]
) -> None:
    rounds, most = times(*ROUNDS[kind]), times(500, 1_500)
    seed = time.time_ns()
    rng = Random(seed)  # noqa: S311 (no secret hangs on it)
    ledger = Ledger(rng)
    with SegmentServer() as server, ExitStack() as processes:
        server.judge = misbehaving(Random(seed))  # noqa: S311 (as above)
        for _ in range(rounds):
            relay = processes.enter_context(RelayProcess(store, server.url))
            with crowd(relay.port, ledger):
                ledger.await_answers(rng.randrange(most))
                if rng.random() < 0.5:
                    relay.kill_forwarder()
                    ledger.await_answers(rng.randrange(most))
                rng.choice([relay.kill, relay.kill_alone])()
        server.judge = well
        with RelayProcess(store, server.url) as relay:
            drained = within(120, lambda: not pending(store))
            relay.terminate()
            exit_code = relay.wait(20)
    broken = ledger.broken_promises(store, server)
    done = (
        f"seed {seed}: {ledger.answers} answers to {len(ledger.webhooks)} webhooks,"
        f" {rounds} kills, {len(server.received)} requests to Segment"
    )

    assert drained, done
    assert not broken, "\n".join([f"{done}; {len(broken)} broken promises:", *broken[:10]])
    assert exit_code == 0


_IS_MADE = "SELECT to_regclass('relay.pace') IS NOT NULL"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("segment", ["well", "down", "silent"])
@pytest.mark.slow
def test_sigterm_ends_well_under_load(
    store: Store, segment: str, times: Callable[[int, int], int]
) -> None:
    asked, over = threading.Event(), threading.Event()

    def judge(batch: list[Message]) -> Answer:
        asked.set()
        if segment == "silent":
            over.wait(60)
        return Answer(503) if segment == "down" else well(batch)

    ledger = Ledger(Random(segment))  # noqa: S311 (no secret hangs on it)
    with SegmentServer() as server:
        server.judge = judge
        for _ in range(1 if segment == "silent" else times(2, 20)):
            asked.clear()
            if isinstance(store, PostgresStore) and store.run_sql(_IS_MADE) == [(True,)]:
                # Its pace outlives a restart: the next probe would go after minutes.
                store.run_sql("UPDATE pace SET pace = '{}'")
            with RelayProcess(store, server.url) as relay, crowd(relay.port, ledger):
                assert asked.wait(30)
                ledger.await_answers(1_000)
                relay.terminate()

                assert relay.wait(20) == 0
                assert not [line for line in relay.log() if line["level"] in {"error", "critical"}]
        over.set()
    now = time.time() * 1000
    lost = [line for line in ledger.broken_promises(store, server) if line.startswith("lost")]
    sent = Counter(message["messageId"] for message in server.accepted)

    assert not ledger.faults
    assert not lost
    assert all(times == 1 for times in sent.values())
    assert all(entry.due_at <= now for entry in store.stored() if entry.due_at)


def test_a_webhook_on_its_way_in_at_sigterm_is_answered_first(store: Store) -> None:
    body = json.dumps({"type": "opened", "message_id": "mail-1", "user": {"id": 1}}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: "
    with SegmentServer() as server, RelayProcess(store, server.url) as relay:
        with relay.connect() as sender:
            sender.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body[:10])
            relay.terminate()
            refusing = within(20, lambda: not relay.listens())
            sender.sendall(body[10:])
            response = HTTPResponse(sender)
            response.begin()
            reply = read_reply(response)

        assert relay.wait(20) == 0

    assert refusing
    assert reply.content["status"] == "accepted"
    assert [entry.body for entry in store.stored()] == [body]
