from pathlib import Path
from urllib.parse import quote

from tests.cli.desk import webhook
from tests.console.client import (
    WEBHOOK_URLS,
    live,
    look,
    shown,
)
from tests.harness.fakes import SegmentServer
from tests.harness.processes import PATH, SECRET, RelayProcess, within
from tests.harness.stores import Store


def test_ignored_and_refused_webhooks_are_counted(store: Store) -> None:
    with (
        SegmentServer() as segment,
        RelayProcess(
            store, segment.url, RELAY_CUSTOMERIO_SIGNING_KEY="a-key-for-the-tests"
        ) as relay,
    ):
        before = look(relay).html.text
        for _ in range(2):
            relay.post(webhook("counted", kind="user_updated"))
        relay.ask("POST", PATH.replace(SECRET, "x" * 20), b"{}")
        relay.ask("POST", "/webhooks/<script>/x", b"{}")
        relay.ask("POST", "/webhooks/customerio", b"{}")

        assert "Nothing has been ignored" in before
        assert "Nothing has been refused" in before
        assert within(9, lambda: "user_updated 2" in " ".join(look(relay).html.text.split()))

        text = " ".join(look(relay).html.text.split())

    assert "vero 401 wrong or missing secret 1" in text
    assert "customerio 401 wrong or missing signature 1" in text
    assert "unknown 404 no such source 1" in text


def test_the_overview_shows_where_to_send_the_first_webhook(tmp_path: Path) -> None:
    secret = "a+secret/of?odd#chars%41&ü"
    with (
        SegmentServer() as segment,
        RelayProcess(tmp_path / "relay.db", segment.url, RELAY_VERO_SECRET=secret) as relay,
    ):
        hidden = look(relay).html.text
        unasked = look(relay, "/console/?reveal=1").text + look(relay, "/console/?secret=1").text
        with live(relay, "/console/live/overview?reveal=1") as response:
            streamed = shown(response)
        foreign = look(relay, WEBHOOK_URLS, method="POST", Origin="https://example.com")
        anonymous = look(relay, WEBHOOK_URLS, method="POST", Origin="own", Host="own", Cookie="")
        own = {"Origin": "http://localhost:1", "Host": "localhost:1"}
        revealed = look(relay, WEBHOOK_URLS, method="POST", **own).html.text
        path = revealed.partition("http://localhost:1")[2].split()[0]
        reply = relay.ask("POST", path, webhook("first"))
        within(9, lambda: "Waiting" not in look(relay).html.text)
        later = look(relay, "/console/?reveal=1").html.text

    assert "Waiting for your first webhook" in hidden
    assert f"http://127.0.0.1:{relay.port}/webhooks/vero/•" in hidden
    assert quote(secret) not in hidden + unasked + streamed + foreign.text + anonymous.text
    assert (foreign.status, anonymous.status) == (403, 401)
    assert reply.status == 200
    assert "Waiting" not in later
    assert quote(secret) not in later
