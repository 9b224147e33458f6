import json

from tests.cli.desk import Desk, address, webhook

HOLDERS = [
    '"canary holder"@example.com',
    "o'canary@example.com",
    "canary@[127.0.0.1]",
    "mailto:canary@example.com,canary@example.com",
    "Canary <canary@example.com>",
    "https://example.com/?to=canary%40example.com&then=%2540canary%2540",
    "canary\\u0040example.com",
]


def test_every_entry_is_told_with_its_body_and_its_track_call(desk: Desk) -> None:
    bodies = [webhook("export", number) for number in range(3)]
    bodies.append(webhook("export", kind="snoozed"))
    desk.delivered(*bodies[:3])
    desk.relay.post(bodies[3])
    *delivered, dead = desk.told("export", "--address", address("export"), "--reveal")

    assert [told["body"].encode() for told in (*delivered, dead)] == bodies
    assert [told["track"] for told in delivered] == desk.arrivals("export")
    assert (dead["state"], dead["track"]) == ("dead", None)
    assert dead["no_track_because"] == "unknown_type: a type relay does not know: snoozed"


def test_no_form_of_an_address_is_told_unasked(sqlite_desk: Desk) -> None:
    """`Desk.run` looks for it in each output."""
    fields = {f"in {holder}": holder for holder in HOLDERS}
    for number, holder in enumerate(HOLDERS):
        user = {"id": "user-holder", "email": holder}
        body = webhook("holder", number, user=user, user_agent=holder, campaign=fields)
        sqlite_desk.relay.post(body)
        sqlite_desk.relay.post(body[:-1])  # unreadable
    sqlite_desk.settle()
    exported = sqlite_desk.told("export", "--user-id", "user-holder")
    sqlite_desk.run("events", "--user-id", "user-holder")
    for told in exported[:2]:
        sqlite_desk.run("show", str(told["id"]))

    assert len(exported) == 2 * len(HOLDERS)
    assert "***" in exported[0]["address"]


def test_an_email_id_is_told_though_it_looks_like_an_address(sqlite_desk: Desk) -> None:
    email_id = "20260101000000.1.0A1B2C3D4E5F6071@mail.example.com"
    sqlite_desk.delivered(webhook("machine", message_id=email_id))
    (told,) = sqlite_desk.told("export", "--email-id", email_id)

    assert told["email_id"] == email_id
    assert json.loads(told["body"])["message_id"] == email_id


def test_a_long_word_takes_no_longer_than_its_length(sqlite_desk: Desk) -> None:
    """Masking that takes the square of it would take hours, and tests end after minutes."""
    word = "x" * 900_000
    sqlite_desk.relay.post(webhook("long", subject=word, tags=["@" * 90_000]))
    sqlite_desk.settle()
    (told,) = sqlite_desk.told("export", "--user-id", "user-long")

    assert word in told["body"]
