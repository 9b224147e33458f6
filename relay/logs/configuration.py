"""Logging: structlog, set up once, and nothing private in any line.

Events are dotted (`webhook.accepted`, `forward.sent`); what varies is in keys. No line carries an
address, a body or a secret: call sites pass none, and the masks here are the second fence.
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

_SHORTEST: Final = 4
# Of a shorter secret, letters that stand in a word say nothing; in a URL or an assignment they do.
_ASSIGNED: Final = r"""(?<=[:=])(?<!://){}(?=[@&,;\s"')]|$)"""


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with every address and each of the secrets replaced."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may begin another
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, MASK)
        elif secret in text:
            text = re.sub(_ASSIGNED.format(re.escape(secret)), MASK, text)
    return mask_line(text)


def _masked(value: object, secrets: Iterable[str]) -> object:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, dict):
        return {mask(str(key), secrets): _masked(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item, secrets) for item in value]
    return mask(value.decode(errors="replace") if isinstance(value, bytes) else str(value), secrets)


def unwaited(
    stream: TextIO | None,
    *,
    dropped: Callable[[int], object] = lambda _: None,
    resumed: Callable[[int], object] = lambda _: None,
) -> TextIO:
    """The stream, written to in the background and drained at the end of the process.

    One in memory is returned as it is, and one that was closed from the beginning goes nowhere. The
    arguments are `BackgroundWriter`'s.
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
    """Have the lines written that wait for it, as far as their reader takes them in time."""
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

    From here on nobody waits for whoever reads it, whatever is written to it.

    Args:
        level: the least severe level that is written.
        style: one JSON object a line, or lines for people.
        secrets: texts that must never be written.
        dropped: called with how many lines were dropped, because their reader takes no more.
    """
    sys.stderr = unwaited(sys.stderr, dropped=dropped, resumed=_tell_dropped)
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
    # At debug the SDK writes whole bodies and the write key; its errors are told by relay itself.
    logging.getLogger("segment").setLevel(logging.CRITICAL + 1)
    # The pool logs each attempt to connect; what fails for it is told by relay itself.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    # urllib3 logs URLs and headers' names at debug, and a warning for each retry.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def _tell_dropped(lines: int) -> None:
    structlog.get_logger().error("log.dropped", lines=lines)
