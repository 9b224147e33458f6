"""Finds out whether a body that cannot be parsed names a person or an email.

Such a body has no keys to search by. It may be half of a document, or in another encoding. So the
field names around each value decide whether it is taken to name a person.
"""

import re
from typing import Final

from relay.addresses import in_body, matches
from relay.errors import UnreadableError
from relay.operations.lineage import Path, leaves
from relay.sources.fields import read_object
from relay.texts import as_text

# Names of fields that hold a user's id, or an object with one. The tags of a call are such an
# object; those of an email are none.
_PERSON: Final = re.compile(
    r"user(?![_-]?agent)|customer|recipient|subscriber|contact|profile|person|identif"
    r"|previous|anonymous|tags\W+\{",
    re.IGNORECASE,
)
_TAGS_ID: Final = ("tags", "id")
_CONTEXT_CHARACTERS: Final = 200


def mentions(
    body: bytes, *, user_id: str | None, email_id: str | None, address: str | None
) -> bool:
    """Return whether the body contains each of the ids and addresses that are given.

    An address may stand anywhere in the body. An id must be the whole of a field, and a user's id
    that of a field about a person, since any field may hold the same number.
    """
    try:
        document = read_object(body)
    except UnreadableError:
        # Most often half of a document. NULs are left out because it may be UTF-16.
        text = body.replace(b"\0", b"").decode(errors="replace")
        return _text_mentions(text, user_id=user_id, email_id=email_id, address=address)
    values = [(path, value) for path, leaf in leaves(document) if (value := as_text(leaf))]
    return (
        (not address or any(_holds_address(value, address) for _, value in values))
        and (not email_id or any(value == email_id for _, value in values))
        and (not user_id or any(v == user_id and _is_about_person(path) for path, v in values))
    )


def _is_about_person(path: Path) -> bool:
    if path[-2:] == _TAGS_ID:
        return True
    return any(isinstance(step, str) and _PERSON.search(step) for step in path)


def _text_mentions(
    text: str, *, user_id: str | None, email_id: str | None, address: str | None
) -> bool:
    return (
        (not address or _holds_address(text, address))
        and (not email_id or bool(_before_each(email_id, text)))
        and (not user_id or any(map(_ends_in_person_field, _before_each(user_id, text))))
    )


def _holds_address(text: str, wanted: str) -> bool:
    """Return whether the address is the whole text, whatever it looks like, or stands in it."""
    return any(matches(wanted, found) for found in (text.strip("'"), *in_body(text)))


def _before_each(word: str, text: str) -> list[str]:
    """Return the characters before each occurrence of the word in the text."""
    found = re.finditer(rf"(?<![\w.@%+-]){re.escape(word)}(?![\w.@%+-])", text)
    return [text[max(0, match.start() - _CONTEXT_CHARACTERS) : match.start()] for match in found]


def _ends_in_person_field(text: str) -> bool:
    """Return whether what follows the text is in a field, or in an object, named like a person."""
    text = text.rpartition("}")[2]
    found = [*_PERSON.finditer(text)]
    if not found:
        return False
    since_name = text[found[-1].end() :]
    return "{" in found[-1][0] + since_name or not set(since_name) & set(",&")
