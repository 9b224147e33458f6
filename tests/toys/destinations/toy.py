"""A destination that takes a JSON list of `[id, what happened, to whom]`, three at a time."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar

from msgspec import json
from pydantic import BaseModel

from relay.destinations import Limits, Message, Rendering
from relay.destinations.http import HttpClient
from relay.errors import HttpError, RefusedError, UnavailableError
from relay.events import EmailEvent, Unusable


class ToyDestinationSettings(BaseModel):
    """The variable `RELAY_TOY_URL`."""

    url: str = "http://127.0.0.1:1"


class ToyDestination:
    """See `relay.destinations.Destination`."""

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "The toy"
    settings_model: ClassVar[type[BaseModel]] = ToyDestinationSettings
    credential: ClassVar[str] = "RELAY_TOY_URL"
    ordered: ClassVar[bool] = False
    configured: ClassVar[bool] = True
    limits: ClassVar[Limits] = Limits(
        requests_per_second=20,
        in_flight=2,
        batch_messages=3,
        batch_bytes=1_000,
        timeout_seconds=10,
        dedupe_window=timedelta(days=365),
    )
    curl: ClassVar[str] = 'curl "$RELAY_TOY_URL" --data-raw "[$body]"'

    def __init__(self, settings: ToyDestinationSettings) -> None:
        self.url = settings.url
        self._http = HttpClient(self.url, self.limits.timeout_seconds)

    def warnings(self) -> list[str]:
        """See `Destination.warnings`."""
        return []

    def message_id(
        self,
        source: str,
        dedupe_key: Iterable[str | None] | None,
        reported_at: datetime | None = None,  # noqa: ARG002 (as every destination)
    ) -> str:
        """See `Destination.message_id`."""
        return "-".join([source, *(part or "" for part in dedupe_key or ("random",))])

    def privilege(self, event: EmailEvent) -> None:
        """See `Destination.privilege`."""

    def render(
        self,
        event: EmailEvent,
        *,
        source: str,
        message_id: str,
        integrations: Mapping[str, bool],  # noqa: ARG002 (as every destination)
    ) -> Rendering | Unusable:
        """See `Destination.render`."""
        document = {"id": message_id, "event": event.collection, "person": event.user_id}
        encoded = json.encode([*document.values()])
        return Rendering((Message({"from": source, **document}, encoded),))

    def send(self, batch: Sequence[bytes], *, attempt: int) -> None:  # noqa: ARG002 (as every one)
        """See `Destination.send`."""
        try:
            response = self._http.request("POST", self.url, body=b"[%b]" % b",".join(batch))
        except HttpError as error:
            raise UnavailableError(str(error)) from None
        if response.status == 401:
            raise RefusedError("401 Unauthorized")
        if response.status != 200:
            raise UnavailableError(str(response.status))

    def connect(self) -> str:
        """See `Destination.connect`."""
        self.send([], attempt=1)
        return "can be reached"


DESTINATION = ToyDestination
