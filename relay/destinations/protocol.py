"""The protocol that every destination implements: it renders events and sends them."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Protocol

from msgspec import Struct
from pydantic import BaseModel

from relay.events import Ignored, Unusable


class Limits(Struct, frozen=True):
    """The limits that relay keeps to when it sends to a destination.

    Attributes:
        requests_per_second: requests of all of relay's processes together.
        in_flight: requests of one process at a time.
        batch_messages: messages in a request.
        batch_bytes: bytes of a request's messages, with a comma between them.
        dedupe_window: how long the destination recognises a message id.
        timeout_seconds: time of a request, from the look-up of the host to the end of the answer.
    """

    requests_per_second: int
    in_flight: int
    batch_messages: int
    batch_bytes: int
    timeout_seconds: float
    dedupe_window: timedelta


class Message(Struct, frozen=True):
    """A message to a destination.

    Attributes:
        document: the message for people to read; it holds no secret.
        encoded: what `Destination.send` takes.
        repeatable: whether sent twice it does the same as sent once, however much later.
    """

    document: Mapping[str, Any]
    encoded: bytes
    repeatable: bool = False


class Rendering(Struct, frozen=True):
    """What a destination is sent for one event.

    Attributes:
        messages: sent one after the other, each once the destination has the one before.
        fault: why a part of the event cannot be sent; None if all of it can. Once the messages are
            sent, the event becomes a dead letter with it.
        lanes: names of the lanes that they are sent in; none if the destination keeps no order.
            Events that share a lane are sent one after the other, in the order in which they came
            in.
    """

    messages: tuple[Message, ...]
    fault: Unusable | None = None
    lanes: tuple[str, ...] = ()


class Destination(Protocol):
    """A place to which relay sends events: renders them and sends them.

    `tests/contracts/destination.py` checks each destination.
    """

    name: ClassVar[str]
    """Its name in settings, metrics, logs and the outbox."""
    title: ClassVar[str]
    """Its name on pages, like `Segment`."""
    settings_model: ClassVar[type[BaseModel]]
    """Its settings; a field without an alias is read from `RELAY_<NAME>_<FIELD>`."""
    credential: ClassVar[str]
    """The variable without which nothing can be sent."""
    ordered: ClassVar[bool]
    """Whether it must get the events of one person in the order in which they came in."""
    curl: ClassVar[str]
    """A shell command that sends `$body`, one message; its credentials are relay's variables."""

    def __init__(self, settings: Any) -> None: ...  # noqa: ANN401 (an instance of settings_model)

    @property
    def configured(self) -> bool:
        """Whether it has its credential; without one nothing is sent to it."""
        ...

    @property
    def limits(self) -> Limits:
        """The limits that relay keeps to when it sends."""
        ...

    @property
    def url(self) -> str:
        """Base URL of its API, without any secret."""
        ...

    def warnings(self) -> list[str]:
        """Return one sentence for each setting that is allowed but unwise."""
        ...

    def message_id(
        self,
        source: str,
        dedupe_key: Iterable[str | None] | None,
        reported_at: datetime | None = None,
    ) -> str:
        """Return the id by which the destination recognises copies of an event.

        It has at most 100 characters. Without a dedupe key it is random. Otherwise it depends only
        on the arguments and on relay's account at the destination, so it is the same on every
        machine and at every time. Other arguments or another account give another id.
        """
        ...

    def privilege(self, event: Any) -> str | None:  # noqa: ANN401 (as `render`)
        """Return the privilege that an event needs; None if anybody may report it.

        A source gives none to a sender whose credential is public.
        """
        ...

    def render(
        self,
        event: Any,  # noqa: ANN401 (of the type that its sources report)
        *,
        source: str,
        message_id: str,
        integrations: Mapping[str, bool],
    ) -> Rendering | Ignored | Unusable:
        """Return the messages for an event, or why the destination gets none.

        The same arguments always give the same result.

        Args:
            event: the event that the source reported.
            source: name of the source.
            message_id: see `message_id`.
            integrations: see `relay.sources.Source.integrations`.
        """
        ...

    def send(self, batch: Sequence[bytes], *, attempt: int) -> None:
        """Send encoded messages in one request. Once this returns, the destination has them.

        Args:
            batch: messages within the limits.
            attempt: number of this attempt, counted from 1.

        Raises:
            UnavailableError: no acceptance came. The destination may still have taken the batch.
            RefusedError: the destination refuses the key, the host or the request.
            RejectedError: the destination rejects a message in the batch.
        """
        ...

    def connect(self) -> str:
        """Send a request that changes nothing, the same way as `send`.

        Return what is known by its answer, after the URL in a sentence, like `can be reached`.

        Raises:
            UnavailableError: the destination cannot be reached, or its certificate is not trusted.
            RefusedError: the destination refuses the credential.
        """
        ...
