"""The first page, which shows the flow and its numbers, and the page of the webhooks' URLs."""

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from relay.console.overview_data import OverviewCache
from relay.console.pages import Pages
from relay.console.web import origin

CALLS_PATH: Final = "/v1"
"""Where Segment's libraries send their calls, on the host that they are given."""


class Endpoint(Struct, frozen=True):
    """A path at which relay receives what a source sends.

    Attributes:
        path: the URL's path, without the secret at its end.
        secret: the end of the path; empty if there is none in it.
    """

    source: str
    path: str
    secret: str = ""

    @property
    def takes_calls(self) -> bool:
        """Whether Segment's libraries send there, which are given only the host."""
        return self.path == CALLS_PATH


class OverviewPages:
    """The overview, and the page with the webhooks' URLs.

    Args:
        overview_cache: the numbers that the page shows.
        endpoints: where webhooks and calls are received.
        pages: renders.
    """

    def __init__(
        self, overview_cache: OverviewCache, endpoints: Sequence[Endpoint], pages: Pages
    ) -> None:
        self._overview_cache = overview_cache
        self._endpoints = endpoints
        self._pages = pages

    def page(self, request: Request) -> Response:
        """Answer with the overview."""
        return self._pages.page(request, "overview.html", **self._values(request))

    def fragment(self, request: Request) -> str:
        """Return the part of the overview that is kept up to date."""
        return self._pages.render_for(request, "_overview.html", **self._values(request))

    async def webhook_urls(self, request: Request) -> Response:
        """Answer with the webhooks' URLs, secrets included: never part of another page."""
        return self._pages.page(
            request,
            "webhook_urls.html",
            page="overview",
            endpoints=self._endpoints,
            origin=origin(request),
        )

    def _values(self, request: Request) -> dict[str, Any]:
        return {
            "page": "overview",
            "live": "overview",
            "overview": self._overview_cache.current(),
            "endpoints": self._endpoints,
            "origin": origin(request),
        }
