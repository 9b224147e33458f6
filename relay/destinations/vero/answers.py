"""Interprets Vero's answers."""

from http import HTTPStatus
from typing import Any, Final

from pydantic_core import from_json

from relay.destinations.http import Response
from relay.destinations.responses import (
    MAX_QUOTED,
    denies,
    is_page,
    quoted,
    retry_after,
    status_line,
)
from relay.destinations.vero.requests import DELETE, REIDENTIFY
from relay.errors import DestinationError, RefusedError, RejectedError, UnavailableError

# By Vero's documentation of today (400, 404) and of 2016 (422). A gateway before Vero answers 413.
_REJECTIONS: Final = frozenset({400, 422})
# Without Vero's JSON these say that the URL is not Vero's.
_REJECTIONS_IN_JSON: Final = frozenset({404, 409})
_TEMPORARY: Final = frozenset({408, 425, 429})
_PERMANENT: Final = frozenset({501, 505})
# How a request is answered that Vero has carried out before: the old id, or the person, is gone.
_ALREADY_DONE: Final = {REIDENTIFY: frozenset({400, 404}), DELETE: frozenset({404})}


def error_of(response: Response, text: str, *, path: str, sent: bytes) -> DestinationError | None:
    """Return what an answer means for the request; None if Vero has taken it.

    A page of HTML is never Vero's answer, whatever its status.

    Args:
        response: the answer.
        text: its body, without secrets.
        path: the path of the request.
        sent: the body of the request, of which a text for a log must repeat nothing.
    """
    answer, document = status_line(response), _document(text)
    if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
        return _meaning(response.status, answer, response, text, path)
    if not text.strip():
        return None
    if document is None:
        return RefusedError(f"{answer} without Vero's JSON")
    if denies(text):
        status = document.get("status")
        answer = f"{answer}, but it says {quoted(text, sent)}"
        return _meaning(status if isinstance(status, int) else 0, answer, response, text, path)
    return None


def _meaning(
    status: int, answer: str, response: Response, text: str, path: str
) -> DestinationError:
    """Return what a status other than 2xx means; it may stand in the body of a 2xx."""
    if _is_about_the_call(status, response, text):
        done_if_repeated = status in _ALREADY_DONE.get(path, ())
        return RejectedError(answer, text=text[:MAX_QUOTED], done_if_repeated=done_if_repeated)
    too_many = status == HTTPStatus.TOO_MANY_REQUESTS
    if status in _TEMPORARY or (
        status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _PERMANENT
    ):
        return UnavailableError(
            answer,
            retry_after=retry_after(response.headers.get("Retry-After")),
            affects_all=too_many,
            may_have_arrived=not too_many,
            too_many=too_many,
        )
    # 401, 403, 405, 410, 501, 505, redirects, and every status that Vero does not document:
    # waiting behind a hold loses nothing.
    return RefusedError(answer)


def _is_about_the_call(status: int, response: Response, text: str) -> bool:
    if status in _REJECTIONS_IN_JSON:
        return _document(text) is not None
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return True
    return status in _REJECTIONS and not is_page(response, text)


def _document(text: str) -> dict[str, Any] | None:
    """Return the JSON object in the text; None if there is none."""
    try:
        document = from_json(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
