"""The documentation's pictures of the console: `make pictures`.

They show a relay that has run for a day.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final, get_args

from playwright.sync_api import Browser, expect

from relay.demo.traffic import Webhook, journeys
from relay.outbox import open_outbox
from relay.outbox.entries import Arrival
from relay.sources import source_classes
from tests.console.browsing import Scheme, chromium, window
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import WRITE_KEY, RelayProcess
from tests.harness.routes import route, segment_at
from tests.harness.stores import SqliteStore

PICTURES: Final = Path(__file__).parents[2] / "pictures"

_EVENTS: Final = 4_000
_DELIVERED: Final = "/console/events?state=delivered&collection=Email+Opened"
_HEIGHTS: Final = {"overview": 1200, "events": 680, "event": 1380, "dead": 850, "playground": 1720}


def made_up_day(now: datetime) -> Iterator[Arrival]:
    """Yield what was received within the last day, more by day than by night."""
    rng = Random(7)
    seconds = sorted(_second(rng) for _ in range(_EVENTS))
    at = iter(seconds)
    latest = [0.0]

    def clock() -> float:
        return (now - timedelta(days=1)).timestamp() + latest[0]

    vero = source_classes()["vero"]
    source = vero(vero.settings_model())
    segment = segment_at("https://example.com", WRITE_KEY)
    webhooks = journeys(rng, clock=clock)
    for second in at:
        latest[0] = second
        body = next(webhooks).body
        arrival = route(source, segment).accept(body, datetime.fromtimestamp(clock(), UTC))
        if isinstance(arrival, Arrival):
            yield arrival


def _second(rng: Random) -> float:
    """Return a random second of a day."""
    while True:
        at = rng.uniform(0, 86_400)
        if rng.random() < 0.55 + 0.45 * math.sin((at / 86_400 - 0.2) * 2 * math.pi):
            return at


def fill(store: SqliteStore) -> None:
    """Store the day's events, nearly all of them as delivered."""
    with closing(open_outbox(store.url, create=True)) as outbox:
        arrivals = made_up_day(datetime.now(UTC))
        while group := [*islice(arrivals, 500)]:
            outbox.add(group)
    store.run_sql(
        "UPDATE entries SET state = 'delivered', pending_since = NULL, attempts = 1,"
        " delivered_at = received_at + 240 WHERE state = 'pending'"
    )


def refuse_some(batch: list[dict[str, Any]]) -> Answer:
    """Reject marks as spam, so that there is a dead letter of that reason, too."""
    return Answer(400 if any(m["event"] == "Email Marked as Spam" for m in batch) else 200)


def post_on(relay: RelayProcess, webhooks: Iterator[Webhook]) -> None:
    """Post three webhooks a second, until relay ends."""
    with suppress(OSError, HTTPException):
        for webhook in webhooks:
            relay.post(webhook.body)
            time.sleep(0.3)


def shoot(browser: Browser, relay: RelayProcess, scheme: Scheme) -> None:
    """Make all pictures in one colour scheme."""
    for name, height in _HEIGHTS.items():
        with window(browser, relay, height=height, scheme=scheme) as context:
            page = context.new_page()
            page.goto({"overview": "/console/", "event": _DELIVERED}.get(name, f"/console/{name}"))
            if name == "event":
                page.get_by_role("link", name=":").first.click()
            if name == "playground":
                page.get_by_role("button", name="Try it").click()
            if name == "overview":
                expect(page.get_by_text("All is well.")).to_be_visible()
            if name in {"overview", "events"}:
                expect(page.get_by_text("· live")).to_be_visible()
                page.wait_for_timeout(2_500)  # until there is a rate
            page.screenshot(path=PICTURES / f"{name}-{scheme}.png")


def main() -> None:
    """Make all pictures."""
    PICTURES.mkdir(exist_ok=True)
    with TemporaryDirectory() as directory, SegmentServer() as segment, chromium() as browser:
        store = SqliteStore(Path(directory, "relay.db"))
        fill(store)
        with RelayProcess(store, segment.url) as relay:
            segment.judge = refuse_some
            webhooks = journeys(Random(11))
            for webhook in islice(webhooks, 40):
                relay.post(webhook.body)
            threading.Thread(target=post_on, args=(relay, webhooks), daemon=True).start()
            for scheme in get_args(Scheme):
                shoot(browser, relay, scheme)


if __name__ == "__main__":
    main()
