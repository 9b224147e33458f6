"""Sources: who sends webhooks to relay, and what each of them is held to.

A source is one module in this folder, found by its name, with `SOURCE` naming its class.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, Protocol

import msgspec
from pydantic import BaseModel

from relay.events import ParseResult


class Webhook(msgspec.Struct, frozen=True):
    """One HTTP request, not believed until authenticated.

    Attributes:
        path_secret: what follows the source's name in the path, percent-decoded; None where
            nothing does.
        headers: names, in lower case, and values, as they came.
        body: as it came; empty for a source that does not sign it, as it is not read yet.
        received_at: when it came.
    """

    path_secret: str | None
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    received_at: datetime

    def header(self, name: bytes) -> bytes:
        """The value of the first header of this name; empty where there is none."""
        return next((value for given, value in self.headers if given == name), b"")


class Verifier(Protocol):
    """Judges a body while it comes."""

    def update(self, piece: bytes) -> None:
        """Take the next piece."""
        ...

    def accepts(self) -> bool:
        """Whether the credentials are right, now that all pieces have come."""
        ...


class Verified:
    """See `Verifier`: the credentials are right, whatever the body is."""

    def update(self, piece: bytes) -> None:
        """See `Verifier.update`."""

    def accepts(self) -> bool:
        """See `Verifier.accepts`."""
        return True


class Source(Protocol):
    """Turns one source's webhooks into email events. Pure: no I/O.

    tests/contracts/outbox.py holds every source to these words.
    """

    name: ClassVar[str]
    """As in `/webhooks/<name>`."""
    destination: ClassVar[str]
    """Name of the destination that its events go to."""
    settings_model: ClassVar[type[BaseModel]]
    """Its settings; the field `secret` is read from `RELAY_<NAME>_SECRET`, and so on."""
    signs_body: ClassVar[bool]
    """Whether its credentials cover the body, which then is read before they are looked at, and
    not, as a secret would, the path."""
    blocks_on_error: ClassVar[bool]
    """Whether an error keeps it from sending what is behind the webhook; then what is stored is
    answered 200, whatever it is."""
    curl: ClassVar[str]
    """A shell command that posts `$body` to `$URL`; its credentials are relay's variables."""
    example: ClassVar[str]
    """A body as it might come, for people to try."""

    def __init__(self, settings: Any) -> None: ...  # noqa: ANN401 (an instance of settings_model)

    @property
    def configured(self) -> bool:
        """Whether it has a secret, without which it has no route."""
        ...

    @property
    def integrations(self) -> Mapping[str, bool]:
        """Segment destinations its events must or must not reach."""
        ...

    def authenticate(self, webhook: Webhook) -> bool:
        """Whether the webhook carries one of the configured secrets; takes constant time."""
        ...

    def verifier(self, webhook: Webhook) -> Verifier | None:
        """What judges the webhook's body, which has not been read yet.

        None where the credentials are missing, malformed, or known to be wrong.
        """
        ...

    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """What the body says; the same body gives the same reading, for ever."""
        ...


def source_classes() -> dict[str, type[Source]]:
    """Every source in this folder, by name."""
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    return {module.SOURCE.name: module.SOURCE for module in modules if hasattr(module, "SOURCE")}
