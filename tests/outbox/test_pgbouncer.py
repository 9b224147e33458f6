"""A PostgreSQL outbox behind PgBouncer in transaction mode, where sessions are shared."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from relay.outbox.postgres.store import PostgresOutbox
from tests.contracts.outbox import arrival
from tests.harness.entries import by_name, filled
from tests.harness.fakes import Clock
from tests.harness.postgres import PASSWORD, USER, PostgresServer, owner, query
from tests.harness.processes import closed_port, within
from tests.outbox.crowd import assert_kept_by_a_crowd
from tests.outbox.test_postgres import works

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
CONFIG = """
    [databases]
    * = host=127.0.0.1 port={server} user={user} password={password}
    [pgbouncer]
    listen_addr = 127.0.0.1
    listen_port = {port}
    auth_type = any
    pool_mode = transaction
    default_pool_size = 3
    unix_socket_dir =
"""

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer")


@pytest.fixture
def bouncer(postgres: PostgresServer, tmp_path: Path) -> Iterator[int]:
    """The port of a PgBouncer in front of the server."""
    with ExitStack() as stack:
        for _ in range(9):
            port = closed_port()
            if stack.enter_context(started(postgres, port, tmp_path)):
                yield port
                return
    raise AssertionError((tmp_path / "pgbouncer.log").read_text())


@contextmanager
def started(postgres: PostgresServer, port: int, directory: Path) -> Iterator[bool]:
    """Whether a PgBouncer runs at the port: it has ended if another program was quicker there."""
    assert PROGRAM
    config = CONFIG.format(server=postgres.port, user=USER, password=PASSWORD, port=port)
    file, log = directory / "pgbouncer.ini", directory / "pgbouncer.log"
    file.write_text("\n".join(line.strip() for line in config.splitlines()))
    file.chmod(0o644)  # whatever umask another test has left
    # Both are opened here, as its user may not be able to reach the directory.
    with (
        file.open() as given,
        log.open("a") as errors,
        subprocess.Popen(  # noqa: S603 (its own program)
            [PROGRAM, "/dev/stdin"], stdin=given, stderr=errors, **owner()
        ) as process,
    ):
        try:
            assert within(60, lambda: process.poll() is not None or "process up" in log.read_text())
            yield process.poll() is None
        finally:
            process.terminate()


def through(bouncer: int, url: str) -> str:
    """Return the URL of the database by way of the PgBouncer at this port."""
    return re.sub(r":\d+/", f":{bouncer}/", url) + "?pgbouncer=true"


def test_everything_works_on_shared_sessions_and_leaves_no_setting_on_them(
    postgres: PostgresServer, bouncer: int
) -> None:
    direct = postgres.create_database()
    url = through(bouncer, direct)
    clock = Clock()
    with (
        closing(PostgresOutbox(url, clock=clock.now)) as outbox,
        closing(PostgresOutbox(url, clock=clock.now)) as other,
    ):
        filled(outbox, clock)
        with ThreadPoolExecutor(8) as threads:
            added = [
                threads.submit((outbox, other)[number % 2].add, [arrival(f"more-{number}")])
                for number in range(60)
            ]
        assert all(each.result() == [True] for each in added)
        assert works(outbox)
        assert len(by_name(other.entries)) == 60 + 60 + 1
        paths = {query(url.partition("?")[0], "SHOW search_path")[0] for _ in range(9)}

    assert paths == {('"$user", public',)}
    postgres.drop_database(direct)


def test_several_forwarders_keep_every_order_on_shared_sessions(
    postgres: PostgresServer, bouncer: int
) -> None:
    direct = postgres.create_database()
    assert_kept_by_a_crowd(direct, through(bouncer, direct))
    postgres.drop_database(direct)
