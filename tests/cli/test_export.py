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


def test_export_prints_each_entry_with_its_body_and_what_is_sent(desk: Desk) -> None:
    bodies = [webhook("export", number) for number in range(3)]
    bodies.append(webhook("export", kind="snoozed"))
    desk.delivered(*bodies[:3])
    desk.relay.post(bodies[3])
    *delivered, dead = desk.run_json("export", "--address", address("export"), "--reveal")

    assert [entry["body"].encode() for entry in (*delivered, dead)] == bodies
    assert [entry["messages"] for entry in delivered] == [[m] for m in desk.arrivals("export")]
    assert [(entry["sent"], entry["not_sent_because"]) for entry in delivered] == [(1, None)] * 3
    assert (dead["state"], dead["messages"], dead["sent"]) == ("dead", [], 0)
    assert dead["not_sent_because"] == "unknown_type: a type relay does not know: snoozed"


def test_no_form_of_an_address_is_printed_without_reveal(sqlite_desk: Desk) -> None:
    """`Desk.run` looks for the address in each output."""
    fields = {f"in {holder}": holder for holder in HOLDERS}
    for number, holder in enumerate(HOLDERS):
        user = {"id": "user-holder", "email": holder}
        body = webhook("holder", number, user=user, user_agent=holder, campaign=fields)
        sqlite_desk.relay.post(body)
        sqlite_desk.relay.post(body[:-1])  # unreadable
    sqlite_desk.settle()
    exported = sqlite_desk.run_json("export", "--user-id", "user-holder")
    sqlite_desk.run("events", "--user-id", "user-holder")
    for entry in exported[:2]:
        sqlite_desk.run("show", str(entry["id"]))

    assert len(exported) == 2 * len(HOLDERS)
    assert "***" in exported[0]["address"]


def test_an_email_id_that_looks_like_an_address_is_not_masked(sqlite_desk: Desk) -> None:
    email_id = "20260101000000.1.0A1B2C3D4E5F6071@mail.example.com"
    sqlite_desk.delivered(webhook("machine", message_id=email_id))
    (entry,) = sqlite_desk.run_json("export", "--email-id", email_id)

    assert entry["email_id"] == email_id
    assert json.loads(entry["body"])["message_id"] == email_id


def test_masking_takes_time_in_proportion_to_the_length(sqlite_desk: Desk) -> None:
    """Masking in quadratic time would take hours, and the test would time out."""
    word = "x" * 900_000
    sqlite_desk.relay.post(webhook("long", subject=word, tags=["@" * 90_000]))
    sqlite_desk.settle()
    (entry,) = sqlite_desk.run_json("export", "--user-id", "user-long")

    assert word in entry["body"]
