"""Customers of a shop: the calls about them, and the requests to Vero that each call must become.

No two requests about one customer that follow each other are the same, so that each request shows
which call it is from.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from tests.harness.vero import Request, people_in

REFUSED: Final = "Refused"
"""The name of an event that Vero must refuse."""

_JANUARY: Final = 1_767_225_600
_PLANS: Final = ("free", "pro", "team")
_NO_TAGS: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True)
class Expected:
    """A request that a call must become."""

    method: str
    path: str
    body: dict[str, Any]

    @property
    def people(self) -> tuple[str, ...]:
        """Whom it writes to; see `people_in`."""
        return people_in(self.body)

    def is_(self, request: Request) -> bool:
        """Return whether the request is this one."""
        return self == Expected(request.method, request.path, request.body)


@dataclass(frozen=True)
class CustomerCall:
    """A call, and what must become of it.

    Attributes:
        message_id: its serial number.
        document: as it is posted.
        requests: those that it becomes, in their order; those that Vero must refuse as well.
        fate: the state of its entry, or why it is a dead letter; `ignored` if it has no entry.
    """

    message_id: str
    document: dict[str, Any]
    requests: tuple[Expected, ...]
    fate: str = "delivered"


class Customers:
    """Makes the calls about customers whom no other makes calls about.

    Args:
        rng: decides about everything.
        name: of the shop, a part of all ids.
        count: how many customers there are at first; a quarter has no id but an email.
    """

    def __init__(self, rng: Random, name: str, count: int = 12) -> None:
        self._rng = rng
        self._name = name
        self._made = 0
        self._ids = [self._new_id(number) for number in range(count - count // 4)]
        self._emails = [f"{name}-{number}@example.org" for number in range(count // 4)]
        self._known: set[str] = set()
        self._latest: dict[str, Expected] = {}
        self._kinds: dict[Callable[[], CustomerCall | None], int] = {
            self._identify: 30,
            self._track: 30,
            self._group: 8,
            self._page: 5,
            self._unsubscribe: 5,
            self._resubscribe: 5,
            self._alias: 8,
            self._alias_of_nobody: 2,
            self._delete: 2,
            self._refused: 3,
            self._badly_tagged: 3,
            self._incomplete: 2,
            self._ignored: 2,
        }

    def calls(self) -> Iterator[CustomerCall]:
        """Yield calls without end."""
        while True:
            self._made += 1
            (make,) = self._rng.choices([*self._kinds], [*self._kinds.values()])
            call = make()
            if call and not self._repeats(call):
                self._note(call)
                yield call

    def _repeats(self, call: CustomerCall) -> bool:
        """Return whether a request equals the one before it about the same customer."""
        return any(
            self._latest.get(name) == request
            for request in call.requests
            for name in request.people
        )

    def _note(self, call: CustomerCall) -> None:
        for request in call.requests:
            for name in request.people:
                self._latest[name] = request
        if call.fate == "rejected":
            return
        for request in call.requests:
            gone, *new = request.people
            if request.path in {"users/reidentify", "users/delete"}:
                self._known.discard(gone)
                self._known.update(new)
            else:
                self._known.add(gone)
            if new:
                self._ids = [each for each in self._ids if each not in request.people] + new

    @property
    def _serial(self) -> str:
        return f"{self._name}-{self._made}"

    @property
    def _second(self) -> int:
        """When the call happens, in seconds since the epoch: another one for each call."""
        return _JANUARY + self._made

    def _new_id(self, number: int) -> str:
        forms = ("{}-{}", "{}-{}@example.com", "{}_ü {}")
        return self._rng.choice(forms).format(self._name, number)

    def _anybody(self) -> tuple[str, bool]:
        """Return a customer's id, or email, and whether it is an id."""
        if self._rng.random() < 0.2 and self._emails:
            return self._rng.choice(self._emails), False
        return self._rng.choice(self._ids), True

    def _document(self, kind: str, id_: str | None = None, **fields: object) -> dict[str, Any]:
        moment = datetime.fromtimestamp(self._second, UTC).isoformat(timespec="milliseconds")
        document = {"type": kind, "messageId": self._serial, "timestamp": moment, **fields}
        return document | {"userId": id_, "anonymousId": None}

    def _with_tags(
        self, document: dict[str, Any], who: dict[str, str], main: Expected
    ) -> CustomerCall:
        """Return the call, in some cases with tags, of which some are for another customer."""
        if self._rng.random() < 0.7:
            return CustomerCall(self._serial, document, (main,))
        tags: dict[str, Any] = {
            "action": self._rng.choice(["add", "add", "remove"]),
            "values": [f"tag-{self._serial}", self._rng.choice(["vip", "new"])],
        }
        if self._rng.random() < 0.4:
            tags["id"] = self._rng.choice(self._ids)
            who = {"id": tags["id"]}
        request = Expected("PUT", "users/tags/edit", {**who, tags["action"]: tags["values"]})
        tagged = document | {"integrations": {"All": True, "Vero": {"tags": tags}}}
        return CustomerCall(self._serial, tagged, (main, request))

    def _identify(self) -> CustomerCall:
        name, is_id = self._anybody()
        traits: dict[str, Any] = {"serial": self._serial, "plan": self._rng.choice(_PLANS)}
        if not is_id:
            traits["email"] = name
        elif self._rng.random() < 0.3:
            traits["email"] = f"new-{self._serial}@example.net"
        email = traits.get("email") or (name if "@" in name else None)
        document = self._document("identify", name if is_id else None, traits=traits)
        who = {"id": name} if is_id else {"email": name}
        body = who | ({"email": email} if email else {})
        data = traits | ({"id": name} if is_id else {})
        return self._with_tags(
            document, who, Expected("POST", "users/track", body | {"data": data})
        )

    def _about(self, name: str, *, is_id: bool) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the fields of a call that is no identify, and the person as requests name it."""
        if is_id:
            return {"id_": name}, {"id": name}
        return {"id_": None, "context": {"traits": {"email": name}}}, {"email": name}

    def _event(self, name: str, who: dict[str, str], data: Mapping[str, Any]) -> Expected:
        extras = {"created_at": self._second, "source": "segment"}
        body = {"event_name": name, "identity": who, "data": data, "extras": extras}
        return Expected("POST", "events/track", body)

    def _track(self) -> CustomerCall:
        name, is_id = self._anybody()
        fields, who = self._about(name, is_id=is_id)
        properties = {"serial": self._serial, "price": 12.5, "items": [{"sort": "tomato"}]}
        event = self._rng.choice(["Seeds Ordered", "Cart Left"])
        document = self._document("track", **fields, event=event, properties=properties)
        return self._with_tags(document, who, self._event(event, who, properties))

    def _group(self) -> CustomerCall:
        name, is_id = self._anybody()
        fields, who = self._about(name, is_id=is_id)
        traits = {"serial": self._serial}
        document = self._document("group", **fields, groupId="acme", traits=traits)
        body = {**who, "changes": {"group": {**traits, "id": "acme"}}}
        return CustomerCall(self._serial, document, (Expected("PUT", "users/edit", body),))

    def _page(self) -> CustomerCall:
        name, is_id = self._anybody()
        fields, who = self._about(name, is_id=is_id)
        url = f"https://shop.example.com/{self._serial}"
        document = self._document("page", **fields, name="Seeds", properties={"url": url})
        return CustomerCall(
            self._serial, document, (self._event("viewed_page", who, {"url": url}),)
        )

    def _unsubscribe(self) -> CustomerCall:
        name, is_id = self._anybody()
        fields, who = self._about(name, is_id=is_id)
        properties = {}
        if is_id and self._rng.random() < 0.5:
            named = self._rng.choice(self._ids)
            properties, who = {"id": named}, {"id": named}
        event = self._rng.choice(["Unsubscribe", "un_subscribed"])
        document = self._document("track", **fields, event=event, properties=properties)
        extras = {"created_at": self._second, "source": "segment"}
        request = Expected("POST", "users/unsubscribe", {**who, "extras": extras})
        return CustomerCall(self._serial, document, (request,))

    def _resubscribe(self) -> CustomerCall:
        name, is_id = self._anybody()
        fields, who = self._about(name, is_id=is_id)
        document = self._document("track", **fields, event="Resubscribe", properties={})
        request = Expected("POST", "users/resubscribe", dict(who))
        return CustomerCall(self._serial, document, (request,))

    def _alias(self) -> CustomerCall | None:
        """Give a customer another id, in some cases that of another customer."""
        known = [each for each in self._ids if each in self._known]
        if len(known) < 3:
            return None
        old, other = self._rng.sample(known, 2)
        new = other if self._rng.random() < 0.2 and len(self._ids) > 6 else None
        new = new or self._new_id(1_000 + self._made)
        document = self._document("alias", new, previousId=old)
        main = Expected("PUT", "users/reidentify", {"id": old, "new_id": new})
        return self._with_tags(document, {"id": new}, main)

    def _alias_of_nobody(self) -> CustomerCall:
        nobody, name = f"nobody-{self._serial}", self._rng.choice(self._ids)
        document = self._document("alias", name, previousId=nobody)
        request = Expected("PUT", "users/reidentify", {"id": nobody, "new_id": name})
        return CustomerCall(self._serial, document, (request,), "rejected")

    def _delete(self) -> CustomerCall | None:
        known = [each for each in self._ids if each in self._known]
        if not known:
            return None
        name = self._rng.choice(known)
        request = Expected("POST", "users/delete", {"id": name})
        return CustomerCall(self._serial, self._document("delete", name), (request,))

    def _refused(self) -> CustomerCall:
        name, is_id = self._anybody()
        fields, who = self._about(name, is_id=is_id)
        properties = {"serial": self._serial}
        document = self._document("track", **fields, event=REFUSED, properties=properties)
        return CustomerCall(
            self._serial, document, (self._event(REFUSED, who, properties),), "rejected"
        )

    def _badly_tagged(self) -> CustomerCall:
        name, is_id = self._anybody()
        fields, who = self._about(name, is_id=is_id)
        properties = {"serial": self._serial}
        tags = {"action": "add", "values": "vip"}
        document = self._document(
            "track",
            **fields,
            event="Cart Left",
            properties=properties,
            integrations={"Vero": {"tags": tags}},
        )
        request = self._event("Cart Left", who, properties)
        return CustomerCall(self._serial, document, (request,), "bad_tags")

    def _incomplete(self) -> CustomerCall:
        document = self._document("track", self._rng.choice(self._ids), properties={})
        return CustomerCall(self._serial, document, (), "incomplete")

    def _ignored(self) -> CustomerCall:
        document = self._document("track", self._rng.choice(self._ids), event="Cart Left")
        return CustomerCall(
            self._serial, document | {"integrations": {"Vero": False}}, (), "ignored"
        )
