"""The console's pages as whoever asks for them over HTTP gets them."""

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
from tests.harness.processes import SECRET, WRITE_KEY, RelayProcess, Store

SIGN_IN = "/console/sign-in"
WEBHOOK_URLS = "/console/webhook-urls"

Attributes = dict[str, str | None]


@dataclass(frozen=True)
class Page:
    """What was answered.

    Attributes:
        headers: by lower-case name.
    """

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def html(self) -> "Html":
        """Its elements."""
        html = Html()
        html.feed(self.text)
        html.close()
        return html


class Html(HTMLParser):
    """Every element of a page, and what it says.

    Attributes:
        elements: the names and attributes, in their order.
        said: the text between them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes]] = []
        self.said = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said += data

    def all(self, tag: str, attribute: str) -> list[str]:
        """The attribute of each of these elements that has it."""
        return [
            value
            for name, attributes in self.elements
            if name == tag and (value := attributes.get(attribute)) is not None
        ]


_cookies: WeakKeyDictionary[RelayProcess, str] = WeakKeyDictionary()
_signing_in = Lock()


def cookie(relay: RelayProcess) -> str:
    """That of a session at the relay, the same for all who ask."""
    with _signing_in:
        if relay not in _cookies:
            _cookies[relay] = signed_in(relay, relay.links()[-1])
        return _cookies[relay]


def signed_in(relay: RelayProcess, link: str) -> str:
    """Use up the link; the cookie that comes for it."""
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
    """One request over a connection of its own; in the headers' names `_` stands for `-`.

    Whoever brings no credentials is signed in: `Cookie=""` is for whoever is not.
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
    """What one of the console's own forms does."""
    origin = f"http://127.0.0.1:{relay.port}"
    return look(relay, path, method="POST", body=urlencode(form).encode(), Origin=origin)


def found(relay: RelayProcess, **query: object) -> list[int]:
    """The ids of the events on one page, as they stand there."""
    page = look(relay, "/console/events?" + urlencode(query))
    assert page.status == 200
    return [int(id_.removeprefix("event-")) for id_ in page.html.all("tr", "id")]


@contextmanager
def live(relay: RelayProcess, path: str, **headers: str) -> Iterator[HTTPResponse]:
    """A page that is kept up to date."""
    with closing(relay.connection("127.0.0.1", relay.port, timeout=30)) as connection:
        connection.request("GET", path, headers={"Cookie": cookie(relay), **headers})
        with connection.getresponse() as response:
            yield response


def shown(response: HTTPResponse) -> str:
    """What it shows the next time that it is another."""
    for _ in range(60):  # a line or two a second
        line = response.readline()
        if line.startswith(b"data: "):
            html: str = json.loads(line.removeprefix(b"data: "))
            return html
    raise AssertionError("it shows the same for ever, or has ended")


def at_work(store: Store) -> Iterator[Desk]:
    """A relay on the store."""
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        yield Desk(store, relay, segment)


def id_of(desk: Desk, message_id: str) -> int:
    """Of the entry."""
    ((id_,),) = desk.store.run_sql(f"SELECT id FROM entries WHERE message_id = '{message_id}'")  # noqa: S608 (relay's own)
    return int(id_)


def newest(desk: Desk) -> int:
    """The id of the entry that came last."""
    ((id_,),) = desk.store.run_sql("SELECT max(id) FROM entries")
    return int(id_)


def event(desk: Desk, id_: int, **query: object) -> Page:
    """Its page."""
    return look(desk.relay, f"/console/events/{id_}?{urlencode(query)}")


def rejected(desk: Desk, *bodies: bytes) -> list[int]:
    """Their ids; Segment has refused each, with an address in its words."""
    before = desk.segment.judge
    desk.segment.judge = lambda _batch: Answer(400, body=f"No: {address('said')}".encode())
    try:
        return [id_of(desk, message_id) for message_id in desk.delivered(*bodies)]
    finally:
        desk.segment.judge = before
