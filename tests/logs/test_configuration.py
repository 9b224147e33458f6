import json
import logging
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from typing import Any, Literal

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.logs import configuration as logs

SECRET = "first-secret-0123456789"
ADDRESS = "Somebody.Else+tag@mail.example.com"
PRIVATE = f"{ADDRESS} at /webhooks/vero/{SECRET}"
HOSTILE = ['a\nb {"event":"forged"}', "\r\x1b[31m\x1b]0;", "\u2028\u2029\x85", "\0\ud800", '"}\n{"']


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "psycopg.pool", "urllib3")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    structlog.reset_defaults()


def written(
    log: Callable[[], object], *, level: str = "debug", style: Literal["json", "console"] = "json"
) -> str:
    """What the log writes."""
    with redirect_stderr(StringIO()) as stream:
        logs.configure(level=level, style=style, secrets=[SECRET])
        log()
    return stream.getvalue()


def line(log: Callable[[], object]) -> dict[str, Any]:
    """The one line that the log writes, which is one JSON object."""
    (only,) = written(log).split("\n")[:-1]
    read: dict[str, Any] = json.loads(only)
    return read


@pytest.mark.parametrize("secret", ["a", "wk", "e4", "?"])
def test_a_short_secret_is_not_masked_within_words(secret: str) -> None:
    words = "forward.held: a week awaits? at=1 he4d: wait"
    texts = [f"postgresql://owner:{secret}@db/events", f"password={secret}", f"key={secret}&a=1"]

    assert logs.mask(words, [secret, SECRET]) == words
    assert [logs.mask(text, [secret]) for text in texts] == [
        *("postgresql://owner:***", "password=***", "key=***&a=1")
    ]


def test_a_short_secret_does_not_keep_others_from_being_masked() -> None:
    assert logs.mask(f"said {SECRET}", ["a", SECRET]) == "said ***"


def _log() -> None:
    structlog.get_logger().warning(f"said {PRIVATE}", to=ADDRESS, url=f"/webhooks/vero/{SECRET}")


def _log_by_the_standard_library() -> None:
    logging.getLogger("uvicorn.error").warning("said %s of %s", PRIVATE, {"to": ADDRESS})


def _log_with_a_stack() -> None:
    logging.getLogger("asyncio").error(PRIVATE, stack_info=True)


def _fail() -> None:
    try:
        int(PRIVATE)
    except ValueError as error:
        raise RuntimeError(PRIVATE) from error


def _log_a_traceback() -> None:
    try:
        _fail()
    except RuntimeError:
        structlog.get_logger().exception("failed")


def _log_a_traceback_by_the_standard_library() -> None:
    try:
        _fail()
    except RuntimeError:
        logging.getLogger("asyncio").exception("failed")


_LOG_CALLS = [
    _log,
    _log_by_the_standard_library,
    _log_with_a_stack,
    _log_a_traceback,
    _log_a_traceback_by_the_standard_library,
]


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("log", _LOG_CALLS)
def test_no_address_and_no_secret_is_written(
    log: Callable[[], None], style: Literal["json", "console"]
) -> None:
    text = written(log, style=style)

    assert "***" in text
    assert SECRET not in text
    assert "Somebody" not in text
    assert "example.com" not in text


@pytest.mark.parametrize("log", _LOG_CALLS)
def test_every_record_is_one_json_object_on_one_line(log: Callable[[], None]) -> None:
    assert {"event", "level", "timestamp"} <= line(log).keys()


def test_a_line_has_its_event_level_values_and_time() -> None:
    record = line(lambda: structlog.get_logger().info("forward.sent", messages=3, answer=None))
    timestamp = record.pop("timestamp")

    assert record == {"event": "forward.sent", "level": "info", "messages": 3, "answer": None}
    assert timestamp.endswith("Z")


def test_a_traceback_is_in_the_line_of_its_error() -> None:
    record = line(_log_a_traceback)

    assert "ValueError: invalid literal" in record["exception"]
    assert "RuntimeError: *** at" in record["exception"]


@settings(deadline=None)
@given(st.text(st.characters()) | st.sampled_from(HOSTILE))
def test_any_text_is_logged_as_one_line_of_ascii(text: str) -> None:
    for log in (
        lambda: structlog.get_logger().info(text, value=text),
        lambda: logging.getLogger("asyncio").warning("%s", text),
    ):
        (only, end) = written(log).split("\n")

        assert json.loads(only)["event"] == logs.mask(text)
        assert only.isascii()
        assert only.isprintable()
        assert end == ""


@pytest.mark.parametrize(
    "text", ["somebody@example.com", "<a.b+c@example.com>", "to=ä@exämple.com,", '"é@example.com"']
)
def test_an_address_is_masked_wherever_it_stands(text: str) -> None:
    masked = logs.mask(f"before {text} after")

    assert "@" not in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")


def test_lines_below_the_level_are_not_written() -> None:
    def log() -> None:
        structlog.get_logger().info("forward.sent")

    assert "forward.sent" in written(log, level="debug")
    assert "forward.sent" in written(log, level="info")
    assert written(log, level="warning") == ""


@pytest.mark.parametrize(
    "value", [ValueError(PRIVATE), {ADDRESS: SECRET}, [PRIVATE], (PRIVATE,), PRIVATE.encode()]
)
def test_nested_values_are_masked_too(value: object) -> None:
    text = written(lambda: structlog.get_logger().info("said", value=value))

    assert ADDRESS not in text
    assert SECRET not in text


def test_of_two_secrets_that_begin_alike_the_longer_is_masked_whole() -> None:
    assert logs.mask("first-secret-tail", ["first-secret", "first-secret-tail"]) == "***"
