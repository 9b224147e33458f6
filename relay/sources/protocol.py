"""The protocol that every source implements: it authenticates webhooks and parses their bodies."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, Protocol

import msgspec
from pydantic import BaseModel

from relay.events import CallType, Collection, ParseResult


class Webhook(msgspec.Struct, frozen=True):
    """One HTTP request, not trusted until it is authenticated.

    Attributes:
        path_secret: the rest of the path after the source's name, percent-decoded; None if
            nothing follows the name.
        headers: names in lower case, and values as received.
        body: as received; empty for a source that does not sign it, because it is not read yet.
        received_at: when the request arrived.
    """

    path_secret: str | None
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    received_at: datetime

    def header(self, name: bytes) -> bytes:
        """Return the value of the first header with this name; empty if there is none."""
        return next((value for each, value in self.headers if each == name), b"")


class Verifier(Protocol):
    """A check of one webhook's credentials while its body is read."""

    def update(self, piece: bytes) -> None:
        """Take the next piece of the body."""
        ...

    def fault(self) -> str | None:
        """Return why the credentials are wrong, for the log; None if they are right.

        Call it once every piece has been taken. The text repeats no part of the credentials.
        """
        ...


WRONG_SIGNATURE: Final = (
    "the signature does not match the body: it was made with another key, or the body was changed"
)


class Verified:
    """A `Verifier` for credentials that do not cover the body and are right."""

    def update(self, piece: bytes) -> None:
        """See `Verifier.update`."""

    def fault(self) -> None:
        """See `Verifier.fault`."""


class Source(Protocol):
    """A sender of webhooks: authenticates them and turns them into email events. Pure: no I/O.

    `tests/contracts/source.py` checks each source.
    """

    name: ClassVar[str]
    """Its name in `/webhooks/<name>`, settings, metrics, logs and the outbox."""
    destination: ClassVar[str]
    """Name of the destination that its events go to."""
    settings_model: ClassVar[type[BaseModel]]
    """Its settings; the field `secret` is read from `RELAY_<NAME>_SECRET`, and so on."""
    methods: ClassVar[tuple[str, ...]]
    """The HTTP methods by which webhooks may come."""
    signs_body: ClassVar[bool]
    """Whether its credentials cover the body. If so, the body is read before they are checked; if
    not, they are in the path or a header and are checked first."""
    takes_secret: ClassVar[bool]
    """Whether a secret is taken, as last part of the path or as Bearer token."""
    blocks_on_error: ClassVar[bool]
    """Whether the source holds back later webhooks while one is answered with an error. If so,
    whatever is stored is answered 200, dead letters too."""
    curl: ClassVar[str]
    """A shell command that posts `$body` to `$URL`; its credentials are relay's variables."""
    example: ClassVar[str]
    """A realistic body for people to try."""

    def __init__(self, settings: Any) -> None: ...  # noqa: ANN401 (an instance of settings_model)

    @property
    def collections(self) -> type[Collection] | type[CallType]:
        """What its events are counted and found by: email collections, or types of calls."""
        ...

    @property
    def configured(self) -> bool:
        """Whether it has a secret; without one its URL is not served."""
        ...

    @property
    def takes_webhooks(self) -> bool:
        """Whether `/webhooks/<name>` is served, for which it needs a secret."""
        ...

    @property
    def takes_calls(self) -> bool:
        """Whether Segment's libraries may send it calls, at `/v1/`."""
        ...

    @property
    def integrations(self) -> Mapping[str, bool]:
        """Segment's own destinations by name, and whether the source's events may reach them."""
        ...

    def authenticate(self, webhook: Webhook) -> bool:
        """Return whether the webhook carries one of the configured secrets, in constant time."""
        ...

    def verifier(self, webhook: Webhook) -> Verifier | None:
        """Return a check to which the webhook's body is then fed.

        None if the credentials are missing or malformed, or are already known to be wrong.
        """
        ...

    def split(self, body: bytes) -> Sequence[bytes]:
        """Return the bodies to store for the body of a request: one for each event in it.

        Raises:
            UnreadableError: it cannot be told what events are in it.
            TooManyEventsError: it has more events than relay takes at a time.
        """
        ...

    def split_line(self, line: bytes) -> Sequence[bytes]:
        """Return the bodies to store for what an operator imports or pastes; see `split`.

        Raises:
            UnreadableError: it cannot be told what events are in it.
            TooManyEventsError: there are too many events in it.
        """
        ...

    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """Return the event in a stored body. The same arguments always give the same result."""
        ...
