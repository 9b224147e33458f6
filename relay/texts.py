"""Reads JSON values as texts, ids and objects."""

from typing import Any


def as_object(value: object) -> dict[str, Any]:
    """Return the value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_text(value: object) -> str | None:
    """Return the value as a trimmed string: `7` and `"7"` both give `7`.

    A list becomes its members joined by ", ". None for blank strings, null and objects.
    """
    if type(value) is str:
        return value.strip() or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, list):
        return ", ".join(filter(None, map(as_text, value))) or None
    return None


def as_id(value: object) -> str | None:
    """Return a string or a number as `as_text` does; None for any other value, which is no id."""
    return as_text(value) if type(value) in {str, int, float} else None
