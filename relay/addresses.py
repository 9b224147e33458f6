"""What stands in an address's place where it must not be sent."""

import re
from hashlib import sha256
from urllib.parse import unquote

from msgspec import structs

from relay.events import EmailEvent
from relay.masking import mask


def hashed(address: str) -> str:
    """The hex SHA-256 of the address in lower case: one for each way to capitalise it."""
    return sha256(address.lower().encode()).hexdigest()


def without_address(event: EmailEvent) -> EmailEvent:
    """The event with a hash wherever its texts hold the recipient's address.

    `email` stays, as what the anonymous id is made of. A bounce message, which quotes what a mail
    server says of any address, is left with none.
    """
    user_id, user_agent, properties = event.user_id, event.user_agent, event.properties
    for address in {event.email, user_id}:
        if address and "@" in address:
            properties = {name: _without(text, address) for name, text in properties.items()}
            user_agent = user_agent and _without(user_agent, address)
    if "bounce_message" in properties:
        properties = {**properties, "bounce_message": mask(properties["bounce_message"])}
    return structs.replace(
        event,
        user_id=hashed(user_id) if user_id and "@" in user_id else user_id,
        user_agent=user_agent,
        properties=properties,
    )


def _without(text: str, address: str) -> str:
    """The text with the address's hash in its place, also where it is percent-encoded, or twice."""
    if not _holds(text, address):
        return text
    letters = (
        "|".join((re.escape(letter), "".join(rf"%(?:25)?{byte:02X}" for byte in letter.encode())))
        for letter in address
    )
    pattern = "".join(f"(?:{letter})" for letter in letters)
    said = re.sub(pattern, hashed(address), text, flags=re.IGNORECASE)
    return hashed(address) if _holds(said, address) else said


def _holds(text: str, address: str) -> bool:
    return address.lower() in unquote(unquote(text)).lower()
