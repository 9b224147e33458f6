"""Makes up webhooks as Vero sends them, ordinary ones and odd ones."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, Final

from msgspec import Struct

_AT_ONCE: Final = 3

_REMOVE: Final = object()
_SAMPLE_USER: Final = {"id": 123, "email": "steve@getvero.com"}  # what Vero's Test button sends


def _padded(value: str) -> str:
    return f"  {value} "


def _in_milliseconds(seconds: int) -> int:
    return seconds * 1000


# The events of one email, and what is odd about it: for each path, the value to put there, or a
# function of the value. Most oddities have been seen in Vero's webhooks; the rest must do no harm.
# "again" repeats the previous webhook, "cut" sends the first half of it.
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
    ("user_updated", {"type": _REMOVE, "action": "user_updated"}),
    ("sent delivered opened clicked", {"user.id": _REMOVE}),
    ("sent delivered unsubscribed", {"user.id": " "}),
    ("sent delivered opened", {"user.id": str, "campaign.id": str}),
    ("sent delivered", {"user": {"id": "zoe@example.com", "email": "zoe@example.com"}}),
    ("sent delivered", {"user.email": None, "campaign.sent_to": _REMOVE}),
    ("sent delivered opened", {"user": {"id": None, "email": None}}),
    ("sent", {"user": {"id": None, "email": None}, "campaign.sent_to": _REMOVE}),
    ("sent", {"user": _SAMPLE_USER}),
    ("sent opened", {"user.email": _padded, "campaign.name": _padded, "message_id": _padded}),
    ("sent delivered opened", {"message_id": _REMOVE}),
    ("unsubscribed", {"campaign": _REMOVE, "time": _REMOVE}),
    ("sent delivered opened", {"time": _REMOVE}),
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
    """A webhook as Vero would send it: its type, its recipient and its body."""

    kind: str
    recipient: str
    body: bytes


def journeys(rng: Random, *, clock: Callable[[], float] = time.time) -> Iterator[Webhook]:
    """Yield webhooks without end: ordinary ones first, then each journey before any repeats.

    Args:
        rng: decides everything but the time.
        clock: returns seconds since 1970.
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
        # Vero gives everything other names in this one.
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
    if oddity is _REMOVE:
        document.pop(key, None)
    else:
        document[key] = oddity(document[key]) if callable(oddity) else oddity


def _recipient(document: Mapping[str, Any]) -> str:
    user, campaign = document["user"], document.get("campaign", {})
    if address := user.get("email") or campaign.get("sent_to"):
        return str(address).strip()
    return f"user {user['id']}" if user.get("id") else "nobody"
