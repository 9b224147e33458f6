import threading
import time
from random import Random

import pytest

from tests.harness.fakes import Answer, SegmentServer
from tests.harness.oracle import Ledger, Message, Webhook, well
from tests.harness.processes import RelayProcess, within
from tests.harness.stores import PostgresStore, Store, pending

_BEFORE = 250
_DEATHS = 5  # two in company, three alone


def test_a_webhook_that_kills_each_forwarder_is_set_apart_and_all_others_arrive(
    store: Store, request: pytest.FixtureRequest
) -> None:
    if isinstance(store, PostgresStore) and not request.config.getoption("--long"):
        pytest.skip("each death costs a lease of a minute")
    ledger = Ledger(Random(5))  # noqa: S311 (no secret hangs on it)
    deadly = next(w for w in iter(ledger.next, None) if w.fate == "delivered" and w.unique)
    deadly.fate = "poison"
    name = deadly.message["properties"]["campaign_name"]
    crashes: list[int] = []
    with SegmentServer() as server, RelayProcess(store, server.url) as relay:

        def judge(batch: list[Message]) -> Answer:
            if any(message["properties"]["campaign_name"] == name for message in batch):
                crashes.append(len(batch))
                relay.kill_forwarder()
                return Answer(0)
            return well(batch)

        def post(webhook: Webhook) -> None:
            ledger.answered(webhook, relay.post(webhook.body))

        def is_over() -> bool:
            post(ledger.next())
            time.sleep(0.1)  # a forwarder that starts needs a core for itself
            return dict(store.run_sql(_REASONS)).get("poison") == 1

        server.judge = judge
        for _ in range(_BEFORE):
            post(ledger.next())
        post(deadly)
        ended = within(600 if isinstance(store, PostgresStore) else 60, is_over)
        settled = within(30, lambda: pending(store) == 0)
        ready = within(30, lambda: relay.ask("GET", "/readyz").status == 200)
        broken = ledger.broken_promises(store, server)

    assert ended
    assert settled
    assert ready
    assert broken == []
    assert len(crashes) == _DEATHS
    assert crashes[2:] == [1, 1, 1]


_REASONS = "SELECT reason, count(*) FROM entries WHERE state = 'dead' GROUP BY reason"


@pytest.mark.slow
def test_kills_of_all_of_relay_while_segment_is_silent_make_no_dead_letter(store: Store) -> None:
    ledger = Ledger(Random(6))  # noqa: S311 (no secret hangs on it)
    webhook = next(w for w in iter(ledger.next, None) if w.fate == "delivered" and w.unique)
    asked: list[int] = []
    over = threading.Event()

    def judge(batch: list[Message]) -> Answer:
        asked.append(len(batch))
        return well(batch) if over.wait(60) else Answer(0)

    with SegmentServer() as server:
        server.judge = judge
        for life in range(1, _DEATHS + 4):
            with RelayProcess(store, server.url) as relay:
                if life == 1:
                    ledger.answered(webhook, relay.post(webhook.body))
                assert within(60, lambda life=life: len(asked) == life)  # type: ignore[misc]
                relay.kill()
            if isinstance(store, PostgresStore):  # as when the lease of a minute has ended
                store.run_sql("UPDATE entries SET due_at = now() WHERE state = 'pending'")
        server.judge = well
        with RelayProcess(store, server.url):
            settled = within(60, lambda: pending(store) == 0)
        reasons = store.run_sql(_REASONS)
        over.set()

    assert settled
    assert reasons == []
    assert [entry.state for entry in store.stored()] == ["delivered"]
