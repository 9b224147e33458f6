"""The destination `vero`; see `Destination`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar, Final
from urllib.parse import quote

import msgspec
from msgspec import Raw, Struct
from pydantic import BaseModel

from relay import __version__
from relay.destinations import urls
from relay.destinations.http import HttpClient, Response
from relay.destinations.message_ids import fingerprint, message_id
from relay.destinations.protocol import Limits, Message, Rendering
from relay.destinations.responses import status_line
from relay.destinations.vero.answers import error_of
from relay.destinations.vero.plans import Plan, plan
from relay.destinations.vero.privileges import privilege
from relay.destinations.vero.requests import (
    EVENTS_TRACK,
    TAGS_EDIT,
    USERS_EDIT,
    USERS_TRACK,
    Request,
)
from relay.destinations.vero.settings import VeroDestinationSettings
from relay.errors import HttpError, RefusedError, UnavailableError, UnusableUrlError
from relay.events import Call, DeadReason, Ignored, Unusable

_TIMEOUT_SECONDS: Final = 10
# More than relay accepts, even if each character is written as an escape. Vero names no limit.
_MAX_BODY_BYTES: Final = 8_000_000

# Answers that say that Vero does not serve an endpoint, which none of its references names.
_NOT_SERVED: Final = frozenset({404, 405, 410})
_UNAUTHORIZED: Final = frozenset({401, 403})
# Answers of a proxy or a gateway that does not reach Vero, or does not let relay through.
_NOT_REACHED: Final = frozenset({407, 502, 503, 504})
# Failures before Vero has got a request; others may be due to the request.
_NOT_CONNECTED: Final = (
    "ConnectTimeoutError",
    "NameResolutionError",
    "NewConnectionError",
    "ProxyError",
    "SSLError",
)

# Neither the person nor the tag should exist. Vero answers 200 to that, as Segment's tests of its
# destination show. They also show that Vero looks at the fields before it looks at the token: a
# request without a person is answered 400 whatever the token.
_PROBE: Final = Request("PUT", TAGS_EDIT, {"id": "relay-check", "remove": ["relay-check"]})


class _Sent(Struct, frozen=True):
    """A message as `send` takes it."""

    method: str
    path: str
    body: Raw


_read: Final = msgspec.json.Decoder(_Sent).decode
_read_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode


class VeroDestination:
    """The destination `vero`, one Vero project; see `Destination`.

    Each call is sent alone: the Track API takes no batches.
    """

    name: ClassVar[str] = "vero"
    title: ClassVar[str] = "Vero"
    settings_model: ClassVar[type[BaseModel]] = VeroDestinationSettings
    credential: ClassVar[str] = "VERO_AUTH_TOKEN"
    ordered: ClassVar[bool] = True
    curl: ClassVar[str] = (
        'of_body() { printf %s "$body" | jq -r "$1"; }\n'
        "of_body '.body + {auth_token: env.VERO_AUTH_TOKEN}' |\n"
        '  curl -X "$(of_body .method)" "$VERO_HOST$(of_body .path)" --data-binary @- \\\n'
        "  -H 'Content-Type: application/json'"
    )

    def __init__(
        self, settings: VeroDestinationSettings, *, timeout_seconds: float = _TIMEOUT_SECONDS
    ) -> None:
        token = settings.auth_token.get_secret_value() if settings.auth_token else ""
        self.configured = bool(token)
        self.url = settings.host
        self.limits = Limits(
            requests_per_second=settings.rate,
            in_flight=settings.connections,
            batch_messages=1,
            batch_bytes=_MAX_BODY_BYTES,
            timeout_seconds=timeout_seconds,
            dedupe_window=timedelta(minutes=5),  # of events only, by their name and data
        )
        self._settings = settings
        self._http = HttpClient(self.url, timeout_seconds, connections=settings.connections)
        self._account = fingerprint(token)
        self._token = json.dumps(token).encode()
        self._secrets = _spellings(token)

    def warnings(self) -> list[str]:
        """See `Destination.warnings`."""
        if not urls.goes_in_the_clear(self.url):
            return []
        reason = "over http:// to another machine the token and all calls go in the clear"
        return [f"VERO_HOST: {reason}; use https://"]

    def message_id(
        self,
        source: str,
        dedupe_key: Iterable[str | None] | None,
        reported_at: datetime | None = None,
    ) -> str:
        """See `Destination.message_id`. Vero is not sent it: only relay recognises copies."""
        return message_id(self._account, source, dedupe_key, reported_at)

    def privilege(self, event: Call) -> str | None:
        """See `Destination.privilege`. It is one of those that `privileges.privilege` names."""
        return privilege(event, self._settings)

    def render(
        self,
        event: Call,
        *,
        source: str,  # noqa: ARG002 (as every destination)
        message_id: str,  # noqa: ARG002 (as every destination)
        integrations: Mapping[str, bool],  # noqa: ARG002 (as every destination)
    ) -> Rendering | Ignored | Unusable:
        """See `Destination.render`. There is a lane for each person that is written to."""
        planned = plan(event, self._settings)
        if not isinstance(planned, Plan):
            return planned
        messages = tuple(map(_message, planned.requests))
        size = max(len(message.encoded) for message in messages)
        if size > _MAX_BODY_BYTES:
            return Unusable(DeadReason.OVERSIZED, f"{size} bytes; relay sends {_MAX_BODY_BYTES}")
        return Rendering(messages, planned.fault, planned.lanes)

    def send(self, batch: Sequence[bytes], *, attempt: int = 1) -> None:  # noqa: ARG002 (as every)
        """See `Destination.send`. The batch is one message.

        A group goes to an endpoint that Vero may have given up. Where it is not served, the same
        property is set by the endpoint that creates people.
        """
        (message,) = batch
        request = _read(message)
        response = self._exchange(request)
        if request.path == USERS_EDIT and response.status in _NOT_SERVED:
            request = _as_upsert(request)
            response = self._exchange(request)
        text = self._masked(response.body.decode(errors="replace"))
        error = error_of(response, text, path=request.path, sent=bytes(request.body))
        if error:
            raise error

    def connect(self) -> str:
        """See `Destination.connect`. Remove a tag that nobody has from a person that is nobody.

        It is not proven that Vero answers 200 to that with a good token and 401 with a wrong one,
        nor that it does not create the person `relay-check`.
        """
        response = self._exchange(_read(_message(_PROBE).encoded))
        answer = status_line(response)
        if response.status in _NOT_REACHED:
            raise UnavailableError(answer)
        if response.status in _UNAUTHORIZED:
            raise RefusedError(f"{answer}: it does not take VERO_AUTH_TOKEN")
        text = self._masked(response.body.decode(errors="replace"))
        if error_of(response, text, path=TAGS_EDIT, sent=b""):
            return f"can be reached; it answers {answer}, so whether it takes the token is unknown"
        return "takes the token"

    def _exchange(self, request: _Sent) -> Response:
        """Send a request with the token, and return the answer.

        Raises:
            UnavailableError: there is no answer.
            RefusedError: the host's name cannot be one.
        """
        try:
            return self._http.request(
                request.method,
                self.url + request.path,
                body=b'{"auth_token":%b,%b' % (self._token, bytes(request.body)[1:]),
                headers={
                    "Accept": "application/json",
                    "Content-Type": "application/json",
                    "User-Agent": f"relay/{__version__}",
                },
            )
        except UnusableUrlError as error:
            raise RefusedError(str(error)) from None
        except HttpError as error:
            not_sent = str(error).startswith(_NOT_CONNECTED)
            raise UnavailableError(
                str(error), affects_all=not_sent, may_have_arrived=not not_sent
            ) from None

    def _masked(self, text: str) -> str:
        """Return the text without the token, which answers may repeat."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _message(request: Request) -> Message:
    document = {"method": request.method, "path": request.path, "body": dict(request.body)}
    encoded = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Message(document, encoded.encode("ascii"), request.path != EVENTS_TRACK)


def _as_upsert(request: _Sent) -> _Sent:
    """Return the request that gives a person the same properties, and creates it if need be."""
    members = _read_members(request.body)
    members["data"] = members.pop("changes")
    return _Sent("POST", USERS_TRACK, Raw(msgspec.json.encode(members)))


def _spellings(token: str) -> tuple[str, ...]:
    """Return the token as texts may spell it: as it is, in a URL, and in JSON."""
    spellings = {token, quote(token, safe=""), token.replace("/", "\\/")} - {""}
    return tuple(sorted(spellings, key=len, reverse=True))
