"""Reads credentials from `Authorization` headers, and compares secrets in constant time."""

import base64
import binascii
import hmac
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Final

from pydantic import BeforeValidator, SecretStr

SHORTEST_SECRET: Final = 16


def _split_secrets(value: object) -> object:
    if not isinstance(value, str):
        return value
    secrets = [secret.strip() for secret in value.split(",")]
    if not all(len(secret) >= SHORTEST_SECRET for secret in secrets):
        raise ValueError(f"each secret needs at least {SHORTEST_SECRET} characters")
    return secrets


Secrets = Annotated[tuple[SecretStr, ...], BeforeValidator(_split_secrets)]
"""The type of a setting: one secret, or several with commas between them for rotation.

Each is at least `SHORTEST_SECRET` characters long, so that it cannot be guessed.
"""


class SecretCheck:
    """A comparison with the configured secrets, in constant time."""

    def __init__(self, secrets: Sequence[SecretStr]) -> None:
        self._digests = [sha256(secret.get_secret_value().encode()).digest() for secret in secrets]

    def accepts(self, candidate: bytes) -> bool:
        """Return whether the candidate is one of the secrets."""
        # Digests are compared, so that the time taken does not depend on a secret's length; and
        # all of them are, so that it does not depend on which secret matches.
        candidate_digest = sha256(candidate).digest()
        matches = [hmac.compare_digest(candidate_digest, digest) for digest in self._digests]
        return any(matches)


def basic_credentials(authorization: bytes) -> tuple[bytes, bytes] | None:
    """Return the user name and the password of an `Authorization: Basic` header's value.

    None if the scheme is another one, or what follows it is not base64. Without a colon, all of it
    is the user name.
    """
    scheme, _, encoded = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return None
    user_name, _, password = decoded.partition(b":")
    return user_name, password


def bearer_token(authorization: bytes) -> bytes | None:
    """Return the token of an `Authorization: Bearer` header's value; None for another scheme."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None
