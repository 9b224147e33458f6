"""Credentials: shared secrets, compared in constant time."""

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
"""One secret or several (comma-separated: rotation), each long enough not to be guessed."""


class SecretCheck:
    """Compares what a webhook carries with the configured secrets, in constant time."""

    def __init__(self, secrets: Sequence[SecretStr]) -> None:
        self._digests = [sha256(secret.get_secret_value().encode()).digest() for secret in secrets]

    def accepts(self, candidate: bytes) -> bool:
        """Whether the candidate is one of the secrets."""
        # Digests are compared, so that not even a secret's length shows in the time taken, and
        # every secret is, so that the time does not tell which one matched.
        given = sha256(candidate).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)
