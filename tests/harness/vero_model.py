"""A model of Vero's Track API v2: the people that it keeps, and what each request does to them.

From Vero's reference, its libraries, and what Segment's former destination was answered.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

DEDUPE_SECONDS: Final = 5 * 60

Body = Mapping[str, Any]

_EMAIL: Final = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+")
_TOO_LONG: Final = 255
_SEPARATORS: Final = re.compile(r"[\s_-]+")
# This tag is Vero's own: it unsubscribes a person.
_UNSUBSCRIBED: Final = "unsubscribed"


class ApiError(Exception):
    """A request that Vero does not take.

    Attributes:
        status: of the answer.
        message: Vero's words.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Event:
    """Something that a person did.

    Attributes:
        created_at: seconds since the epoch.
    """

    name: str
    data: Body
    created_at: int | None


@dataclass
class Person:
    """A profile.

    Attributes:
        traits: the properties, the group among them.
        events: oldest first, without those that Vero takes for copies.
    """

    id: str | None
    email: str | None = None
    traits: dict[str, Any] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    subscribed: bool = True
    events: list[Event] = field(default_factory=list)

    @property
    def group(self) -> Any:  # noqa: ANN401 (any JSON)
        """The group's properties; None if the person is in none."""
        return self.traits.get("group")


class People:
    """The people of one project.

    Args:
        clock: seconds, monotonic.

    Attributes:
        by_name: each person by id; by email where there is only that.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.by_name: dict[str, Person] = {}
        self._clock = clock
        self._seen: dict[str, float] = {}

    def take(self, method: str, path: str, body: Body) -> None:
        """Carry out a request.

        Args:
            method: of HTTP.
            path: behind `/api/v2/`.
            body: without the token.

        Raises:
            ApiError: it is not taken; nothing has changed.
            LookupError: there is no such endpoint.
        """
        for each in (body, body.get("identity", {})):
            _check_lengths(each)
        match method, path:
            case "POST", "users/track":
                self._identify(body)
            case "PUT", "users/edit":
                self._edit(body)
            case "PUT", "users/reidentify":
                self._reidentify(body)
            case "POST", "users/unsubscribe":
                self._person(body).subscribed = False
            case "POST", "users/resubscribe":
                self._person(body).subscribed = True
            case "POST", "users/delete":
                self._delete(body)
            case "PUT", "users/tags/edit":
                self._tag(body)
            case "POST", "events/track":
                self._track(body)
            case _:
                raise LookupError(method, path)

    def _identify(self, body: Body) -> None:
        data = _object(body.get("data", {}), "data")
        self._person(body).traits.update(data)

    def _edit(self, body: Body) -> None:
        changes = _object(body.get("changes"), "changes")
        self._person(body).traits.update(changes)

    def _reidentify(self, body: Body) -> None:
        old, new = _text(body, "id"), _text(body, "new_id")
        person = self._known(old)
        del self.by_name[old]
        other = self.by_name.pop(new, None) or Person(new)
        person.id = new
        person.email = other.email or person.email
        person.traits |= other.traits
        person.tags |= other.tags
        person.subscribed &= other.subscribed
        person.events = other.events + person.events
        self.by_name[new] = person

    def _delete(self, body: Body) -> None:
        name = _text(body, "id")
        self._known(name)
        del self.by_name[name]

    def _tag(self, body: Body) -> None:
        if not body.keys() & {"add", "remove"}:
            raise ApiError(HTTPStatus.BAD_REQUEST, "add or remove is required")
        added, removed = (_texts(body.get(action, []), action) for action in ("add", "remove"))
        person = self._person(body)
        person.tags = (person.tags | added) - removed
        if _UNSUBSCRIBED in added:
            person.subscribed = False

    def _track(self, body: Body) -> None:
        name = _text(body, "event_name")
        data = _object(body.get("data", {}), "data")
        extras = _object(body.get("extras", {}), "extras")
        identity = _object(body.get("identity"), "identity")
        person = self._person(identity)
        if not self._is_copy(name, identity, data):
            person.events.append(Event(name, data, extras.get("created_at")))

    def _is_copy(self, name: str, identity: Body, data: Body) -> bool:
        words = _SEPARATORS.sub(" ", name).lower()
        key = json.dumps([words, identity, data], sort_keys=True)
        now = self._clock()
        seen_at = self._seen.get(key)
        if seen_at is not None and now - seen_at < DEDUPE_SECONDS:
            return True
        self._seen[key] = now
        return False

    def _person(self, who: Body) -> Person:
        """Return the person that a request names, a new one if need be. Only an id is matched."""
        if not (who.get("id") or who.get("email")):
            raise ApiError(HTTPStatus.BAD_REQUEST, "id or email is required")
        id_ = _text(who, "id") if who.get("id") else None
        email = _text(who, "email") if who.get("email") else None
        if email is not None and not _EMAIL.fullmatch(email):
            raise ApiError(HTTPStatus.BAD_REQUEST, "email is invalid")
        person = self.by_name.setdefault(id_ or str(email), Person(id_))
        person.email = email or person.email
        return person

    def _known(self, name: str) -> Person:
        if name not in self.by_name:
            raise ApiError(HTTPStatus.NOT_FOUND, "There is no such user")
        return self.by_name[name]


def _check_lengths(body: Any) -> None:  # noqa: ANN401 (any JSON)
    if not isinstance(body, Mapping):
        return
    for name in ("id", "new_id", "email", "event_name"):
        if len(str(body.get(name, ""))) >= _TOO_LONG:
            raise ApiError(HTTPStatus.BAD_REQUEST, f"{name} is too long")


def _text(body: Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise ApiError(HTTPStatus.BAD_REQUEST, f"{name} is required")
    return value


def _texts(value: object, name: str) -> set[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ApiError(HTTPStatus.BAD_REQUEST, f"{name} is not a list of strings")
    return {*value}


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ApiError(HTTPStatus.BAD_REQUEST, f"{name} is not an object")
    return value
