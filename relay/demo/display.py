"""The demo's screen: one line for each event and call, with what was sent for it."""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from signal import SIGINT, raise_signal
from typing import Any, Final

import click

from relay.demo.traffic import Webhook
from relay.events import Collection

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
    *(("time", 8), ("comes in", 12), ("about", 18), ("relay", 8)),
    *(("goes out", 20), ("identified by", 21), ("email_id", 8), ("  after", 7)),
)
_COLOURS: Final = {"accepted": "green", "duplicate": "cyan", "ignored": "blue", "dead": "red"}
_ANSWER_WIDTH: Final = 67  # nothing follows it on its line
_LATE_SECONDS: Final = 1.0
_AFTER_WIDTH: Final = _COLUMNS[-1][1]
_TAGS: Final = "users/tags/edit"


class Ledger:
    """A record of what came in and what was sent for it, printed as a line for each.

    Args:
        write: prints a line.
        clock: returns monotonic seconds.
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
        self._called: defaultdict[str, deque[tuple[str, float]]] = defaultdict(deque)

    def send(self, webhook: Webhook, post: Callable[[bytes], Mapping[str, str]]) -> None:
        """Post the webhook; print its line now or, if it is accepted, when Segment receives it."""
        # The lock makes sure that the answer is noted before the event arrives at Segment.
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
                text = _fit(status + reason + error, _ANSWER_WIDTH)
                self._show(webhook.kind, webhook.recipient, text)

    def arrived(self, messages: Sequence[Mapping[str, Any]], *, after_outage: bool) -> None:
        """Print a line for each message that Segment has received."""
        with self._lock:
            if after_outage:
                self._announce(f"Segment is back: {len(messages)} waiting events arrived")
            for message in messages:
                self._counts["arrived"] += 1
                self._show_arrival(message)

    def call(self, method: str, person: str) -> None:
        """Note a call of Segment's library about a person."""
        with self._lock:
            self._counts["called"] += 1
            self._called[person].append((method, self._clock()))

    def requested(self, path: str, body: Mapping[str, Any]) -> None:
        """Print a line for a request that Vero has received."""
        with self._lock:
            self._counts["requested"] += 1
            who = body.get("identity", body)
            person = who.get("id") or who.get("email") or "nobody"
            if path == _TAGS:
                self._show_request("", person, path, "")
            elif calls := self._called[person]:  # the calls of one person come in their order
                method, called_at = calls.popleft()
                self._show_request(f"{method}()", person, path, self._after(called_at))
            else:
                self._show_request("(yours)", person, path, "")

    def print_headings(self) -> None:
        """Print the headings of the columns."""
        self._put(click.style(_row([heading for heading, _ in _COLUMNS], _COLUMNS), bold=True))

    def announce(self, text: str) -> None:
        """Print a line that is not about one event."""
        with self._lock:
            self._announce(text)

    def summary(self, waiting: int) -> str:
        """Return the totals; `waiting` is the number of events stored and not yet delivered."""
        counts = self._counts
        note = "\nrelay would deliver these at its next start; the demo discards them."
        return (
            f"{counts['in']} webhooks sent: {counts['accepted']} accepted,"
            f" {counts['duplicate']} duplicate, {counts['ignored']} ignored,"
            f" {counts['dead']} dead. Delivered to Segment: {counts['arrived']};"
            f" still waiting: {waiting}."
            f" {counts['called']} calls made; requests to Vero: {counts['requested']}."
            + (note if waiting else "")
        )

    def _show_arrival(self, message: Mapping[str, Any]) -> None:
        event, user_id = message["event"], message["userId"]
        if message["messageId"] in self._awaited:
            webhook, posted_at = self._awaited.pop(message["messageId"])
            kind, recipient = webhook.kind, webhook.recipient
            after = self._after(posted_at)
        else:
            # The user has posted a webhook of their own.
            self._counts.update(("in", "accepted"))
            kind = _TYPES[Collection(event)]
            recipient = message["context"].get("traits", {}).get("email") or user_id
            after = click.style("yours".rjust(_AFTER_WIDTH), fg="magenta")
        person = f"userId {user_id}" if user_id else f"anonymousId {message['anonymousId']}"
        email_id = _tail(message["properties"].get("email_id", "-"))
        got = _row((event, person, email_id), _COLUMNS[4:-1])
        self._show(kind, recipient, "accepted", got, after)

    def _show_request(self, call: str, person: str, path: str, after: str) -> None:
        sent = _row((path, f"id {person}", ""), _COLUMNS[4:-1])
        self._show(call, person, "accepted" if call else " " * len("accepted"), sent, after)

    def _after(self, since: float) -> str:
        seconds = self._clock() - since
        colour = "yellow" if seconds > _LATE_SECONDS else None
        return click.style(f"{seconds:.2f} s".rjust(_AFTER_WIDTH), fg=colour)

    def _show(self, kind: str, recipient: str, answer: str, *rest: str) -> None:
        now = click.style(_now(), dim=True)
        opening = _row((kind, recipient), _COLUMNS[1:3])
        status = answer.partition(":")[0]
        answer = click.style(answer, fg=_COLOURS.get(status, "yellow"))
        self._put(" ".join((now, opening, answer, *rest)))

    def _announce(self, text: str) -> None:
        self._put(click.style(f"{_now()} {text}", fg="yellow", bold=True))

    def _put(self, line: str) -> None:
        try:
            self._write(line)
        except BrokenPipeError:
            raise_signal(SIGINT)  # the reader, such as `head`, has gone


def _now() -> str:
    return time.strftime("%H:%M:%S")


def _row(cells: Sequence[str], columns: Sequence[tuple[str, int]]) -> str:
    widths = [width for _, width in columns]
    return " ".join(
        _fit(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True)
    )


def _fit(text: str, width: int) -> str:
    """Return the text cut to the width, without characters that would move the cursor."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= width else shown[: width - 2] + ".."


def _tail(email_id: str) -> str:
    """Return the end of the part before the @, which differs from email to email."""
    return email_id.partition("@")[0][-8:]


def introduction(url: str, path: str, key: str, link: str) -> str:
    """Return what the demo is, where to look, and how to run relay for real.

    Args:
        url: base URL of relay.
        path: where it receives webhooks.
        key: the write key with which it takes calls.
        link: opens its console, once.
    """
    title = click.style("relay demo", bold=True)
    return f"""\
{title}: webhooks as Vero sends them   -> the real relay -> a stand-in for Segment;
            calls of Segment's own library -> the real relay -> a stand-in for Vero.
All events are made up, and nothing leaves this machine. Press Ctrl-C to end.
Twice a minute Segment is "down" for a few seconds, to show that nothing is lost.

Watch it in a browser (this link works once):
  {link}
Send a webhook of your own, from another terminal:
  curl {url}{path} \\
    -d '{{"type": "clicked", "user": {{"id": 42, "email": "you@example.com"}}}}'
Make a call of your own:
  curl -u {key}: {url}/v1/identify -d '{{"userId": "42", "traits": {{"plan": "pro"}}}}'
Health and metrics:
  {url}/healthz  {url}/readyz  {url}/metrics
For real:
  export SEGMENT_WRITE_KEY=...  # of your Segment source; for an EU workspace also SEGMENT_REGION=eu
  export RELAY_VERO_SECRET=...  # 16 characters or more, for example from: openssl rand -hex 16
  make run                      # then paste https://<your host>/webhooks/vero/<secret> into Vero
The other direction, instead or as well:
  export VERO_AUTH_TOKEN=...    # of your Vero project
  export RELAY_SEGMENT_WRITE_KEY=...  # 16 characters or more; your Segment libraries use it
"""
