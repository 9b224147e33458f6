import json

import pytest

from tests.fakes import Answer, SegmentServer
from tests.processes import RelayProcess, Reply, Store, pending, run, within

_FREE_NOWHERE = str(2**40)  # MiB
_SECONDS = 5


def opened(number: int) -> bytes:
    """A webhook like no other."""
    return json.dumps(
        {"type": "opened", "message_id": f"mail-{number}", "user": {"id": 1}}
    ).encode()


def is_refused(reply: Reply) -> bool:
    """Whether the sender is told to come again."""
    return reply.status == 503 and int(reply.headers["retry-after"]) > 0


@pytest.mark.parametrize("kind", ["sqlite_store", "postgres_store"])
def test_beyond_the_backlog_nothing_is_taken_until_enough_has_gone_out(
    kind: str, request: pytest.FixtureRequest
) -> None:
    store: Store = request.getfixturevalue(kind)
    with SegmentServer() as server, RelayProcess(store, server.url, RELAY_MAX_BACKLOG="3") as relay:
        server.judge = lambda _batch: Answer(503)
        accepted = [relay.post(opened(number)).status for number in range(4)]
        full = within(_SECONDS, lambda: is_refused(relay.post(opened(9))))
        unready = relay.ask("GET", "/readyz")
        alive = relay.ask("GET", "/healthz")
        server.judge = lambda _batch: Answer()
        drained = within(60, lambda: not pending(store))
        again = within(_SECONDS, lambda: relay.post(opened(10)).status == 200)
        ready = within(_SECONDS, lambda: relay.ask("GET", "/readyz").status == 200)

    assert accepted == [200] * 4
    assert full
    assert unready.status == 503
    assert "RELAY_MAX_BACKLOG" in str(unready.content["reasons"])
    assert alive.status == 200
    assert (drained, again, ready) == (True, True, True)


def test_with_too_little_room_on_the_disk_what_is_stored_still_goes_out(
    sqlite_store: Store,
) -> None:
    with SegmentServer() as server:
        server.judge = lambda _batch: Answer(503)
        with RelayProcess(sqlite_store, server.url) as relay:
            relay.post(opened(1))
        server.judge = lambda _batch: Answer()
        with FullRelay(sqlite_store, server.url, RELAY_MIN_FREE_DISK=_FREE_NOWHERE) as relay:
            refused = relay.post(opened(2))
            reasons = relay.ask("GET", "/readyz").content["reasons"]
            delivered = within(30, lambda: not pending(sqlite_store))
        with RelayProcess(sqlite_store, server.url) as relay:
            again = relay.post(opened(2))

    assert is_refused(refused)
    assert "RELAY_MIN_FREE_DISK" in str(reasons)
    assert delivered
    assert again.content["status"] == "accepted"


class FullRelay(RelayProcess):
    """One that is not ready from the start."""

    def _ready(self) -> bool:
        started = [line for line in self.log() if line["event"] == "serve.started"]
        if started:
            self.port = int(started[0]["webhooks"][0].split(":")[2].split("/")[0])
        return bool(started) and self.listens()


@pytest.mark.parametrize(
    ("command", "doing"),
    [(["forward"], "forwards from"), (["serve", "--port", "0"], "receives into")],
)
def test_a_second_relay_on_one_file_is_refused(
    sqlite_store: Store, command: list[str], doing: str
) -> None:
    with SegmentServer() as server, RelayProcess(sqlite_store, server.url) as relay:
        relay.post(opened(1))
        forwards = within(30, lambda: not pending(sqlite_store))
        second = run(
            *command,
            SEGMENT_WRITE_KEY="another-key",
            SEGMENT_HOST=server.url,
            RELAY_OUTBOX_URL=sqlite_store.url,
        )

    assert forwards
    assert second.returncode == 1
    assert f"another process {doing}" in second.stderr
    assert "relay.db" in second.stderr
