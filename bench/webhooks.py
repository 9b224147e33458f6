"""Webhooks to post: Vero's usual ones, each with a number of its own.

Both loads fill in the same templates, in which `%s` stands for the webhook's number.
"""

import json
import time
from typing import Any, Final

_AGENT: Final = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15"
# More mails are sent and delivered than opened; the other types are rare.
_TYPES: Final = (
    *("sent", "delivered", "opened", "sent", "delivered", "clicked", "sent", "delivered"),
    *("opened", "sent", "delivered", "bounced", "opened", "unsubscribed", "sent", "complained"),
)


def templates() -> list[str]:
    """Return one body for each place in the mix, dated now."""
    now = int(time.time())
    return [json.dumps(_webhook(kind, now), separators=(",", ":")) for kind in _TYPES]


def body(template: str, number: int) -> bytes:
    """Return the webhook with this number."""
    return template.replace("%s", str(number)).encode()


def number_of(email_id: str) -> int:
    """Return the number of the webhook that a track call was made from."""
    return int(email_id.partition(".")[0])


def _webhook(kind: str, now: int) -> dict[str, Any]:
    email_id = "%s.20260301.7F3A@mail.example.com"
    webhook: dict[str, Any] = {
        "type": kind,
        f"{kind}_at": now,
        "user": {"id": "customer-%s", "email": "reader-%s@example.com"},
    }
    if kind == "unsubscribed":
        webhook["campaign"] = {
            "campaign_title": "Spring catalogue",
            "series_title": "Seasons",
            "channel": "email",
            "email_subject": "Everything that grows in March",
            "variation_name": "Short subject",
            "message_id": email_id,
        }
        return webhook
    webhook["message_id"] = email_id
    webhook["campaign"] = {
        "id": 48_213,
        "type": "behavioural",
        "name": "Spring catalogue",
        "subject": "Everything that grows in March, and what to sow before it does",
        "trigger-event": "Viewed catalogue",
        "permalink": "https://mail.example.com/view/1/5be31f70a94c4d0c8ad1",
        "variation": "Short subject",
        "group": "Catalogues",
        "channel": "email",
        "sent_to": "reader-%s@example.com",
        "locale": "en-GB",
    }
    if kind in {"opened", "clicked"}:
        webhook["user_agent"] = _AGENT
    if kind == "bounced":
        webhook |= {
            "bounce_type": "hard",
            "bounce_code": "550",
            "bounce_message": "550 5.1.1 no such user here",
        }
    return webhook
