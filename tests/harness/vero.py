"""A stand-in for Vero: a real HTTP server before a model of its Track API."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from math import inf
from types import TracebackType
from typing import Any, Final, Self

from tests.harness.fakes import Answer, LoopbackServer, send
from tests.harness.vero_model import ApiError, People, Person

AUTH_TOKEN: Final = "a-token-for-the-tests"

_BASE: Final = "/api/v2/"
_NO_PAGE: Final = Answer(
    404, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>The page you were looking for"
)


@dataclass(frozen=True)
class Fault:
    """What the stand-in does to one request other than Vero would.

    Attributes:
        answer: what is sent; None for Vero's own answer.
        taken: whether the request is carried out all the same.
        delay: seconds before the answer is sent.
    """

    answer: Answer | None = None
    taken: bool = False
    delay: float = 0


@dataclass
class Request:
    """One request to the stand-in, and what became of it.

    Attributes:
        connection: the sender's port, one for each connection.
        path: behind `/api/v2/`.
        body: without the token.
        arrived_at: in monotonic seconds.
        answered_at: just before the answer is sent; infinite until then.
        taken: whether it was carried out.
        answer: what is sent.
    """

    connection: int
    method: str
    path: str
    body: dict[str, Any]
    arrived_at: float = field(default_factory=time.monotonic)
    answered_at: float = inf
    taken: bool = False
    answer: Answer = field(default_factory=Answer)

    @property
    def refused(self) -> bool:
        """Whether Vero says that it never takes this request."""
        refusals = {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}
        return self.answer.status in refusals and _is_own(self.answer)

    @property
    def settled(self) -> bool:
        """Whether the answer leaves nothing to be tried again."""
        accepted = self.answer.status == HTTPStatus.OK and _is_own(self.answer)
        return accepted or self.refused


Judge = Callable[[Request], Fault | None]


class Vero:
    """A Vero project, and all requests to it.

    Attributes:
        people: what it keeps.
        requests: every request, in the order in which they arrived.
        judge: called with each request, one at a time; returns a fault, or None for Vero's own
            behaviour.
        most_at_once: the most requests that were under way at a time.
    """

    def __init__(self) -> None:
        self.people = People()
        self.requests: list[Request] = []
        self.judge: Judge = lambda _request: None
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def person(self, name: str) -> Person:
        """Return the person with this id, or with this email and no id."""
        return self.people.by_name[name]

    def receive(self, connection: int, method: str, path: str, content: bytes) -> Request:
        """Take one request, and return it with its answer once that is due."""
        body = json.loads(content)
        token = body.pop("auth_token", None)
        request = Request(connection, method, path.removeprefix(_BASE), body)
        with self._lock:
            request.arrived_at = time.monotonic()
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.requests.append(request)
            fault = self.judge(request) or Fault()
            if fault.taken or fault.answer is None:
                request.answer = self._take(request, token)
            request.answer = fault.answer or request.answer
        if fault.delay:
            threading.Event().wait(fault.delay)
        with self._lock:
            self._at_once -= 1
            request.answered_at = time.monotonic()
        return request

    def _take(self, request: Request, token: object) -> Answer:
        """Have the request carried out, and return Vero's answer."""
        if token != AUTH_TOKEN:
            return says(HTTPStatus.UNAUTHORIZED, "Unauthorized")
        try:
            self.people.take(request.method, request.path, request.body)
        except ApiError as error:
            return says(error.status, error.message)
        except LookupError:
            return _NO_PAGE
        request.taken = True
        return says(HTTPStatus.OK, "Success.")


class VeroServer(Vero):
    """Vero's Track API on loopback."""

    def __init__(self) -> None:
        super().__init__()
        self._server = LoopbackServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    @property
    def url(self) -> str:
        """What `VERO_HOST` is set to."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environ(self) -> Mapping[str, str]:
        """What makes relay send to it."""
        return {"VERO_AUTH_TOKEN": AUTH_TOKEN, "VERO_HOST": self.url}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def people_in(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return whom a request writes to: their ids, or the email where there is only that."""
    who = body.get("identity", body)
    names = (who.get("id") or who.get("email"), body.get("new_id"))
    return tuple(name for name in names if name is not None)


def says(status: int, message: str, **headers: str) -> Answer:
    """Return an answer in Vero's own format."""
    body = json.dumps({"status": status, "message": message}).encode()
    return Answer(status, {"Content-Type": "application/json", **headers}, body)


def _is_own(answer: Answer) -> bool:
    """Return whether the answer is in Vero's own format."""
    return answer.headers.get("Content-Type") == "application/json"


def _handler(vero: Vero) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # it would hold back the body for 40 ms, behind the headers

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            request = vero.receive(self.client_address[1], self.command, self.path, content)
            send(self, request.answer)

        def do_PUT(self) -> None:
            self.do_POST()

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    return Handler
