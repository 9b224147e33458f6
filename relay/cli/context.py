"""What every command for entries has at hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from msgspec import Struct

from relay.cli.app import configure_logs, configured, fingerprint_of, opened, reported
from relay.cli.output import Output
from relay.operations.search import Search
from relay.outbox.protocol import Outbox
from relay.routes import Mapping
from relay.service import segment_of


class Tools(Struct):
    """The outbox, how to search it, today's mapping, and how to print.

    Attributes:
        fingerprint: what stands for an address or an id in the record of operations.
    """

    outbox: Outbox
    search: Search
    mapping: Mapping
    output: Output
    fingerprint: Callable[[str], str]


@contextmanager
def tools(*, as_json: bool, reveal: bool = False) -> Iterator[Tools]:
    """All of them, for as long as the outbox is open; what it cannot do ends the command."""
    settings, sources = configured()
    configure_logs(settings)
    with opened(settings) as outbox, reported():
        yield Tools(
            outbox,
            Search(outbox.entries, sources),
            Mapping(sources, segment_of(settings)),
            Output(as_json=as_json, reveal=reveal),
            partial(fingerprint_of, settings),
        )
