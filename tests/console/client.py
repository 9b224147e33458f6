"""The console over HTTP."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPResponse
from threading import Lock
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

from tests.cli.desk import Desk, address
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import SECRET, WRITE_KEY, RelayProcess
from tests.harness.stores import Store

SIGN_IN = "/console/sign-in"
WEBHOOK_URLS = "/console/webhook-urls"

Attributes = dict[str, str | None]


@dataclass(frozen=True)
class Page:
    """An answer.

    Attributes:
        headers: by lower-case name.
    """

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def html(self) -> "Html":
        """Return its elements."""
        html = Html()
        html.feed(self.text)
        html.close()
        return html


class Html(HTMLParser):
    """The elements and the text of a page.

    Attributes:
        elements: names and attributes, in their order.
        text: all text outside of tags.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        """Return the attribute of each of these elements that has it."""
        return [
            value
            for name, attributes in self.elements
            if name == tag and (value := attributes.get(attribute)) is not None
        ]


_cookies: WeakKeyDictionary[RelayProcess, str] = WeakKeyDictionary()
_signing_in = Lock()


def cookie(relay: RelayProcess) -> str:
    """Return the cookie of a session at the relay, the same at each call."""
    with _signing_in:
        if relay not in _cookies:
            _cookies[relay] = signed_in(relay, relay.links()[-1])
        return _cookies[relay]


def signed_in(relay: RelayProcess, link: str) -> str:
    """Use up the link, and return the cookie of the new session."""
    page = look(relay, SIGN_IN, method="POST", body=urlencode({"link": link}), Cookie="")
    assert (page.status, page.headers["location"]) == (303, "/console/")
    return page.headers["set-cookie"].partition(";")[0]


def look(
    relay: RelayProcess,
    path: str = "/console/",
    *,
    method: str = "GET",
    body: bytes | str | None = None,
    **headers: str,
) -> Page:
    """Send one request over a connection of its own; `_` in a header's name stands for `-`.

    Without credentials among the headers, the request has a session; `Cookie=""` has none.
    """
    with closing(relay.connection("127.0.0.1", relay.port, timeout=30)) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if not {"Authorization", "Cookie"} & {*named}:
            named["Cookie"] = cookie(relay)
        if isinstance(body, str):
            body = body.encode()
        connection.request(method, path, body, named)
        response = connection.getresponse()
        text = response.read().decode()
        assert WRITE_KEY not in text
        assert SECRET not in text or path == WEBHOOK_URLS
        given = {name.lower(): value for name, value in response.headers.items()}
        return Page(response.status, given, text)


def act(relay: RelayProcess, path: str, /, **form: str) -> Page:
    """Post a form as one of the console's own pages does."""
    origin = f"http://127.0.0.1:{relay.port}"
    return look(relay, path, method="POST", body=urlencode(form).encode(), Origin=origin)


def found(relay: RelayProcess, **query: object) -> list[int]:
    """Return the ids of the events on a page of the list, in their order."""
    page = look(relay, "/console/events?" + urlencode(query))
    assert page.status == 200
    return [int(id_.removeprefix("event-")) for id_ in page.html.all("tr", "id")]


@contextmanager
def live(relay: RelayProcess, path: str, **headers: str) -> Iterator[HTTPResponse]:
    """Open the stream that keeps a page up to date."""
    with closing(relay.connection("127.0.0.1", relay.port, timeout=30)) as connection:
        connection.request("GET", path, headers={"Cookie": cookie(relay), **headers})
        with connection.getresponse() as response:
            yield response


def shown(response: HTTPResponse) -> str:
    """Return what the stream sends next."""
    for _ in range(60):  # a line or two a second
        line = response.readline()
        if line.startswith(b"data: "):
            html: str = json.loads(line.removeprefix(b"data: "))
            return html
    raise AssertionError("nothing has changed, or the stream has ended")


def at_work(store: Store) -> Iterator[Desk]:
    """Run a relay on the store."""
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        yield Desk(store, relay, segment)
        relay.end()


def id_of(desk: Desk, message_id: str) -> int:
    """Return the id of the entry with the message id."""
    ((id_,),) = desk.store.run_sql(f"SELECT id FROM entries WHERE message_id = '{message_id}'")  # noqa: S608 (relay's own)
    return int(id_)


def newest(desk: Desk) -> int:
    """Return the id of the latest entry."""
    ((id_,),) = desk.store.run_sql("SELECT max(id) FROM entries")
    return int(id_)


def event(desk: Desk, id_: int, **query: object) -> Page:
    """Return the page of the event."""
    return look(desk.relay, f"/console/events/{id_}?{urlencode(query)}")


def rejected(desk: Desk, *bodies: bytes) -> list[int]:
    """Have Segment reject the events, with an address in its answer; return their ids."""
    before = desk.segment.judge
    desk.segment.judge = lambda _batch: Answer(400, body=f"No: {address('answer')}".encode())
    try:
        return [id_of(desk, message_id) for message_id in desk.delivered(*bodies)]
    finally:
        desk.segment.judge = before
