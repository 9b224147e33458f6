import json

import pytest

from relay.receiver.body import MAX_BODY_BYTES
from tests.cli.desk import Desk, webhook
from tests.console.client import (
    act,
)


@pytest.mark.parametrize(
    "body",
    [
        webhook("play"),
        webhook("play", 1, tags=["<b>", "'"], user={"email": "canary@example.com"}),
        webhook("play", kind="user_updated"),
        webhook("play", campaign={"channel": "sms"}),
        webhook("play", user={"id": 123, "email": "steve@getvero.com"}),
        webhook("play", kind="snoozed"),
        webhook("play", user={}),
        webhook("play")[:-1],
        b"",
        b"[]",
        b"\xef\xbb\xbf" + webhook("play", 2),
        b'{"a":' * 60 + b"1" + b"}" * 60,
        webhook("play", 3, x=" " * (MAX_BODY_BYTES - 200)),
        webhook("play", 3, x=" " * MAX_BODY_BYTES),
        webhook("play", 4, subject="x" * 40_000),
        webhook("play", 5, campaign={"name": "\n\r\n"}),
    ],
    ids=range(16),
)
def test_the_playground_answers_as_the_receiver_and_stores_nothing(
    sqlite_desk: Desk, body: bytes
) -> None:
    before = sqlite_desk.store.run_sql("SELECT count(*), max(id) FROM entries")
    play = {"body": body.decode(), "source": "vero"}
    page = act(sqlite_desk.relay, "/console/playground", **play)
    after = sqlite_desk.store.run_sql("SELECT count(*), max(id) FROM entries")
    reply = sqlite_desk.relay.post(body)
    again = act(sqlite_desk.relay, "/console/playground", **play)
    reply_again = sqlite_desk.relay.post(body)

    assert page.status == 200
    assert after == before
    assert answered(page.html.text) == (reply.status, dict(reply.content))
    assert answered(again.html.text) == (reply_again.status, dict(reply_again.content))


def answered(text: str) -> tuple[int, dict[str, str]]:
    """Return the status and the JSON of the answer on the page."""
    status, _, rest = text.partition("What relay would answer")[2].strip().partition(" ")
    return int(status), json.JSONDecoder().raw_decode(rest)[0]


def test_an_unknown_source_is_refused(desk: Desk) -> None:
    assert act(desk.relay, "/console/playground", body="{}", source="nobody").status == 400
