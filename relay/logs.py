"""Logging: structlog, set up once, and nothing private in any line.

Events are dotted (`webhook.accepted`, `forward.sent`); what varies is in keys. No line carries an
address, a body or a secret: call sites pass none, and the masks here are the second fence.
"""

import logging
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_ADDRESS: Final = re.compile(r"[^\s@<>\"',;:()\[\]]+@[^\s@<>\"',;:()\[\]]+")
_MASK: Final = "***"


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with every address and each of the secrets replaced."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may begin another
        text = text.replace(secret, _MASK)
    return _ADDRESS.sub(_MASK, text) if "@" in text else text


def _masked(value: object, secrets: Iterable[str]) -> object:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, dict):
        return {mask(str(key), secrets): _masked(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item, secrets) for item in value]
    return mask(value.decode(errors="replace") if isinstance(value, bytes) else str(value), secrets)


class _Unfailing:
    """A stream whose failing fails nobody who logs: its disk may be full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def configure(
    *, level: str = "info", style: Literal["json", "console"] = "json", secrets: Iterable[str] = ()
) -> None:
    """Send structlog's and the standard library's records to standard error, masked.

    Args:
        level: the least severe level that is written.
        style: one JSON object a line, or lines for people.
        secrets: texts that must never be written.
    """
    hidden = tuple(secrets)

    def masked(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {mask(key, hidden): _masked(value, hidden) for key, value in event.items()}

    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, masked, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=_Unfailing(sys.stderr)),  # type: ignore[arg-type]  # it writes
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, masked, renderer],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # At debug the SDK writes whole bodies and the write key; its errors are told by relay itself.
    logging.getLogger("segment").setLevel(logging.CRITICAL + 1)
    # The pool logs each attempt to connect; what fails for it is told by relay itself.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    # urllib3 logs URLs and headers' names at debug, and a warning for each retry.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
