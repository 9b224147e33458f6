"""What was accepted, waits, and is ignored under the settings of the next start."""

import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import WRITE_KEY, RelayProcess, Reply, run, within
from tests.harness.stores import Store, pending

_KEY = "0f3c5a7e9b1d2f4a6c8e0b2d4f6a8c0e"


def _open_by_a_machine(relay: RelayProcess) -> Reply:
    data = {"delivery_id": "mail-1", "identifiers": {"id": "42"}, "proxied": True}
    webhook = {"object_type": "email", "metric": "opened", "event_id": "1", "timestamp": 1}
    body = json.dumps(webhook | {"data": data}).encode()
    sent_at = str(int(time.time()))
    signed = f"v0:{sent_at}:".encode() + body
    mark = hmac.new(_KEY.encode(), signed, "sha256").hexdigest()
    headers = {"X-CIO-Timestamp": sent_at, "X-CIO-Signature": mark}
    return relay.ask("POST", "/webhooks/customerio", body, headers)


def _sample(relay: RelayProcess) -> Reply:
    user = {"id": 123, "email": "steve@getvero.com"}
    return relay.post(json.dumps({"type": "sent", "sent_at": 1_767_225_600, "user": user}).encode())


@pytest.mark.parametrize(
    ("post", "detail", "taken", "ignored"),
    [
        (
            _open_by_a_machine,
            "machine: set by RELAY_CUSTOMERIO_MACHINE",
            {"RELAY_CUSTOMERIO_MACHINE": "mark"},
            {"RELAY_CUSTOMERIO_MACHINE": "drop"},
        ),
        (
            _sample,
            "test_sample: set by RELAY_VERO_TESTS",
            {"RELAY_VERO_TESTS": "forward"},
            {"RELAY_VERO_TESTS": "ignore"},
        ),
    ],
    ids=["opens by machines", "Vero's sample"],
)
@pytest.mark.slow
def test_what_is_ignored_by_now_is_settled_as_such_and_sent_once_it_is_not(
    store: Store,
    post: Callable[[RelayProcess], Reply],
    detail: str,
    taken: dict[str, Any],
    ignored: dict[str, Any],
) -> None:
    with SegmentServer() as server:
        own = {"SEGMENT_WRITE_KEY": WRITE_KEY, "SEGMENT_HOST": server.url}
        own |= {"RELAY_OUTBOX_URL": store.url, "RELAY_CUSTOMERIO_SIGNING_KEY": _KEY}
        server.judge = lambda _batch: Answer(503)
        with RelayProcess(store, **_run(own | taken)) as relay:
            message_id = post(relay).content["message_id"]
        server.judge = lambda _batch: Answer()
        with RelayProcess(store, **_run(own | ignored)) as relay:
            settled = within(30, lambda: not pending(store))
            (as_it_was,) = store.stored()
            left_alone = run("replay", "--since", "1h", "--yes", **own | ignored)
            (as_it_is,) = store.stored()
            ready = relay.ask("GET", "/readyz").status
            logged = [line for line in relay.log() if line["event"].startswith("forward.")]
            listed = run("dead", **own | ignored)
        posted_by_then = list(server.accepted)
        with RelayProcess(store, **_run(own | taken)):
            run("replay", "--reason", "ignored", "--yes", **own | taken)
            sent = within(30, lambda: len(server.accepted) == 1 and not pending(store))

    assert settled
    assert (as_it_was.state, as_it_was.reason, as_it_was.detail) == ("dead", "ignored", detail)
    assert as_it_is == as_it_was
    assert left_alone.stdout.startswith("0 entries to send\n1 entry left alone: still ignored")
    assert ready == 200
    assert {line["level"] for line in logged if line["event"] == "forward.ignored"} == {"info"}
    assert not [line for line in logged if line["event"] == "forward.dead_letter"]
    assert "leave it, or replay it once they are changed back" in listed.stdout
    assert not posted_by_then
    assert sent
    assert [message["messageId"] for message in server.accepted] == [message_id]


def _run(environ: dict[str, Any]) -> dict[str, Any]:
    return {"segment_url": environ["SEGMENT_HOST"], **environ}
