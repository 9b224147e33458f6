from tests.cli.desk import webhook
from tests.console.client import (
    act,
    live,
    look,
    shown,
)
from tests.harness.fakes import SegmentServer
from tests.harness.processes import RelayProcess
from tests.harness.stores import Store

PAGES = ["", "events", "events?q=x", "events/1", "dead", "dead/export"]


def test_a_failing_outbox_is_reported_on_the_page(store: Store) -> None:
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        relay.post(webhook("gone", kind="snoozed"))
        with live(relay, "/console/live/events") as response:
            before = shown(response)
            store.run_sql("ALTER TABLE entries RENAME TO gone")
            store.run_sql("ALTER TABLE counters RENAME TO gone_too")
            pages = {path: look(relay, f"/console/{path}") for path in PAGES}
            played = act(relay, "/console/playground", body=webhook("gone").decode())
            done = act(relay, "/console/events/1/replay")
            store.run_sql("ALTER TABLE gone RENAME TO entries")
            store.run_sql("ALTER TABLE gone_too RENAME TO counters")
            relay.post(webhook("gone", 1, kind="snoozed"))

            assert before.count("<tr id=") == 1
            assert shown(response).count("<tr id=") == 2  # nothing else was shown meanwhile

    for path, page in {**pages, "played": played, "done": done}.items():
        assert page.status == 503, path
        assert "The outbox does not answer" in page.html.text
        assert "Traceback" not in page.text
    assert not any("exception" in line or "exc_info" in line for line in relay.log())
