"""Names the kinds of what goes to a destination: collections of email events, or types of calls."""

from msgspec import Struct

from relay.destinations import Destination
from relay.events import CallType
from relay.routes import Routes


class Kinds(Struct, frozen=True):
    """What goes to one destination.

    Attributes:
        route: where it comes from and where it goes, for people.
        sources: the names of the sources that are configured.
        collections: the names of its kinds.
        are_calls: whether these are types of calls, and not collections of email events.
    """

    route: str
    sources: tuple[str, ...]
    collections: tuple[str, ...]
    are_calls: bool


def kinds_for(destination: Destination, routes: Routes) -> Kinds:
    """Return what goes to the destination."""
    sources = [r.source for r in routes if r.destination.name == destination.name]
    configured = tuple(source.name for source in sources if source.configured)
    return Kinds(
        route=f"{', '.join(configured) or 'no source'} \N{RIGHTWARDS ARROW} {destination.title}",
        sources=configured,
        collections=tuple(dict.fromkeys(each for s in sources for each in s.collections)),
        are_calls=any(source.collections is CallType for source in sources),
    )
