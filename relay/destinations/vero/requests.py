"""The requests that Vero's Track API takes."""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from relay.events import DeadReason, Unusable

_BASE: Final = "/api/v2"
USERS_TRACK: Final = f"{_BASE}/users/track"
USERS_EDIT: Final = f"{_BASE}/users/edit"
REIDENTIFY: Final = f"{_BASE}/users/reidentify"
UNSUBSCRIBE: Final = f"{_BASE}/users/unsubscribe"
RESUBSCRIBE: Final = f"{_BASE}/users/resubscribe"
DELETE: Final = f"{_BASE}/users/delete"
TAGS_EDIT: Final = f"{_BASE}/users/tags/edit"
EVENTS_TRACK: Final = f"{_BASE}/events/track"

# Vero's reference: "less than 255 characters".
_TOO_LONG: Final = 255
_BOUNDED: Final = {
    "id": "the user id",
    "new_id": "the new user id",
    "email": "the address",
    "event_name": "the name of the event",
}


class Request(Struct, frozen=True):
    """A request to Vero, without the token."""

    method: str
    path: str
    body: Mapping[str, Any]

    @property
    def people(self) -> tuple[str, ...]:
        """The ids of the people that it writes to; the address of a person without an id."""
        who = self.body.get("identity", self.body)
        ids = (who.get("id") or who["email"], self.body.get("new_id"))
        return tuple(each for each in ids if each is not None)

    def fault(self) -> Unusable | None:
        """Return why Vero would refuse it, or drop it behind a 200; None if there is no reason."""
        for field, value in {**self.body, **self.body.get("identity", {})}.items():
            if field in _BOUNDED and len(value) >= _TOO_LONG:
                detail = f"{_BOUNDED[field]} has {len(value)} characters; Vero takes fewer than"
                return Unusable(DeadReason.OVERSIZED, f"{detail} {_TOO_LONG}")
        return None
