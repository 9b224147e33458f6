"""The promise, as it is told from outside: what was posted, answered, stored and delivered.

Every webhook answered `accepted` is delivered at least once with the right content and time, or is
a dead letter with a reason; copies share one `messageId`; nothing else is delivered.
"""

import json
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from relay import __version__
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import Reply
from tests.harness.stores import Store

EVENTS = {
    "sent": "Email Sent",
    "delivered": "Email Delivered",
    "opened": "Email Opened",
    "clicked": "Email Link Clicked",
    "unsubscribed": "Email Unsubscribed",
    "bounced": "Email Bounced",
    "complained": "Email Marked as Spam",
}
# What is to become of a webhook, and how often it is posted.
FATES = {
    "delivered": 790,
    "rejected": 3,
    "oversized": 7,
    "unknown_type": 50,
    "no_recipient": 50,
    "unreadable": 50,
    "ignored": 50,
}

Message = dict[str, Any]
Judge = Callable[[list[Message]], Answer]


@dataclass
class Webhook:
    """A webhook, what must become of it, and what it was answered.

    Attributes:
        fate: `delivered`, `ignored`, or why it must be a dead letter.
        message: the track call it is to arrive as, but for its `messageId`; without a `timestamp`
            where that is the time of receipt.
        unique: whether it has an identity, without which each copy is an event of its own.
        doubted: whether it has been posted in vain, and may have been stored all the same.
    """

    body: bytes
    fate: str
    message: Message
    unique: bool
    posted_at: datetime | None = None
    answered_at: datetime | None = None
    message_id: str | None = None
    doubted: bool = False

    def answers(self, reply: Reply) -> bool:
        """Whether this is the right answer."""
        status, content = reply.status, reply.content
        if self.fate == "ignored":
            return (status, content["status"]) == (200, "ignored")
        if self.fate in {"unknown_type", "no_recipient", "unreadable"}:
            right = 400 if self.fate == "unreadable" else 200
            return (status, content["status"], content["reason"]) == (right, "dead", self.fate)
        outcomes = {"accepted", "duplicate"} if self.doubted else {"accepted"}
        if self.message_id:
            outcomes = {"duplicate"}
        same = content["message_id"] == (self.message_id or content["message_id"])
        return status == 200 and content["status"] in outcomes and same

    def arrived_as(self, message: Message) -> bool:
        """Whether the message is what it was to arrive as, whatever the `messageId`."""
        received_at = datetime.fromisoformat(message["timestamp"])
        posted_at = (self.posted_at or received_at) - timedelta(milliseconds=1)
        in_time = posted_at <= received_at <= (self.answered_at or received_at)
        message = {**message, "context": {**message["context"]}}
        del message["messageId"], message["context"]["library"]
        if "timestamp" not in self.message and in_time:
            del message["timestamp"]
        return message == self.message


def make_webhook(rng: Random, number: int) -> Webhook:
    (fate,) = rng.choices([*FATES], [*FATES.values()])
    kind = rng.choice([*EVENTS])
    email = f"reader-{number}@example.com"
    users: list[dict[str, Any]] = [
        {"id": number, "email": email},
        {"id": f" {number} "},
        {"email": email},
    ]
    user = rng.choice(users)
    properties = {
        "campaign_name": f"{fate} {number}",
        "campaign_id": str(number % 50),
        "email_subject": "x" * 40_000 if fate == "oversized" else f"Nº {number}, “for you”",
    }
    document: dict[str, Any] = {
        "type": {"unknown_type": "snoozed", "ignored": "converted"}.get(fate, kind),
        "user": {} if fate == "no_recipient" else user,
        "campaign": {
            "name": properties["campaign_name"],
            "id": number % 50,
            "subject": properties["email_subject"],
        },
    }
    message: Message = {
        "type": "track",
        "event": EVENTS[kind],
        "userId": str(number) if "id" in user else None,
        "anonymousId": None if "id" in user else email,
        "properties": properties,
        "context": {"integration": {"name": "vero", "version": __version__}},
        "integrations": {"Vero": False},
    }
    if "email" in user:
        message["context"]["traits"] = {"email": email}
    if timed := rng.random() < 0.9:
        document[f"{kind}_at"] = 1_767_225_600 + number
        moment = datetime.fromtimestamp(1_767_225_600 + number, UTC)
        message["timestamp"] = moment.isoformat(timespec="milliseconds")
    if mailed := rng.random() < 0.9:
        document["message_id"] = properties["email_id"] = f"mail-{number}"
    body = json.dumps(document).encode()
    # A mail is opened, and clicked in, any number of times.
    unique = timed or (mailed and kind not in {"opened", "clicked"})
    return Webhook(body[:-1] if fate == "unreadable" else body, fate, message, unique)


class Ledger:
    """What was posted and what was answered, by all senders together.

    Attributes:
        webhooks: each, by its body.
        faults: every answer that was not the right one.
        forgetful: whether the store may lose its own connection in the middle of a commit, and take
            for seen before what it has stored itself.
    """

    def __init__(self, rng: Random, *, forgetful: bool = False) -> None:
        self.forgetful = forgetful
        self.webhooks: dict[bytes, Webhook] = {}
        self.faults: list[str] = []
        self.answers = 0
        self.refusals = 0
        self._rng = rng
        self._told: list[Webhook] = []
        self._in_doubt: deque[Webhook] = deque()
        self._changed = threading.Condition()

    def next(self) -> Webhook:
        """The webhook to post next: a new one, a copy, or one that has had no answer."""
        with self._changed:
            choice = self._rng.random()
            if choice < 0.3 and self._in_doubt:
                return self._in_doubt.popleft()
            if choice < 0.4 and self._told:
                return self._rng.choice(self._told)
            webhook = make_webhook(self._rng, len(self.webhooks))
            webhook.doubted = self.forgetful
            webhook.posted_at = datetime.now(UTC)
            self.webhooks[webhook.body] = webhook
            return webhook

    def unanswered(self, webhook: Webhook) -> None:
        """It may have been stored or not."""
        with self._changed:
            if webhook.unique and not webhook.answered_at:
                webhook.doubted = True
                self._in_doubt.append(webhook)

    def refused(self, webhook: Webhook) -> None:
        """Relay cannot say now whether it is stored."""
        with self._changed:
            self.refusals += 1
        self.unanswered(webhook)

    def answered(self, webhook: Webhook, reply: Reply) -> None:
        """Relay has said what became of it."""
        with self._changed:
            if not webhook.answers(reply):
                self.faults.append(f"{webhook} was answered {reply}")
            if not webhook.answered_at:
                webhook.answered_at = datetime.now(UTC)
                webhook.message_id = reply.content.get("message_id")
                if webhook.unique:
                    self._told.append(webhook)
            self.answers += 1
            self._changed.notify_all()

    def await_answers(self, count: int) -> None:
        """Wait for so many more answers."""
        with self._changed:
            goal = self.answers + count
            assert self._changed.wait_for(lambda: self.answers >= goal, 60), "no answers"

    def broken_promises(self, store: Store, server: SegmentServer) -> list[str]:
        """Everything in which the store and Segment differ from what was posted and answered."""
        broken = list(self.faults)
        arrived = defaultdict(list)
        for message in server.accepted:
            arrived[message["messageId"]].append(message)
        entries = store.stored()
        for entry in entries:
            webhook = self.webhooks[entry.body]
            messages = arrived.pop(entry.message_id, [])
            if (entry.reason or entry.state) != webhook.fate:
                broken.append(f"{webhook} ended as {entry}")
            if bool(messages) != (webhook.fate == "delivered"):
                broken.append(f"{entry} arrived {len(messages)} times")
            if webhook.message_id not in {None, entry.message_id}:
                broken.append(f"{webhook} is stored as {entry}")
            broken += [
                f"{webhook} arrived as {message}"
                for message in messages
                if not webhook.arrived_as(message)
            ]
        broken += [f"arrived out of nowhere: {messages}" for messages in arrived.values()]
        kept = [entry.body for entry in entries]
        broken += [f"kept twice: {body!r}" for body, count in Counter(kept).items() if count > 1]
        there = {*kept}
        return broken + [
            f"lost: {webhook}"
            for webhook in self.webhooks.values()
            if webhook.answered_at and webhook.fate != "ignored" and webhook.body not in there
        ]


def well(batch: list[Message]) -> Answer:
    """Segment at its best: it only refuses what is to be refused."""
    names = [message["properties"]["campaign_name"] for message in batch]
    return Answer(400 if any(name.startswith("rejected") for name in names) else 200)


def misbehaving(rng: Random) -> Judge:
    def judge(batch: list[Message]) -> Answer:
        chance = rng.random()
        if chance < 0.02:
            return Answer(503)
        if chance < 0.04:
            return Answer(429, {"Retry-After": rng.choice("01")})
        if chance < 0.06:
            return Answer(0)
        return replace(well(batch), delay=0 if chance < 0.5 else rng.uniform(0, 0.3))

    return judge
