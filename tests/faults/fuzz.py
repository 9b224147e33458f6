"""What must hold for any webhook body, and a search for one for which it does not.

`python -m tests.faults.fuzz --seconds 600` searches, guided by coverage; it needs atheris, which
has wheels for Linux on x86-64.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from multiprocessing import Process
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Final

from relay import sources
from relay.destinations import Rendering, segment
from relay.events import Collection, DeadReason, EmailEvent, Ignored, Unusable
from relay.sources import vero
from tests.harness.oracle import make_webhook
from tests.harness.routes import segment_at

DOCUMENT: Final[dict[str, Any]] = {
    "type": "bounced",
    "action": "bounced",
    "bounced_at": 1_772_366_400,
    "message_id": "mail-1",
    "user_agent": "Thunderbird",
    "bounce_type": "hard",
    "bounce_code": 550,
    "bounce_message": "no such mailbox",
    "event": {"name": "left basket", "data": {"token": "private"}},
    "user": {"id": 7, "email": "reader@example.com"},
    "campaign": {
        "id": 88,
        "name": "Basket reminder",
        "campaign_title": "Basket reminder",
        "subject": "Still thinking?",
        "email_subject": "Still thinking?",
        "type": "transactional",
        "group": "baskets",
        "series_title": "Baskets",
        "trigger-event": "left basket",
        "variation": "A",
        "variation_name": "A",
        "template": "plain",
        "locale": "en",
        "tags": ["basket", "reminder"],
        "channel": "email",
        "message_id": "mail-1",
        "sent_to": "reader@example.com",
    },
}
"""A webhook with a value in every field that relay reads, and in one that it does not."""

_NOON: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
_VERO: Final = vero.Vero(vero.VeroSettings.model_validate({"secret": "a-secret-for-the-tests"}))
_SEGMENT: Final = segment_at("https://example.com", "write-key")
_RECIPE: Final = b"\0"
"""Begins data that is not a body, but from which one is composed."""


def check(body: bytes) -> None:
    """Assert that relay's result for the body is lawful, and the same at any time."""
    result = _VERO.parse(body, _NOON)
    again = _VERO.parse(body, _NOON + timedelta(days=400))

    assert isinstance(result, EmailEvent | Ignored | Unusable)
    assert type(again) is type(result)
    if not (isinstance(result, EmailEvent) and isinstance(again, EmailEvent)):
        assert again == result
        return
    message_id = _message_id(result)
    rendered = _SEGMENT.render(
        result, source=_VERO.name, message_id=message_id, integrations=_VERO.integrations
    )
    if isinstance(rendered, Unusable):
        assert rendered.reason is DeadReason.OVERSIZED
        return
    assert isinstance(rendered, Rendering)
    message = json.loads(rendered.messages[0].encoded, parse_constant=_not_finite)

    assert result.dedupe_key is None or _message_id(again) == message_id
    assert message["messageId"] == message_id
    assert len(message_id) <= 100
    assert message["event"] in {*Collection}
    assert message["userId"] or message["anonymousId"]
    assert all(text and text == text.strip() for text in _texts(message))
    assert all(type(value) is str for value in message["properties"].values())


def _message_id(event: EmailEvent) -> str:
    return _SEGMENT.message_id(_VERO.name, event.dedupe_key, event.reported_at)


def _not_finite(constant: str) -> None:
    raise AssertionError(constant)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield key
            yield from _texts(member)


def _search(seconds: int, directory: Path) -> None:
    atheris = import_module("atheris")
    for module in (sources, vero, segment):
        for function in _functions(module):
            atheris.instrument_func(function)
    rng = Random(1)  # noqa: S311 (no secret depends on it)
    webhooks = [make_webhook(rng, number).body for number in range(200)]
    recipes = [_RECIPE + rng.randbytes(300) for _ in range(100)]
    for number, seed in enumerate([json.dumps(DOCUMENT).encode(), *webhooks, *recipes]):
        (directory / str(number)).write_bytes(seed)

    def tried(data: bytes) -> None:
        body = data
        if data.startswith(_RECIPE):
            recipe = atheris.FuzzedDataProvider(data.removeprefix(_RECIPE))
            body = json.dumps(_composed(DOCUMENT, recipe)).encode()
        try:
            check(body)
        except BaseException:
            print(f"it breaks on {body!r}")  # noqa: T201 (the search's result)
            raise

    options = [f"-max_total_time={seconds}", "-max_len=4096", f"-artifact_prefix={directory}/"]
    atheris.Setup([sys.argv[0], *options, str(directory)], tried)
    atheris.Fuzz()


def _functions(module: ModuleType) -> Iterator[Any]:
    for owner in (module, *(member for _, member in inspect.getmembers(module, inspect.isclass))):
        for _, function in inspect.getmembers(owner, inspect.isfunction):
            if function.__module__ == module.__name__:
                yield function


def _composed(document: dict[str, Any], recipe: Any) -> dict[str, Any]:  # noqa: ANN401 (of atheris)
    """Return the document, changed by the recipe: changed bytes are hardly ever JSON."""
    composed: dict[str, Any] = {}
    for key, value in document.items():
        choice = recipe.ConsumeIntInRange(0, 9)
        if choice < 3:
            composed[key] = _anything(recipe)
        elif choice < 9:
            composed[key] = _composed(value, recipe) if isinstance(value, dict) else value
    return composed


def _anything(recipe: Any) -> object:  # noqa: ANN401 (of atheris)
    kinds: list[Callable[[], object]] = [
        lambda: recipe.PickValueInList([None, True, False, "", " ", 123, "steve@getvero.com"]),
        lambda: recipe.ConsumeInt(9),
        lambda: str(recipe.ConsumeInt(6)),
        recipe.ConsumeFloat,
        lambda: _time(recipe),
        lambda: recipe.ConsumeUnicode(40),
        lambda: [_anything(recipe) for _ in range(recipe.ConsumeIntInRange(0, 3))],
        lambda: {recipe.ConsumeUnicode(5): _anything(recipe)},
    ]
    return kinds[recipe.ConsumeIntInRange(0, len(kinds) - 1)]()


def _time(recipe: Any) -> str:  # noqa: ANN401 (of atheris)
    time = recipe.PickValueInList(
        ["0001-01-01T00:00:00", "1969-12-31T23:59:59", "2026-02-30", "9999-12-31T23:59:59.999999"]
    )
    zone = recipe.PickValueInList(["", "Z", "+14:00", "-23:59", "+05:30:15.5"])
    return f"{time}{zone}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    with TemporaryDirectory() as temporary:
        # A process of its own, because a search ends its process.
        search = Process(target=_search, args=(parser.parse_args().seconds, Path(temporary)))
        search.start()
        search.join()
    sys.exit(search.exitcode)
