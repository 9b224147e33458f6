"""Reads the forms and queries of the console's pages."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_FORM_BYTES: Final = 4 * 2**20

_MAX_FIELDS: Final = 20
_MAX_ID: Final = 2**63 - 1


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of the posted form, the last value of each.

    Raises:
        HTTPException: the form is too large, or has more fields than any of the console's.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise HTTPException(413, "This is larger than any webhook or batch may be.")
    text = body.decode(errors="replace")
    try:
        fields = await run_in_threadpool(
            parse_qs, text, keep_blank_values=True, max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise HTTPException(400, "This is not one of the console's forms.") from None
    return {name: values[-1] for name, values in fields.items()}


def parse_number(text: str | None) -> int | None:
    """Return the number that the digits form, at most the largest id; None for any other text."""
    if not text or not text.isascii() or not text.isdigit():
        return None
    return min(int(text[:19]), _MAX_ID)


def parse_time(text: str | None) -> datetime | None:
    """Return the time in ISO 8601, UTC unless it names another zone; None for any other text."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time.replace(tzinfo=time.tzinfo or UTC)


def reveals(fields: Mapping[str, str]) -> bool:
    """Return whether the query or form asks for pages that show addresses."""
    return fields.get("reveal") == "1"


def reveal_field(fields: Mapping[str, str]) -> dict[str, int]:
    """Return the field that makes the next page show addresses, if this page shows them."""
    return {"reveal": 1} if reveals(fields) else {}


def origin(request: Request) -> str:
    """Return the scheme and host by which the request reached relay.

    The sender or a proxy chooses them: show them, but do not rely on them.
    """
    return f"{request.scope['scheme']}://{request.headers.get('host', '')}"
