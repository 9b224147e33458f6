"""Replaces the recipient's address in an event by its SHA-256."""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from msgspec import structs

from relay.addresses import digest, in_mailbox, mask
from relay.events import EmailEvent

_LONGEST: Final = 320
"""The most characters that an address has (RFC 5321); no pattern is built for a longer text."""


def without_address(event: EmailEvent) -> EmailEvent:
    """Return the event with the recipient's address replaced by its SHA-256 in every text.

    `email` stays, because the anonymous id is made from it. In a bounce message, which may quote
    anybody's address, every address is masked.
    """
    user_id, user_agent, properties = event.user_id, event.user_agent, event.properties
    for address in (*_spellings(event.email), *_spellings(user_id)):
        properties = {name: _without(text, address) for name, text in properties.items()}
        user_agent = user_agent and _without(user_agent, address)
    if "bounce_message" in properties:
        properties = {**properties, "bounce_message": mask(properties["bounce_message"])}
    return structs.replace(
        event,
        user_id=digest(user_id) if user_id and "@" in user_id else user_id,
        user_agent=user_agent,
        properties=properties,
    )


def _spellings(text: str | None) -> Iterator[str]:
    """Yield the text if it holds an address, like `Ann <ann@...>`, then each address in it."""
    if text and "@" in text:
        yield text
        yield from in_mailbox(text)


def _without(text: str, address: str) -> str:
    """Return the text with the address replaced by its SHA-256.

    The address is found in any case, and percent-encoded once or twice.
    """
    if not _holds(text, address):
        return text
    if len(address) > _LONGEST:
        return digest(address)
    letters = (
        "|".join((re.escape(letter), "".join(rf"%(?:25)?{byte:02X}" for byte in letter.encode())))
        for letter in address
    )
    pattern = "".join(f"(?:{letter})" for letter in letters)
    replaced = re.sub(pattern, digest(address), text, flags=re.IGNORECASE)
    return digest(address) if _holds(replaced, address) else replaced


def _holds(text: str, address: str) -> bool:
    return address.lower() in unquote(unquote(text)).lower()
