"""DATABASE_URL names several hosts, and the one that accepts writes is another one from some moment on."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.database import schema
from service.database.hosts import Host
from service.database.pool import check_database
from service.problems import StartError
from service.settings import Settings
from tests.databases import query
from tests.faults.outage import (
    RECOVERY_SECONDS_MAX,
    assert_recovers,
    assert_refusals_are_quick,
    hosts_in_use,
    under_load,
)
from tests.faults.proxy import Proxy, running_proxy
from tests.faults.server import END_SESSIONS, Server, cleaned_up, create_standby
from tests.histories.clients import Record
from tests.http.requests import assert_accepted, assert_problem, post
from tests.processes import ServiceProcess, clean_environment, free_port, running_service, wait_until

SYNCHRONOUS = "select count(*) from pg_stat_replication where sync_state = 'sync'"
READ_ONLY = "alter system set default_transaction_read_only = on"
RELOAD = "select pg_reload_conf()"


@pytest.fixture
def standby(server: Server, tmp_path: Path) -> Iterator[Server]:
    """Has every write that was acknowledged."""
    with cleaned_up(create_standby(server, tmp_path / "standby")) as replica:
        query(server.url, "alter system set synchronous_standby_names = '*'")
        query(server.url, RELOAD)
        replica.start()
        wait_until(lambda: query(server.url, SYNCHRONOUS) == [(1,)])
        yield replica


def several(*places: tuple[str, int]) -> str:
    hosts, ports = zip(*places, strict=True)
    return f"postgresql://postgres@/postgres?host={','.join(hosts)}&port={','.join(map(str, ports))}"


def place(server: Server) -> tuple[str, int]:
    return str(server.sockets), 5432


def is_killed(server: Server, _: Proxy) -> None:
    server.kill()


def is_stopped(server: Server, _: Proxy) -> None:
    server.stop()


def halts(server: Server, _: Proxy) -> None:
    server.signal_all(signal.SIGSTOP)


def is_unreachable(_: Server, proxy: Proxy) -> None:
    proxy.stalled = True


def comes_back_as_a_standby(server: Server, _: Proxy) -> None:
    server.kill()
    (server.data / "standby.signal").touch()
    server.start()


def becomes_read_only(server: Server, _: Proxy) -> None:
    query(server.url, READ_ONLY)
    query(server.url, RELOAD)


def comes_back(server: Server, proxy: Proxy) -> None:
    """As it was, if it was halted or unreachable: it accepts writes, and nobody has told it of the other one."""
    if server.is_running():
        server.signal_all(signal.SIGCONT)
    proxy.stalled = False


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with running_proxy(f"{server.sockets}/.s.PGSQL.5432") as started:
        yield started


@pytest.mark.parametrize("order", ["primary first", "standby first"])
@pytest.mark.parametrize(
    "fate", [is_killed, is_stopped, halts, is_unreachable, comes_back_as_a_standby, becomes_read_only]
)
def test_new_primary_is_found_whatever_became_of_the_old_one(
    server: Server, proxy: Proxy, standby: Server, tmp_path: Path, fate: Callable[[Server, Proxy], None], order: str
) -> None:
    places = [("127.0.0.1", proxy.port), place(standby)]
    url = several(*(places if order == "primary first" else reversed(places)))
    with (
        running_service(tmp_path / "service", DATABASE_URL=url) as service,
        under_load(service, database_url=standby.url) as record,
    ):
        fate(server, proxy)
        assert_fails_over(record, service, standby)
        comes_back(server, proxy)
        record.wait_for_answers(200)


def assert_fails_over(record: Record, service: ServiceProcess, standby: Server) -> None:
    query(standby.url, "select pg_promote()")
    promoted = time.monotonic()
    assert_recovers(record)
    wait_until(lambda: service.client.get("/readyz").status_code == 200)
    assert time.monotonic() - promoted < RECOVERY_SECONDS_MAX
    record.wait_for_answers(200)
    assert record.refusals_of_calls_begun_after(promoted + RECOVERY_SECONDS_MAX) == []


@pytest.mark.parametrize("fate", [is_killed, comes_back_as_a_standby])
def test_refusals_are_quick_until_the_standby_is_promoted(
    server: Server, proxy: Proxy, standby: Server, tmp_path: Path, fate: Callable[[Server, Proxy], None]
) -> None:
    with (
        running_service(tmp_path / "service", DATABASE_URL=several(place(standby), place(server))) as service,
        under_load(service, database_url=standby.url) as record,
    ):
        fate(server, proxy)
        assert_refusals_are_quick(record, service, time.monotonic())
        assert_fails_over(record, service, standby)


@pytest.mark.parametrize("fate", [halts, is_unreachable])
def test_new_primary_is_found_by_what_already_tries_to_connect_to_the_old_one(
    server: Server, proxy: Proxy, standby: Server, tmp_path: Path, fate: Callable[[Server, Proxy], None]
) -> None:
    url = several(("127.0.0.1", proxy.port), place(standby))
    with (
        running_service(tmp_path / "service", DATABASE_URL=url, STATEMENT_MS_MAX="500") as service,
        under_load(service, database_url=standby.url) as record,
    ):
        fate(server, proxy)
        service.wait_for_event("lane lost its connection", attempts=2)
        assert_problem(service.client.get("/readyz"), 503, "NOT_READY")
        assert_fails_over(record, service, standby)


def test_service_starts_and_migrates_where_the_first_hosts_do_not_answer_or_are_read_only(
    server: Server, standby: Server, tmp_path: Path
) -> None:
    with mute_port() as port:
        url = several(("127.0.0.1", port), ("127.0.0.1", free_port()), place(standby), place(server))
        assert schema.rollback(url) == schema.KNOWN[-1:]
        with running_service(tmp_path / "service", DATABASE_URL=url) as service:
            assert_accepted(post(service.client, "o"))
            assert len(standby.service_backends()) == 1
    assert query(server.url, "select count(*) from appointments") == [(1,)]


@contextmanager
def mute_port() -> Iterator[int]:
    """As of a machine that is gone: connections are neither accepted nor refused."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # fill its queue
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def test_connection_that_is_opened_just_as_its_host_is_given_up_is_ended(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or reads would go on over it, on an old primary that has become read-only."""
    host = Host(*map(str, place(server)))
    connect = asyncpg.connect

    async def connect_late(**options: Any) -> asyncpg.Connection:
        connection = await connect(**options)
        host.end_connections()
        return connection

    monkeypatch.setattr(asyncpg, "connect", connect_late)
    connection = await host.connect({"user": "postgres", "database": "postgres"})
    assert connection.is_closed()


@pytest.mark.parametrize("order", ["primary first", "standby first"])
def test_of_two_primaries_the_one_that_was_promoted_later_is_used(
    server: Server, standby: Server, tmp_path: Path, order: str
) -> None:
    """By a service that runs, and by one that starts."""
    places = [place(server), place(standby)] if order == "primary first" else [place(standby), place(server)]
    url = several(*places)
    with running_service(tmp_path / "running", DATABASE_URL=url) as running:
        assert_accepted(post(running.client, "before"))
        query(standby.url, "select pg_promote()")
        running.wait_for_event("an old primary accepts writes; end it")
        assert_accepted(post(running.client, "running"))
        with running_service(tmp_path / "started", DATABASE_URL=url) as started:
            assert_accepted(post(started.client, "started"))
    organisations = "select org_id from appointments order by received_at"
    assert query(standby.url, organisations) == [("before",), ("running",), ("started",)]


def test_service_stays_with_one_of_several_hosts_that_accept_writes(
    server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    """Poolers of one database, for example."""
    url = several(("127.0.0.1", proxy.port), place(server))
    with (
        running_service(tmp_path / "service", DATABASE_URL=url) as service,
        under_load(service, database_url=server.url) as record,
    ):
        in_use = hosts_in_use(service)
        for _ in range(5):
            query(server.url, END_SESSIONS)
            assert_recovers(record)
        assert hosts_in_use(service) == in_use


def test_start_without_a_host_that_accepts_writes_is_explained(standby: Server, tmp_path: Path) -> None:
    url = several(place(standby), ("127.0.0.1", free_port())).replace("postgres@", "postgres:s3cret@")
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve"],
        cwd=tmp_path,
        env=clean_environment(DATABASE_URL=url, PORT="0"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: The database refuses: ")
    assert "session is read-only" in done.stderr
    assert "s3cret" not in done.stderr + done.stdout


async def test_failed_start_names_the_cause_for_each_host(standby: Server) -> None:
    hosts = [place(standby), ("127.0.0.1", free_port())]
    causes = [f"{standby.sockets}:5432: read-only", f"127.0.0.1:{hosts[1][1]}: ConnectionRefusedError"]
    with pytest.raises(StartError) as refused:
        await check_database(Settings(database_url=several(*hosts)))
    assert f"No host of DATABASE_URL accepts writes ({', '.join(causes)})." in str(refused.value)
