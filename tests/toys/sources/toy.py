"""A source whose webhooks say what happened in four words: `opened mail-1 to 42`."""

from datetime import datetime
from typing import ClassVar

from pydantic import BaseModel

from relay.auth import SecretCheck, Secrets
from relay.events import Collection, DeadReason, EmailEvent, ParseResult, Unusable
from relay.sources import Verified, Verifier, Webhook


class ToySourceSettings(BaseModel):
    """The variable `RELAY_TOY_SECRET`."""

    secret: Secrets = ()


class ToySource:
    """See `relay.sources.Source`."""

    name: ClassVar[str] = "toy"
    destination: ClassVar[str] = "toy"
    collections: ClassVar[type[Collection]] = Collection
    settings_model: ClassVar[type[BaseModel]] = ToySourceSettings
    methods: ClassVar[tuple[str, ...]] = ("POST",)
    signs_body: ClassVar[bool] = False
    takes_secret: ClassVar[bool] = True
    blocks_on_error: ClassVar[bool] = False
    takes_calls: ClassVar[bool] = False
    curl: ClassVar[str] = 'curl "$URL/webhooks/toy/$RELAY_TOY_SECRET" --data-raw "$body"'
    example: ClassVar[str] = "opened mail-1 to 42"

    def __init__(self, settings: ToySourceSettings) -> None:
        self._secrets = SecretCheck(settings.secret)
        self.configured = self.takes_webhooks = bool(settings.secret)
        self.integrations: dict[str, bool] = {}

    def authenticate(self, webhook: Webhook) -> bool:
        """See `Source.authenticate`."""
        return self._secrets.accepts((webhook.path_secret or "").encode())

    def verifier(self, webhook: Webhook) -> Verifier | None:
        """See `Source.verifier`."""
        return Verified() if self.authenticate(webhook) else None

    def split(self, body: bytes) -> tuple[bytes, ...]:
        """See `Source.split`."""
        return (body,)

    def split_line(self, line: bytes) -> tuple[bytes, ...]:
        """See `Source.split_line`."""
        return (line,)

    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """See `Source.parse`."""
        words = body.decode(errors="replace").split()
        if len(words) != 4:
            return Unusable(DeadReason.UNREADABLE, "not four words")
        what, mail, _, person = words
        return EmailEvent(
            collection=Collection(f"Email {what.capitalize()}"),
            occurred_at=received_at,
            reported_at=None,
            dedupe_key=(what, mail, person),
            user_id=person,
            email=None,
            user_agent=None,
            properties={"email_id": mail},
        )


SOURCE = ToySource
