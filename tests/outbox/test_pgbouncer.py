"""A PostgreSQL outbox behind PgBouncer in transaction mode, where sessions are shared."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from relay.outbox.postgres.store import PostgresOutbox
from tests.contracts.outbox import arrival
from tests.harness.entries import by_name, filled
from tests.harness.fakes import Clock
from tests.harness.postgres import PASSWORD, USER, PostgresServer, owner, query
from tests.harness.processes import closed_port, within
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


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.fixture
def bouncer(postgres: PostgresServer, tmp_path: Path) -> Iterator[int]:
    """The port of a PgBouncer in front of the server."""
    assert PROGRAM
    # Below those that the system gives to servers of other tests meanwhile.
    port = 10_000 + closed_port() % 10_000
    config = CONFIG.format(server=postgres.port, user=USER, password=PASSWORD, port=port)
    file = tmp_path / "pgbouncer.ini"
    file.write_text("\n".join(line.strip() for line in config.splitlines()))
    # From its standard input, as its user may not be able to read the directory.
    with (
        file.open() as given,
        subprocess.Popen(  # noqa: S603 (its own program)
            [PROGRAM, "/dev/stdin"], stdin=given, stderr=subprocess.DEVNULL, **owner()
        ) as process,
    ):
        assert within(60, lambda: listens(port))
        yield port
        process.terminate()


def test_everything_works_on_shared_sessions_and_leaves_no_setting_on_them(
    postgres: PostgresServer, bouncer: int
) -> None:
    direct = postgres.create_database()
    url = direct.replace(f":{postgres.port}/", f":{bouncer}/") + "?pgbouncer=true"
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
