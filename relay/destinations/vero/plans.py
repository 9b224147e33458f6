"""Plans the requests for a call: the call itself, then its tags."""

from collections.abc import Mapping

from msgspec import Struct

from relay.addresses import is_email
from relay.destinations.vero.mapping import Who, main_request, person
from relay.destinations.vero.requests import Request
from relay.destinations.vero.settings import VeroDestinationSettings
from relay.destinations.vero.tags import tags_request
from relay.events import Call, Ignored, Unusable


class Plan(Struct, frozen=True):
    """The requests for one call, in their order.

    Attributes:
        fault: why the call's tags cannot be sent; None if they can, or if it has none.
    """

    requests: tuple[Request, ...]
    fault: Unusable | None = None

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes of the people that the requests write to."""
        people = {each: None for request in self.requests for each in request.people}
        return tuple(dict.fromkeys(map(_lane, people)))


def plan(call: Call, settings: VeroDestinationSettings) -> Plan | Ignored | Unusable:
    """Return the requests for a call, or why there is none.

    Tags go even if the call itself is ignored.
    """
    main = main_request(call, settings)
    fault = _fault(main)
    if fault:
        return fault
    tags = tags_request(call, _tagged(call, main, settings))
    fault = _fault(tags)
    sent = (main,) if fault else (main, tags)
    requests = tuple(each for each in sent if isinstance(each, Request))
    if isinstance(main, Ignored) and not requests:
        return fault or main
    return Plan(requests, fault)


def _tagged(
    call: Call, main: Request | Ignored | Unusable, settings: VeroDestinationSettings
) -> Who | None:
    """Return whom the call's tags are for, unless they name a person; None if nobody is known."""
    who = person(call, settings)
    if isinstance(who, Mapping):
        return who
    return {"id": main.people[0]} if isinstance(main, Request) else None


def _fault(planned: Request | Ignored | Unusable | None) -> Unusable | None:
    """Return why it cannot be sent."""
    if isinstance(planned, Request):
        return planned.fault()
    return planned if isinstance(planned, Unusable) else None


def _lane(person: str) -> str:
    """Return the lane of an id or an address.

    Vero takes an address without an id for the id. So an id that is an address has its lane.
    """
    return f"email:{person.lower()}" if is_email(person) else f"id:{person}"
