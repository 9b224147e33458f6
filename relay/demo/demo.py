"""Stand-ins for Vero and Segment on loopback, to see relay work without either.

`journeys` makes up what Vero sends, `Traffic` posts it, `StandIn` is Segment, and the `Ledger`
brings both ends of each event together in one line on the terminal.
"""

import gzip
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from random import Random
from signal import SIGINT, raise_signal
from typing import Any, Final, Self

import click
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from relay.events import Collection

SECRET: Final = "only-for-the-demo"  # noqa: S105 (made up, and printed)
PATH: Final = f"/webhooks/vero/{SECRET}"

_AT_ONCE: Final = 3
_PAUSE_SECONDS: Final = (0.1, 0.6)
_OUTAGE_EVERY_SECONDS: Final = 30
_OUTAGE_SECONDS: Final = 4
_ANSWER_SECONDS: Final = 10
_AGAIN_SECONDS: Final = 0.1

_GONE: Final = object()
_SAMPLE_USER: Final = {"id": 123, "email": "steve@getvero.com"}  # of Vero's Test button


def _padded(value: str) -> str:
    return f"  {value} "


def _in_milliseconds(seconds: int) -> int:
    return seconds * 1000


# What is sent about one mail, and what is odd about it: at each path the value that stands there
# instead, or what is done to it. Most has been seen in Vero's webhooks, the rest must do no harm.
# "again" is the last webhook once more, "cut" the same one cut off on its way.
_Journey = tuple[str, Mapping[str, Any]]
_JOURNEYS: Final[Sequence[_Journey]] = (
    *[("sent delivered opened clicked", {})] * 4,
    *[("sent delivered opened", {})] * 3,
    *[("sent delivered", {})] * 2,
    ("sent delivered opened clicked converted", {"campaign.tags": "autumn, sale"}),
    ("sent delivered opened unsubscribed", {"sender_ip": "192.0.2.10"}),
    ("sent delivered complained", {}),
    ("sent bounced", {}),
    ("sent delivered again opened", {}),
    ("sent delivered cut", {}),
    ("sent delivered snoozed", {}),
    ("user_created resubscribed", {}),
    ("user_updated", {"type": _GONE, "action": "user_updated"}),
    ("sent delivered opened clicked", {"user.id": _GONE}),
    ("sent delivered unsubscribed", {"user.id": " "}),
    ("sent delivered opened", {"user.id": str, "campaign.id": str}),
    ("sent delivered", {"user": {"id": "zoe@example.com", "email": "zoe@example.com"}}),
    ("sent delivered", {"user.email": None, "campaign.sent_to": _GONE}),
    ("sent delivered opened", {"user": {"id": None, "email": None}}),
    ("sent", {"user": {"id": None, "email": None}, "campaign.sent_to": _GONE}),
    ("sent", {"user": _SAMPLE_USER}),
    ("sent opened", {"user.email": _padded, "campaign.name": _padded, "message_id": _padded}),
    ("sent delivered opened", {"message_id": _GONE}),
    ("unsubscribed", {"campaign": _GONE, "time": _GONE}),
    ("sent delivered opened", {"time": _GONE}),
    ("sent delivered opened", {"time": str}),
    ("sent delivered clicked", {"time": _in_milliseconds}),
    ("bounced", {"bounce_code": str}),
    ("sent delivered", {"campaign.channel": "push"}),
    ("sent failed", {"event": {"name": "order placed", "data": {"note": "not forwarded"}}}),
)
_NAMES: Final = (
    *("ana", "ben", "cleo", "dana", "emil", "fay", "gus", "hana", "ivan", "jo", "kim", "lena"),
    *("milo", "nora", "omar", "pia", "rosa", "sam", "tess", "uma", "vik", "wren", "yara", "zoe"),
)
_CAMPAIGN_KEYS: Final = ("id", "type", "name", "subject", "trigger-event")
_CAMPAIGNS: Final = (
    (311, "transactional", "Parcel on its way", "Your parcel left today", "parcel dispatched"),
    (478, "newsletter", "Garden in spring", "What to sow before the last frost", None),
    (502, "behavioural", "Basket left behind", "Still thinking about it?", "basket abandoned"),
)
_BOUNCES: Final[Sequence[dict[str, Any]]] = (
    {"bounce_type": "hard", "bounce_code": 550, "bounce_message": "5.1.1 no such mailbox"},
    {"bounce_type": "soft", "bounce_code": 452, "bounce_message": "4.2.2 mailbox full"},
)
_USER_AGENTS: Final = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Thunderbird/140.0",
)
_WITHOUT_MAIL: Final = frozenset({"user_created", "user_updated", "resubscribed"})
_WITHOUT_TIME: Final = _WITHOUT_MAIL | {"converted", "failed"}


class Webhook(Struct, frozen=True):
    """One webhook as Vero would send it: its type, whom it is about, and its body."""

    kind: str
    recipient: str
    body: bytes


def journeys(rng: Random, *, clock: Callable[[], float] = time.time) -> Iterator[Webhook]:
    """Webhooks for ever: plain ones first, then each journey before any comes again.

    Args:
        rng: decides everything but the time.
        clock: the time of day, in seconds.
    """
    to_come = [*_JOURNEYS[:_AT_ONCE]]
    under_way: list[Iterator[Webhook]] = []
    while True:
        while len(under_way) < _AT_ONCE:
            to_come = to_come or rng.sample(_JOURNEYS, len(_JOURNEYS))
            under_way.append(_webhooks(to_come.pop(), rng, clock))
        journey = rng.choice(under_way)
        if webhook := next(journey, None):
            yield webhook
        else:
            under_way.remove(journey)


def _webhooks(journey: _Journey, rng: Random, clock: Callable[[], float]) -> Iterator[Webhook]:
    kinds, oddities = journey
    number = rng.randrange(len(_NAMES))
    user = {"id": 2001 + 37 * number, "email": f"{_NAMES[number]}@example.com"}
    campaign = {
        **dict(zip(_CAMPAIGN_KEYS, rng.choice(_CAMPAIGNS), strict=True)),
        "channel": "email",
        "sent_to": user["email"],
        "variation": rng.choice("AB"),
    }
    message_id = f"{int(clock())}.{rng.randbytes(8).hex()}@mail.example.com"
    webhook = Webhook("", "", b"")
    for kind in kinds.split():
        if kind == "cut":
            webhook = Webhook("(cut off)", "", webhook.body[: len(webhook.body) // 2])
        elif kind != "again":
            document = _document(kind, dict(user), dict(campaign), message_id, rng)
            if kind not in _WITHOUT_TIME:
                document[f"{kind}_at"] = int(clock())
            for path, oddity in oddities.items():
                _change(document, f"{kind}_at" if path == "time" else path, oddity)
            webhook = Webhook(kind, _recipient(document), json.dumps(document).encode())
        yield webhook


def _document(
    kind: str, user: dict[str, Any], campaign: dict[str, Any], message_id: str, rng: Random
) -> dict[str, Any]:
    document = {"type": kind, "user": user, "campaign": campaign, "message_id": message_id}
    if kind in _WITHOUT_MAIL:
        del document["campaign"], document["message_id"]
    elif kind == "unsubscribed":
        # Vero names everything differently in this one.
        document["campaign"] = {
            "campaign_title": campaign["name"],
            "series_title": "All year round",
            "channel": "email",
            "message_id": document.pop("message_id"),
            "email_subject": campaign["subject"],
            "variation_name": campaign["variation"],
            "template": "Plain",
        }
    elif kind in {"opened", "clicked"}:
        document["user_agent"] = rng.choice(_USER_AGENTS)
    elif kind == "bounced":
        document.update(rng.choice(_BOUNCES))
    return document


def _change(document: dict[str, Any], path: str, oddity: Any) -> None:  # noqa: ANN401 (any JSON)
    *parents, key = path.split(".")
    for parent in parents:
        document = document[parent]
    if oddity is _GONE:
        document.pop(key, None)
    else:
        document[key] = oddity(document[key]) if callable(oddity) else oddity


def _recipient(document: Mapping[str, Any]) -> str:
    user, campaign = document["user"], document.get("campaign", {})
    if address := user.get("email") or campaign.get("sent_to"):
        return str(address).strip()
    return f"user {user['id']}" if user.get("id") else "nobody"


_TYPES: Final = {
    Collection.SENT: "sent",
    Collection.DELIVERED: "delivered",
    Collection.OPENED: "opened",
    Collection.LINK_CLICKED: "clicked",
    Collection.UNSUBSCRIBED: "unsubscribed",
    Collection.BOUNCED: "bounced",
    Collection.MARKED_AS_SPAM: "complained",
}
_COLUMNS: Final = (
    *(("time", 8), ("Vero sends", 12), ("about", 18), ("relay", 8)),
    *(("Segment gets", 20), ("identified by", 21), ("email_id", 8), ("  after", 7)),
)
_COLOURS: Final = {"accepted": "green", "duplicate": "cyan", "ignored": "blue", "dead": "red"}
_ANSWER_WIDTH: Final = 67  # as nothing follows it
_LATE_SECONDS: Final = 1.0


class Ledger:
    """Notes what came in and what Segment got, and shows each event in one line.

    Args:
        write: takes each line.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        write: Callable[[str], None] = click.echo,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._awaited: dict[str, tuple[Webhook, float]] = {}

    def send(self, webhook: Webhook, post: Callable[[bytes], Mapping[str, str]]) -> None:
        """Post the webhook; show it now, or if accepted when Segment has it."""
        # The lock keeps the event from being at Segment before its answer is noted.
        with self._lock:
            posted_at = self._clock()
            answer = post(webhook.body)
            status = answer["status"]
            self._counts.update(("in", status))
            if status == "accepted":
                self._awaited[answer["message_id"]] = webhook, posted_at
            else:
                reason = f": {answer['reason']}" if "reason" in answer else ""
                error = f" ({answer['error']})" if "error" in answer else ""
                said = _fit(status + reason + error, _ANSWER_WIDTH)
                self._show(webhook.kind, webhook.recipient, said)

    def arrived(self, messages: Sequence[Mapping[str, Any]], *, after_outage: bool) -> None:
        """Segment has these."""
        with self._lock:
            if after_outage:
                self._tell(f"Segment is back: {len(messages)} waiting events arrived")
            for message in messages:
                self._counts["arrived"] += 1
                self._show_arrival(message)

    def headings(self) -> None:
        """Show what the columns are."""
        self._put(click.style(_row([heading for heading, _ in _COLUMNS], _COLUMNS), bold=True))

    def tell(self, news: str) -> None:
        """Show a line that is about no event."""
        with self._lock:
            self._tell(news)

    def summary(self, waiting: int) -> str:
        """What it all came to; `waiting` are the events stored and not yet at Segment."""
        counts = self._counts
        after = "\nWhat waits, relay would send at its next start; the demo's is thrown away."
        return (
            f"{counts['in']} webhooks sent in: {counts['accepted']} accepted,"
            f" {counts['duplicate']} duplicate, {counts['ignored']} ignored,"
            f" {counts['dead']} dead. At Segment: {counts['arrived']}; still waiting: {waiting}."
            + (after if waiting else "")
        )

    def _show_arrival(self, message: Mapping[str, Any]) -> None:
        event, user_id = message["event"], message["userId"]
        if message["messageId"] in self._awaited:
            webhook, posted_at = self._awaited.pop(message["messageId"])
            kind, recipient = webhook.kind, webhook.recipient
            seconds = self._clock() - posted_at
            after, colour = f"{seconds:.2f} s", "yellow" if seconds > _LATE_SECONDS else None
        else:
            # Somebody has posted a webhook of their own.
            self._counts.update(("in", "accepted"))
            kind = _TYPES[Collection(event)]
            recipient = message["context"].get("traits", {}).get("email") or user_id
            after, colour = "yours", "magenta"
        dedupe_key = f"userId {user_id}" if user_id else f"anonymousId {message['anonymousId']}"
        email_id = _tail(message["properties"].get("email_id", "-"))
        got = _row((event, dedupe_key, email_id), _COLUMNS[4:-1])
        after = click.style(after.rjust(_COLUMNS[-1][1]), fg=colour)
        self._show(kind, recipient, "accepted", got, after)

    def _show(self, kind: str, recipient: str, answer: str, *rest: str) -> None:
        now = click.style(_now(), dim=True)
        opening = _row((kind, recipient), _COLUMNS[1:3])
        status = answer.partition(":")[0]
        answer = click.style(answer, fg=_COLOURS.get(status, "yellow"))
        self._put(" ".join((now, opening, answer, *rest)))

    def _tell(self, news: str) -> None:
        self._put(click.style(f"{_now()} {news}", fg="yellow", bold=True))

    def _put(self, line: str) -> None:
        try:
            self._write(line)
        except BrokenPipeError:
            raise_signal(SIGINT)  # whoever read, like `head`, has gone


def _now() -> str:
    return time.strftime("%H:%M:%S")


def _row(cells: Sequence[str], columns: Sequence[tuple[str, int]]) -> str:
    widths = [width for _, width in columns]
    return " ".join(
        _fit(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True)
    )


def _fit(text: str, width: int) -> str:
    """The text in so many columns at the most, without what would move the cursor."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= width else shown[: width - 2] + ".."


def _tail(email_id: str) -> str:
    """The end of what stands before the @, which tells mails apart."""
    return email_id.partition("@")[0][-8:]


class StandIn:
    """Segment's Tracking API on loopback: takes batches, or answers 503 while it is `down`."""

    def __init__(self, ledger: Ledger) -> None:
        self.down = False
        self._refused_some = False
        self._ledger = ledger
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Take requests, in a thread."""
        app = Starlette(routes=[Route("/v1/batch", self._batch, methods=["POST"])])
        server = uvicorn.Server(
            uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
        )
        thread = threading.Thread(target=server.run, args=([self._listener],), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join()

    async def _batch(self, request: Request) -> JSONResponse:
        body = await request.body()
        if self.down:
            self._refused_some = True
            return JSONResponse({"success": False}, status_code=503)
        after_outage, self._refused_some = self._refused_some, False
        messages = json.loads(gzip.decompress(body))["batch"]
        await run_in_threadpool(self._ledger.arrived, messages, after_outage=after_outage)
        return JSONResponse({"success": True})


class Traffic:
    """Posts journeys to the relay at an address, one webhook at a time, as Vero does."""

    def __init__(self, host: str, port: int, ledger: Ledger, rng: Random) -> None:
        self._connection = HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
        self._ledger = ledger
        self._rng = rng

    def run(self, stopping: threading.Event) -> None:
        """Post until told to stop, at a pace at which a person can read along."""
        for webhook in journeys(self._rng):
            while not stopping.is_set():
                try:
                    self._ledger.send(webhook, self._post)
                except (OSError, HTTPException):
                    # relay is not up yet, or not any more.
                    self._connection.close()
                    stopping.wait(_AGAIN_SECONDS)
                else:
                    break
            if stopping.wait(self._rng.uniform(*_PAUSE_SECONDS)):
                break
        self._connection.close()

    def _post(self, body: bytes) -> Mapping[str, str]:
        self._connection.request("POST", PATH, body)
        answer: Mapping[str, str] = json.load(self._connection.getresponse())
        return answer


def outages(segment: StandIn, ledger: Ledger, stopping: threading.Event) -> None:
    """Let Segment be down for a while, again and again, until told to stop."""
    while not stopping.wait(_OUTAGE_EVERY_SECONDS):
        ledger.tell(f"Segment is down for {_OUTAGE_SECONDS} s: events wait on disk")
        segment.down = True
        stopping.wait(_OUTAGE_SECONDS)
        segment.down = False


@contextmanager
def playing(*plays: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run each of these in a thread, and tell it to stop at the end."""
    stopping = threading.Event()
    threads = [threading.Thread(target=play, args=(stopping,), daemon=True) for play in plays]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def introduction(url: str, link: str) -> str:
    """What the demo is, where to look, and how to go from here to the real thing.

    Args:
        url: of relay.
        link: that opens its console, once.
    """
    title = click.style("relay demo", bold=True)
    return f"""\
{title}: webhooks as Vero sends them -> the real relay -> a stand-in for Segment.
All of it is made up, and nothing leaves this machine. Ctrl-C ends it.

Watch it in a browser, by this link, which works once:
  {link}
Send in a webhook of your own, from another terminal:
  curl {url}{PATH} \\
    -d '{{"type": "clicked", "user": {{"id": 42, "email": "you@example.com"}}}}'
Look inside:
  {url}/healthz  {url}/readyz  {url}/metrics
For real:
  export SEGMENT_WRITE_KEY=...  # of your Segment source; workspace in the EU: SEGMENT_REGION=eu too
  export RELAY_VERO_SECRET=...  # 16 characters or more, as from: openssl rand -hex 16
  make run                      # then paste https://<your host>/webhooks/vero/<secret> into Vero
"""
