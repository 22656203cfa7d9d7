"""The service behind PgBouncer in session mode, with its defaults except for what service/README.md asks for."""

import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from service.database.account import switch_to, unprivileged_account
from service.database.connection import STARTUP, session_parameters
from service.database.pool import open_database
from service.database.statements import LIST_LAST_CHANGES
from service.settings import Settings
from tests.databases import query
from tests.faults.outage import assert_recovers, hosts_in_use, interrupt_database, under_load
from tests.faults.server import END_SESSIONS, Server
from tests.processes import ServiceProcess, free_port, running_service, wait_until

PROGRAM = shutil.which("pgbouncer", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")

NEEDED = {"default_pool_size": "40", "server_login_retry": "1"}
SHOW = (
    "select pg_backend_pid() as pid, lower(name) as name, setting from pg_settings where lower(name) = any($1::text[])"
)


class Pooler:
    """Its port, and so its URL, stays the same when it is started again."""

    def __init__(self, server: Server, directory: Path, settings: dict[str, str]) -> None:
        directory.mkdir()
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._log = directory / "pgbouncer.log"
        self._file = directory / "pgbouncer.ini"
        database = f"postgres = host={server.sockets} port=5432 user=postgres"
        own = {"listen_addr": "127.0.0.1", "listen_port": str(self.port), "unix_socket_dir": "", "auth_type": "any"}
        lines = [f"{name} = {value}" for name, value in (own | settings).items()]
        self._file.write_text("\n".join(["[databases]", database, "[pgbouncer]", *lines, ""]))

    def start(self) -> None:
        with self._file.open() as file, self._log.open("ab") as log:
            account = switch_to(unprivileged_account())
            self.process = psutil.Popen([str(PROGRAM), "/dev/stdin"], stdin=file, stdout=log, stderr=log, **account)
        wait_until(self.accepts)

    def accepts(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def halt(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running_pooler(server: Server, directory: Path, **settings: str) -> Iterator[Pooler]:
    pooler = Pooler(server, directory, NEEDED | settings)
    pooler.start()
    try:
        yield pooler
    finally:
        pooler.kill()


@pytest.fixture
def pooler(server: Server, tmp_path: Path) -> Iterator[Pooler]:
    with running_pooler(server, tmp_path / "pooler") as started:
        yield started


@pytest.fixture
def service(pooler: Pooler, tmp_path: Path) -> Iterator[ServiceProcess]:
    with running_service(tmp_path / "service", DATABASE_URL=pooler.url) as started:
        yield started


def test_service_survives_kills_of_the_pooler(server: Server, pooler: Pooler, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        for _ in range(2):
            interrupt_database(record, service, pooler.kill, pooler.start)


def test_service_survives_crashes_of_the_server_behind_the_pooler(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        for _ in range(2):
            interrupt_database(record, service, server.kill, server.start)


def test_service_survives_sessions_that_end_behind_the_pooler(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        for _ in range(5):
            query(server.url, END_SESSIONS)
            assert_recovers(record)


def test_service_uses_the_other_one_of_two_poolers_if_one_halts(server: Server, pooler: Pooler, tmp_path: Path) -> None:
    with running_pooler(server, tmp_path / "other") as other:
        url = f"postgresql://postgres@127.0.0.1:{pooler.port},127.0.0.1:{other.port}/postgres"
        with (
            running_service(tmp_path / "service", DATABASE_URL=url) as service,
            under_load(service, database_url=server.url) as record,
        ):
            (pooler if hosts_in_use(service)[-1] == f"127.0.0.1:{pooler.port}" else other).halt()
            assert_recovers(record)


async def test_session_that_the_pooler_lends_again_is_set_up_again(server: Server, tmp_path: Path) -> None:
    """The pooler has discarded what the client before had set and prepared."""
    with running_pooler(server, tmp_path / "pooler", default_pool_size="1") as pooler:
        settings = Settings(database_url=pooler.url)
        pids = set()
        for lock_ms_max in (500, 0, 500):
            expected = STARTUP | session_parameters(settings, lock_ms_max)
            async with open_database(settings, lock_ms_max=lock_ms_max) as database:
                await database.fetch(LIST_LAST_CHANGES, 0, ["o"])
                async with database.connection() as connection:
                    rows = await connection._connection.fetch(SHOW, list(expected))
            assert {row["name"]: row["setting"] for row in rows} == expected
            pids |= {row["pid"] for row in rows}
        assert len(pids) == 1
