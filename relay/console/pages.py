"""Renders the console's templates for a request."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from relay import __version__
from relay.addresses import mask
from relay.console import formats, web
from relay.console.kinds import kinds_for
from relay.events import REMEDIES, DeadReason
from relay.operations.views import noun
from relay.outbox.entries import Clock, State
from relay.routes import Routes

HOME: Final = "/console"

_PASSING: Final = {"reveal", "replayed"}
"""Fields of a query that the links to show and to hide addresses leave out."""


class Pages:
    """The console's templates, with everything in them escaped.

    Args:
        clock: the time of day.
        routes: every route.
        has_sessions: whether pages offer to sign out.
    """

    def __init__(
        self,
        clock: Clock,
        routes: Routes,
        *,
        has_sessions: bool,
    ) -> None:
        self._clock = clock
        self._routes = routes
        self._titles = {route.destination.name: route.destination.title for route in routes}
        self._templates = Environment(
            loader=PackageLoader("relay.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "at": formats.at,
            "coded": formats.coded,
            "ago": self._ago,
            "span": formats.span,
            "number": formats.number,
            "rate": formats.rate,
            "bars": formats.bars,
            "title_of": self._title_of,
            "noun_of": self._noun_of,
        }
        self._templates.globals |= {
            "version": __version__,
            "home": HOME,
            "has_sessions": has_sessions,
            "kinds": [kinds_for(destination, routes) for destination in routes.destinations],
            "states": [*State],
            "all_sources": [source.name for source in routes.sources],
            "all_destinations": [destination.name for destination in routes.destinations],
            "in_lanes": {each.name for each in routes.destinations if each.ordered},
            "reasons": [*DeadReason],
            "remedies": REMEDIES,
        }

    def page(self, request: Request, template: str, **values: Any) -> Response:  # noqa: ANN401 (the template's values)
        """Return the rendered template as an answer to the request; see `render_for`."""
        return HTMLResponse(self.render_for(request, template, **values))

    def failure(
        self,
        request: Request,
        status: int,
        text: str,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Return a page that says why the request failed."""
        page = self.render_for(request, "failed.html", page="", status=status, text=text)
        return HTMLResponse(page, status_code=status, headers=headers)

    def render_for(self, request: Request, template: str, **values: Any) -> str:  # noqa: ANN401 (the template's values)
        """Return the rendered template, with addresses only if the request's query asks for them.

        `live` is the path that keeps the page up to date; None, which is the default, for a page
        that stays as it is.
        """
        query = request.query_params
        kept = {name: value for name, value in query.items() if name not in _PASSING}
        path = quote(request.scope["path"])
        return self.render(
            template,
            reveal=web.reveals(query),
            hidden_url=path + (f"?{urlencode(kept)}" if kept else ""),
            revealed_url=f"{path}?{urlencode({**kept, 'reveal': 1})}",
            **{"live": None, **values},
        )

    def render(self, template: str, *, reveal: bool, **values: Any) -> str:  # noqa: ANN401 (the template's values)
        """Return the rendered template, with addresses in it only if they are to be revealed."""

        def url(path: str, **query: object) -> str:
            """Return the console's URL with the fields that are not empty."""
            fields = {name: value for name, value in query.items() if value not in {None, ""}}
            if reveal:
                fields.setdefault("reveal", 1)
            return f"{HOME}{path}" + (f"?{urlencode(fields)}" if fields else "")

        def shown(value: object) -> str:
            text = "" if value is None else str(value)
            return text if reveal else mask(text)

        return self._templates.get_template(template).render(
            reveal=reveal, url=url, shown=shown, **values
        )

    def _ago(self, time: datetime | None) -> str:
        return "never" if time is None else f"{formats.span(self._clock() - time)} ago"

    def _noun_of(self, source: str) -> str:
        route = self._routes.get(source)
        return noun(route.source if route else None)

    def _title_of(self, destination: str) -> str:
        return self._titles.get(destination, destination)
