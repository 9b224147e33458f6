"""The source `segment`; see `Source`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import ClassVar, Final

from pydantic import BaseModel

from relay.auth import SecretCheck, bearer_token
from relay.events import CallType, ParseResult
from relay.sources.protocol import WRONG_SIGNATURE, Verified, Verifier, Webhook
from relay.sources.segment.bodies import calls_in_line, calls_in_webhook
from relay.sources.segment.calls import parse_call
from relay.sources.segment.settings import SegmentSourceSettings
from relay.sources.segment.signatures import SIGNATURE, Coverage, Signatures

_EXAMPLE: Final = """{
  "type": "track",
  "messageId": "garden-0001",
  "timestamp": "2026-01-01T00:00:00.000Z",
  "userId": "2001",
  "event": "Seeds Ordered",
  "properties": { "sort": "tomato", "price": 3.5 },
  "context": { "traits": { "email": "ana@example.com" } }
}"""

_CURL: Final = """curl "$URL/v1/batch" -u "$RELAY_SEGMENT_WRITE_KEY:" \\
  -H 'Content-Type: application/json' --data-raw "{\\"batch\\":[$body]}\""""


_FIRST_ONLY: Final = "the signature covers only the first of several calls"
_ADD_SECRET: Final = (
    f"{_FIRST_ONLY}: in Segment, add the header `Authorization: Bearer <the shared secret>` as"
    " well, or turn off batching"
)
_WRONG_SECRET: Final = f"{_FIRST_ONLY}, and the secret beside it is wrong"


class KeyKind(Enum):
    """Whose write key it is."""

    SERVER = "server"
    BROWSER = "browser"


class SegmentSource:
    """The source `segment`; see `Source`.

    `authenticate`, `verifier` and `split` are those of `/webhooks/segment`. The Tracking API has
    `key_kind` and `calls_in` for the same.
    """

    name: ClassVar[str] = "segment"
    destination: ClassVar[str] = "vero"
    collections: ClassVar[type[CallType]] = CallType
    settings_model: ClassVar[type[BaseModel]] = SegmentSourceSettings
    # The Actions destination lets its user choose.
    methods: ClassVar[tuple[str, ...]] = ("POST", "PUT", "PATCH")
    signs_body: ClassVar[bool] = True
    takes_secret: ClassVar[bool] = True
    blocks_on_error: ClassVar[bool] = False
    curl: ClassVar[str] = _CURL
    example: ClassVar[str] = _EXAMPLE

    def __init__(self, settings: SegmentSourceSettings) -> None:
        self._write_keys = SecretCheck(settings.write_key)
        self._browser_keys = SecretCheck(settings.browser_write_key)
        self._shared_secrets = SecretCheck(settings.shared_secret)
        self._signatures = Signatures(settings.shared_secret)
        self.origins = frozenset(settings.origins)
        self.restricts_browsers = settings.browser_may == "write"
        self.takes_webhooks = bool(settings.shared_secret)
        self.takes_calls = bool(settings.write_key or settings.browser_write_key)
        self.configured = self.takes_calls or self.takes_webhooks
        self.integrations: Mapping[str, bool] = {}

    def key_kind(self, write_key: bytes) -> KeyKind | None:
        """Return whose write key it is, in constant time; None if it is not configured."""
        of_server, of_browser = (
            keys.accepts(write_key) for keys in (self._write_keys, self._browser_keys)
        )
        if of_server:
            return KeyKind.SERVER
        return KeyKind.BROWSER if of_browser else None

    def coverage(self, webhook: Webhook) -> Coverage:
        """Return how much of a webhook's body its credentials vouch for.

        The shared secret, as last part of the path or as Bearer token, vouches for all of it. A
        wrong signature is refused beside the secret, too: the body was changed on its way.
        """
        has_secret = self._has_secret(webhook)
        signature = webhook.header(b"x-signature")
        if not signature:
            return Coverage.ALL if has_secret else Coverage.NOTHING
        covered = self._signatures.coverage(webhook.body, signature)
        return Coverage.ALL if has_secret and covered is not Coverage.NOTHING else covered

    def _has_secret(self, webhook: Webhook) -> bool:
        token = bearer_token(webhook.header(b"authorization")) or b""
        in_path = (webhook.path_secret or "").encode()
        return self._shared_secrets.accepts(in_path) or self._shared_secrets.accepts(token)

    def authenticate(self, webhook: Webhook) -> bool:
        """See `Source.authenticate`. The credentials must cover all of the body.

        If only the first call of an array were taken, Segment would take the answer for all.
        """
        return self.coverage(webhook) is Coverage.ALL

    def verifier(self, webhook: Webhook) -> Verifier | None:
        """See `Source.verifier`."""
        signature = webhook.header(b"x-signature")
        has_secret = self._has_secret(webhook)
        if not signature:
            return Verified() if has_secret else None
        if not SIGNATURE.fullmatch(signature):
            return None
        tries_secret = webhook.path_secret is not None or webhook.header(b"authorization")
        first_only = _WRONG_SECRET if tries_secret else _ADD_SECRET
        return _WholeBody(self._signatures, signature, None if has_secret else first_only)

    def split(self, body: bytes) -> Sequence[bytes]:
        """See `Source.split`."""
        return calls_in_webhook(body)

    def split_line(self, line: bytes) -> Sequence[bytes]:
        """See `Source.split_line`."""
        return calls_in_line(line)

    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """See `Source.parse`."""
        return parse_call(body, received_at)


class _WholeBody:
    """A `Verifier` of a signature that can be checked once the whole body is there.

    Args:
        signatures: the check of signatures.
        signature: the one that came with the body.
        first_only: the fault if it covers only the first call; None if that is no fault.
    """

    def __init__(self, signatures: Signatures, signature: bytes, first_only: str | None) -> None:
        self._signatures = signatures
        self._signature = signature
        self._first_only = first_only
        self._body = bytearray()

    def update(self, piece: bytes) -> None:
        """See `Verifier.update`."""
        self._body += piece

    def fault(self) -> str | None:
        """See `Verifier.fault`."""
        covered = self._signatures.coverage(bytes(self._body), self._signature)
        if covered is Coverage.NOTHING:
            return WRONG_SIGNATURE
        return self._first_only if covered is Coverage.FIRST else None
