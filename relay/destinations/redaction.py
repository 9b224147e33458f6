"""What stands in an address's place where it must not be sent."""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from msgspec import structs

from relay.addresses import digest, in_mailbox, mask
from relay.events import EmailEvent

_LONGEST: Final = 320
"""Characters of an address at the most (RFC 5321); of what is longer, no pattern is made."""


def without_address(event: EmailEvent) -> EmailEvent:
    """The event with a hash wherever its texts hold the recipient's address.

    `email` stays, as what the anonymous id is made of. A bounce message, which quotes what a mail
    server says of any address, is left with none.
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
    """The text if it holds an address, then the addresses in it: it may be `Ann <ann@...>`."""
    if text and "@" in text:
        yield text
        yield from in_mailbox(text)


def _without(text: str, address: str) -> str:
    """The text with the address's hash in its place, also where it is percent-encoded, or twice."""
    if not _holds(text, address):
        return text
    if len(address) > _LONGEST:
        return digest(address)
    letters = (
        "|".join((re.escape(letter), "".join(rf"%(?:25)?{byte:02X}" for byte in letter.encode())))
        for letter in address
    )
    pattern = "".join(f"(?:{letter})" for letter in letters)
    said = re.sub(pattern, digest(address), text, flags=re.IGNORECASE)
    return digest(address) if _holds(said, address) else said


def _holds(text: str, address: str) -> bool:
    return address.lower() in unquote(unquote(text)).lower()
