"""Configures structlog and the standard library's logging.

Names of events are dotted (`webhook.accepted`, `forward.sent`); what varies is in keys. No line
contains an address, a body or a secret: callers pass none, and masking here is a second safeguard.
"""

import atexit
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from relay.addresses import MASK, mask_line
from relay.logs.writer import BackgroundWriter

_MIN_LENGTH: Final = 4
# A shorter secret is masked only in a URL or an assignment: its letters may be part of a word.
_ASSIGNED: Final = r"""(?<=[:=])(?<!://){}(?=[@&,;\s"')]|$)"""


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the text with every address and every secret replaced by a mask."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be the beginning of another
        if len(secret) >= _MIN_LENGTH:
            text = text.replace(secret, MASK)
        elif secret in text:
            text = re.sub(_ASSIGNED.format(re.escape(secret)), MASK, text)
    return mask_line(text)


def _mask_value(value: object, secrets: Iterable[str]) -> object:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, dict):
        return {mask(str(key), secrets): _mask_value(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask_value(item, secrets) for item in value]
    return mask(value.decode(errors="replace") if isinstance(value, bytes) else str(value), secrets)


def in_background(
    stream: TextIO | None,
    *,
    dropped: Callable[[int], object] = lambda _: None,
    resumed: Callable[[int], object] = lambda _: None,
) -> TextIO:
    """Return a stream that writes to this one in the background, drained when the process ends.

    A stream in memory is returned as it is. None, which Python has for a closed descriptor, becomes
    a stream that discards its text. The arguments are `BackgroundWriter`'s.
    """
    if stream is None:
        return Path(os.devnull).open("w")
    try:
        output = stream.fileno()
    except (OSError, ValueError):
        return stream
    writer = BackgroundWriter(output, dropped=dropped, resumed=resumed)
    atexit.register(writer.drain)
    return cast("TextIO", writer)


def drain() -> None:
    """Wait until the lines logged so far are written, or their reader has stalled for too long."""
    if isinstance(sys.stderr, BackgroundWriter):
        sys.stderr.drain()


def configure(
    *,
    level: str = "info",
    style: Literal["json", "console"] = "json",
    secrets: Iterable[str] = (),
    dropped: Callable[[int], object] = lambda _: None,
) -> None:
    """Send structlog's and the standard library's records to standard error, masked.

    From then on, nothing that writes to standard error waits for its reader.

    Args:
        level: the least severe level that is written.
        style: `json`, one object per line, or `console`, for people.
        secrets: texts that must never be written.
        dropped: called with the number of lines dropped because their reader has stalled.
    """
    sys.stderr = in_background(sys.stderr, dropped=dropped, resumed=_log_dropped)
    hidden = tuple(secrets)

    def masked(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {mask(key, hidden): _mask_value(value, hidden) for key, value in event.items()}

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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, masked, renderer],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # The pool logs each attempt to connect; relay logs what fails because of it.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    # urllib3 logs URLs and header names at debug, and a warning for each retry.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def _log_dropped(lines: int) -> None:
    structlog.get_logger().error("log.dropped", lines=lines)
