import json
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import quote

import pytest

from relay.console.pagination import PAGE_SIZE
from tests.cli.desk import CANARY, Desk, address, hashed, webhook
from tests.cli.test_export import HOLDERS
from tests.console.client import (
    Page,
    act,
    cookie,
    event,
    found,
    id_of,
    live,
    look,
    newest,
    rejected,
    shown,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</textarea></pre></svg><b id=main>",
    "javascript:alert(1)",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt;&#x27;",
    "\0\x1b[2J\u202e\ufeff\u2028",
    "]]>--><!--",
    "x" * 30_000,
]
NONSENSE = [
    "before=x",
    "before=-1",
    f"before={'9' * 50}",
    "since=abc",
    "since=0001-01-01T00:00%2B14:00",
    "until=9999-12-31T23:59:59-14:00",
    "state=foo",
    "collection=Email",
    "reason=%00",
    "reveal=2",
    "reveal=1%00",
    "replayed=x",
    "no_such=filter",
    "%ff=%ff&&&=",
]


def pages_of(ids: list[int]) -> Iterator[str]:
    """Yield the paths of all pages that show something of the events."""
    yield from ("", "events", "dead", "dead/export", *(f"events/{id_}" for id_ in ids))


@pytest.mark.parametrize("holder", [*HOLDERS, "canary{x}@example.com", "{canary}@example.com"])
def test_no_address_is_shown_unless_revealed(desk: Desk, holder: str) -> None:
    name = f"mask-{HOLDERS.index(holder) if holder in HOLDERS else holder[0]}"
    user = {"id": f"user-{name}", "email": holder, holder: {"is": holder}}
    fields = {"name": "spring", holder: holder, "tags": [holder], "subject": holder}
    body = webhook(name, user=user, campaign=fields, user_agent=holder)
    ids = rejected(desk, body)
    for other in (
        body[:-1],
        body.replace(b'"opened"', b'"snoozed"'),
        address(name).encode("utf-16"),
    ):
        desk.relay.post(other)
        ids.append(newest(desk))
    for path in pages_of(ids):
        page = look(desk.relay, f"/console/{path}")

        assert page.status == 200
        assert CANARY not in page.text

    revealed = event(desk, ids[0], reveal=1)

    assert CANARY in revealed.html.text
    assert "reveal=1" in revealed.html.all("a", "href")[1]


def test_live_pages_show_no_address_unless_revealed(desk: Desk) -> None:
    desk.delivered(webhook("live", user={"email": address("live")}))
    for path in ("overview", "events", f"events?q={hashed('live')}"):
        with live(desk.relay, f"/console/live/{path}") as response:
            assert CANARY not in shown(response)
    with live(desk.relay, f"/console/live/events?q={hashed('live')}&reveal=1") as response:
        assert address("live") in shown(response)


def test_a_field_named_by_an_address_is_still_linked(sqlite_desk: Desk) -> None:
    name = address("name")
    campaign = {"tags": ["a"], name: {name: 1}}
    (id_,) = [id_of(sqlite_desk, m) for m in sqlite_desk.delivered(webhook("n", campaign=campaign))]
    masked_page, revealed = event(sqlite_desk, id_), event(sqlite_desk, id_, reveal=1)

    assert "campaign.***.***" in masked_page.html.all("li", "data-path")
    assert masked_page.text.count("not used") == revealed.text.count("not used") == 1


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_content_is_shown_and_does_nothing(desk: Desk, hostile: str) -> None:
    campaign = {hostile: hostile, "name": hostile[:50], "tags": [hostile], "subject": hostile[:50]}
    user = {"id": f"user-hostile-{hostile[:80]}", "email": f"{hostile[:20]}@example.com"}
    bodies = [
        webhook(
            "hostile", user=user, campaign=campaign, user_agent=hostile, message_id=hostile[:9]
        ),
        webhook("hostile", kind=hostile, user=user),
        webhook("hostile", campaign=campaign)[:-1] + hostile.encode(),
        hostile.encode("utf-16"),
        json.dumps({hostile: 1}).encode() + b"\xed\xa0\x80",
    ]
    ids = []
    for body in bodies:
        desk.relay.post(body)
        ids.append(newest(desk))
    desk.settle()
    plain = {len(scripts(look(desk.relay, f"/console/{path}"))) for path in ("", "events", "dead")}
    pages = [
        look(desk.relay, f"/console/{path}{sep}reveal={reveal}")
        for reveal in (0, 1)
        for path in (*pages_of(ids), f"events?q={quote(hostile)}")
        if (sep := "&" if "?" in path else "?") and "export" not in path
    ]
    pages += [
        act(desk.relay, "/console/playground", body=body.decode(errors="replace"))
        for body in bodies
    ]
    pages.append(look(desk.relay, f"/console/{quote(hostile, safe='')}"))
    pages.append(look(desk.relay, f"/console/dead?asked={quote(hostile)}"))

    assert plain == {1}
    for page in pages:
        assert page.status in {200, 404}
        assert_is_harmless(page)
    if len(hostile) < 100 and hostile.isprintable():
        assert hostile in pages[-3].html.text or hostile in pages[len(ids) + 4].html.text


def scripts(page: Page) -> list[str]:
    return page.html.all("script", "src")


def assert_is_harmless(page: Page) -> None:
    """Check that nothing in the page runs or leads away, and that it has all labels."""
    html = page.html
    ids = [attributes["id"] for _, attributes in html.elements if "id" in attributes]
    fields = [(tag, a) for tag, a in html.elements if tag in {"input", "select", "textarea"}]

    assert scripts(page) == ["/console/static/console.js"]
    assert [tag for tag, _ in html.elements].count("script") == 1
    assert len({*ids}) == len(ids)
    for tag, attributes in html.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert tag not in {"b", "style", "iframe", "object", "base"}
        for name in ("href", "src", "action", "data-live"):
            assert (attributes.get(name) or "/console/").startswith(("/console/", "#"))
        for name in ("aria-labelledby", "data-copy", "for"):
            assert (attributes.get(name) or "main") in ids
        assert all(len(link) == 2 for link in json.loads(attributes.get("data-links") or "[]"))
        assert tag != "img" or "alt" in attributes
        assert tag != "svg" or {"aria-hidden", "aria-label"} & {*attributes}
    assert page.text.count("<label") >= sum(a.get("type") != "hidden" for _, a in fields)
    assert page.text.count("<h1") == 1


def test_an_event_is_found_by_its_ids_its_address_and_the_filters(desk: Desk) -> None:
    ids = [id_of(desk, m) for m in desk.delivered(*(webhook("found", n) for n in range(3)))][::-1]
    (message_id, *_) = [message for message, _ in desk.states("found")]
    desk.relay.post(webhook("found", kind="snoozed"))
    dead = newest(desk)

    for text in ("user-found", address("found"), address("found").upper(), hashed("found")):
        assert found(desk.relay, q=text) == [dead, *ids]
    assert found(desk.relay, q=f" {message_id} ") == [ids[-1]]
    assert found(desk.relay, q="mail-found-1") == [ids[1]]
    assert found(desk.relay, q="found") == found(desk.relay, q="user-foun") == []
    assert found(desk.relay, q="user-found", state="dead") == [dead]
    assert found(desk.relay, q="user-found", reason="unknown_type") == [dead]
    assert found(desk.relay, q="user-found", collection="Email Opened", source="vero") == ids
    assert found(desk.relay, q="user-found", collection="Email Sent") == []
    assert found(desk.relay, q="user-found", source="nobody") == []
    assert found(desk.relay, q="user-found", since="2000-01-01") == [dead, *ids]
    assert found(desk.relay, q="user-found", until="2000-01-01T00:00") == []
    assert found(desk.relay, q="user-found", since="9999-12-31T23:59") == []


def test_paging_back_shows_each_event_once(desk: Desk) -> None:
    desk.delivered(*(webhook("pages", n) for n in range(2 * PAGE_SIZE + 5)))
    ids: list[int] = []
    path: str | None = "/console/events?q=user-pages"
    while path:
        html = look(desk.relay, path).html
        ids += [int(id_.removeprefix("event-")) for id_ in html.all("tr", "id")]
        older = [a["href"] for tag, a in html.elements if tag == "a" and a.get("rel") == "next"]
        path = older[0] if older else None

    assert len(ids) == 2 * PAGE_SIZE + 5
    assert ids == sorted({*ids}, reverse=True)


@pytest.mark.parametrize(
    "id_", ["0", "-1", "x", "9" * 19, "9" * 400, "9" * 5_000, "%00", "1.0", "٣"]
)
def test_an_event_that_does_not_exist_has_no_page(desk: Desk, id_: str) -> None:
    operations = desk.store.run_sql("SELECT count(*) FROM operations")
    path = f"/console/events/{quote(id_, safe='%')}"
    missing = look(desk.relay, path), act(desk.relay, f"{path}/replay")

    assert {page.status for page in missing} == {404}
    assert {page.html.all("main", "id")[0] for page in missing} == {"main"}
    assert desk.store.run_sql("SELECT count(*) FROM operations") == operations


@pytest.mark.parametrize("query", NONSENSE)
def test_nonsense_in_a_query_is_ignored(desk: Desk, query: str) -> None:
    (message_id,) = desk.delivered(webhook(f"nonsense-{NONSENSE.index(query)}"))
    id_ = id_of(desk, message_id)
    for path in ("", "dead", "playground", f"events/{id_}", "dead/export"):
        page = look(desk.relay, f"/console/{path}?{query}")

        assert page.status == 404 if ("export" in path and "reason" in query) else 200
        assert CANARY not in page.text
    events = look(desk.relay, f"/console/events?{query}")

    assert CANARY not in events.text
    assert f"event-{id_}" in events.text


def test_no_filter_breaks_the_page(desk: Desk) -> None:
    for name in ("source", "q", "state", "collection", "reason", "since", "before"):
        for value in HOSTILE[:-1]:
            page = look(desk.relay, f"/console/events?{name}={quote(value)}")

            assert page.status == 200, (name, value)
    with closing(desk.relay.connect()) as connection:
        head = b"GET /console/events?q=\xff HTTP/1.1\r\nHost: localhost\r\nCookie: %b\r\n\r\n"
        connection.sendall(head % cookie(desk.relay).encode())
        status = connection.recv(12)[-3:]

    assert status in {b"200", b"400"}
