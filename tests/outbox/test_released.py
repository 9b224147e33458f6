"""See tests/outbox/released.py."""

from collections import Counter
from contextlib import closing

import pytest

from relay.errors import OutboxError
from relay.outbox import open_outbox
from relay.outbox.counters import population
from relay.outbox.entries import State, StoredEntry, total
from relay.outbox.postgres import schema as postgres_schema
from relay.outbox.sqlite import schema as sqlite_schema
from tests.harness.entries import everything
from tests.harness.fakes import SegmentServer
from tests.harness.processes import RelayProcess, within
from tests.harness.stores import Store, pending
from tests.outbox.released import (
    DELIVERED,
    LATEST,
    PENDING,
    REJECTED,
    REPLAYED,
    UNUSABLE,
    fixtures,
    load,
)

MIGRATIONS = {"sqlite": sqlite_schema, "postgres": postgres_schema}
KEPT_DAYS = "36500"
"""Nothing of the fixtures is purged, however old they are."""

Released = tuple[Store, int]


@pytest.fixture(
    params=[(store, version) for store in MIGRATIONS for version in fixtures(store)],
    ids=lambda fixture: "-".join(map(str, fixture)),
)
def released(request: pytest.FixtureRequest) -> Released:
    """Return a store with the outbox of a released version, and that version."""
    kind, version = request.param
    store: Store = request.getfixturevalue(f"{kind}_store")
    load(store, version)
    return store, version


def by_body(store: Store) -> dict[bytes, StoredEntry]:
    """Return the entries as this version reads them, by their bodies."""
    with closing(open_outbox(store.url)) as outbox:
        found = everything(outbox.entries)
        counted = Counter(entry.state for entry in found)
        counts, kinds = total(outbox.counts()), population(outbox.counters())

    assert (counts.pending, counts.delivered, counts.dead) == tuple(counted[s] for s in State)
    assert sum(kinds.values()) == len(found)
    return {entry.body: entry for entry in found}


def what_happened(entry: StoredEntry) -> list[tuple[str, str]]:
    return [(event.what, event.detail) for event in entry.history]


@pytest.mark.parametrize("kind", MIGRATIONS)
def test_there_is_a_fixture_for_each_released_version(kind: str) -> None:
    assert fixtures(kind) == [*range(1, LATEST[kind] + 1)]


def test_every_entry_of_a_released_version_is_read(released: Released) -> None:
    found = by_body(released[0])

    assert found.keys() == {*DELIVERED, *REJECTED, *REPLAYED, *UNUSABLE, *PENDING}
    for state, bodies in {
        State.DELIVERED: [*DELIVERED, *REPLAYED],
        State.DEAD: [*REJECTED, *UNUSABLE],
        State.PENDING: PENDING,
    }.items():
        assert {found[body].state for body in bodies} == {state}
    assert [found[body].reason for body in [*REJECTED, *UNUSABLE]] == [
        "rejected",
        "unknown_type",
        "unreadable",
    ]
    assert [what for what, _ in what_happened(found[REPLAYED[0]])] == ["dead", "replayed"]
    assert ("posted", "503 Service Unavailable") in [
        each for body in PENDING for each in what_happened(found[body])
    ]


def test_its_operations_are_read(released: Released) -> None:
    with closing(open_outbox(released[0].url)) as outbox:
        operations = outbox.entries.operations(9)

    assert [(each.kind, each.entries) for each in operations] == [("erase", 1), ("replay", 1)]
    assert all(each.finished_at for each in operations)


def test_its_pending_entries_are_forwarded_and_copies_recognised(released: Released) -> None:
    store, _ = released
    before = {body: entry.message_id for body, entry in by_body(store).items()}
    with (
        SegmentServer() as segment,
        RelayProcess(store, segment.url, RELAY_RETENTION_DAYS=KEPT_DAYS) as relay,
    ):
        assert within(30, lambda: pending(store) == 0)
        copies = [relay.post(body).content for body in [*DELIVERED, *PENDING]]
    sent = [message["messageId"] for message in segment.accepted]

    assert sorted(sent) == sorted(before[body] for body in PENDING)
    assert copies == [
        {"status": "duplicate", "message_id": before[body]} for body in [*DELIVERED, *PENDING]
    ]
    assert {entry.state for entry in by_body(store).values()} == {State.DELIVERED, State.DEAD}


def test_an_older_relay_refuses_it(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older relay is one that knows fewer migrations."""
    store, version = released
    for schema in MIGRATIONS.values():
        monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[: version - 1])
    with pytest.raises(OutboxError, match="newer relay"):
        open_outbox(store.url)
