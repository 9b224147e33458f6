"""Leases of killed processes, which last a minute in PostgreSQL."""

from tests.harness.processes import within
from tests.harness.stores import PostgresStore, Store

_SESSIONS_OF_OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'
        AND pid <> pg_backend_pid()
"""


def end_leases(store: Store) -> None:
    """Let the minute pass; no relay is running.

    PostgreSQL may still be at a statement of the killed, and claim for them afterwards.
    """
    if isinstance(store, PostgresStore):
        assert within(30, lambda: store.run_sql(_SESSIONS_OF_OTHERS) == [(0,)])
        store.run_sql("UPDATE entries SET due_at = now() WHERE state = 'pending'")
