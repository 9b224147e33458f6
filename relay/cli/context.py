"""Opens what the commands that read or change entries share: outbox, search, routes, output."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec import Struct

from relay.cli.app import configure_logs, load_settings
from relay.cli.outbox import open_outbox_or_exit, outbox_errors
from relay.cli.output import Output
from relay.operations.search import Search
from relay.outbox.protocol import Outbox
from relay.routes import Routes


class Context(Struct):
    """The outbox, its search, the routes and the output of one command.

    Attributes:
        fingerprint: returns what stands for an address or an id in the record of operations.
    """

    outbox: Outbox
    search: Search
    routes: Routes
    output: Output
    fingerprint: Callable[[str], str]


@contextmanager
def open_context(*, as_json: bool, reveal: bool = False) -> Iterator[Context]:
    """Open the outbox for a command; exit with a sentence if it fails."""
    settings, routes = load_settings()
    configure_logs(settings)
    with open_outbox_or_exit(settings) as outbox, outbox_errors():
        yield Context(
            outbox,
            Search(outbox.entries, routes.sources),
            routes,
            Output(as_json=as_json, reveal=reveal),
            settings.fingerprint,
        )
