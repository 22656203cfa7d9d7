"""The database crashes, halts, runs out of space or connections, or rejects writes."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from service.database import schema
from tests.databases import query
from tests.faults.outage import assert_recovers, interrupt_database, under_load
from tests.faults.proxy import running_proxy
from tests.faults.server import END_SESSIONS, Server, cleaned_up, create_standby, fill_disk, running_server, small_disk
from tests.processes import ServiceProcess, running_service, wait_until

CONNECTIONS = 12
HALT_SECONDS = 1
LOCK_TIMEOUTS = 4  # of writing statements; the writes are tried again after each
Session = psycopg.Connection[tuple[object, ...]]
MICROSECOND_STEPS = """
    select count(*) from (
        select received_at - lag(received_at) over (partition by appointment_id order by version) as step
        from appointment_versions) v
    where step = interval '1 microsecond'"""


@pytest.fixture
def service(server: Server, tmp_path: Path) -> Iterator[ServiceProcess]:
    with running_service(tmp_path / "service", DATABASE_URL=server.url) as started:
        yield started


def test_service_survives_crashes_of_the_server(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        interrupt_database(record, service, server.kill, server.start)
        interrupt_database(record, service, server.kill, server.start)


def test_service_survives_a_restart_of_the_server(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        interrupt_database(record, service, server.stop, server.start)


def test_service_survives_killed_backends(server: Server, service: ServiceProcess) -> None:
    """If one backend is killed, PostgreSQL ends all sessions and goes through crash recovery."""
    with under_load(service, database_url=server.url) as record:
        for _ in range(3):
            kill_backend(server)
            assert_recovers(record)


def kill_backend(server: Server) -> None:
    """Returns after the recovery."""
    backends = server.service_backends()
    os.kill(backends[0], signal.SIGKILL)
    wait_until(lambda: not any(map(psutil.pid_exists, backends)))
    wait_until(server.is_ready)


def test_service_survives_terminated_sessions(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        for _ in range(15):
            query(server.url, END_SESSIONS)
            assert_recovers(record)


def test_requests_wait_while_the_server_is_halted(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        server.signal_all(signal.SIGSTOP)
        time.sleep(HALT_SECONDS)  # below every time limit, so there is nothing to wait for
        assert service.client.get("/livez").status_code == 200
        server.signal_all(signal.SIGCONT)
        assert_recovers(record)
        assert record.seconds_max() >= HALT_SECONDS
        assert record.refusals == []


def test_requests_are_refused_while_the_server_is_halted_for_too_long(server: Server, tmp_path: Path) -> None:
    with (
        running_service(tmp_path / "service", DATABASE_URL=server.url, STATEMENT_MS_MAX="1000") as service,
        under_load(service, database_url=server.url) as record,
    ):
        server.signal_all(signal.SIGSTOP)
        wait_until(lambda: len(record.refusals) > 0)
        assert record.refusals[0].seconds > 1
        assert service.client.get("/livez").status_code == 200
        server.signal_all(signal.SIGCONT)
        assert_recovers(record)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_service_survives_a_full_disk(tmp_path: Path) -> None:
    """First the data files cannot grow, then the write-ahead log cannot either, and the server gives up."""
    with (
        small_disk(tmp_path / "disk", 150) as disk,
        running_server(
            tmp_path / "server", "-c", "min_wal_size=32MB", "-c", "max_wal_size=32MB", data_directory=disk
        ) as server,
    ):
        schema.migrate(server.url)
        with (
            running_service(tmp_path / "service", DATABASE_URL=server.url) as service,
            under_load(service, database_url=server.url) as record,
        ):
            ballast = fill_disk(disk)
            wait_until(lambda: len(record.refusals) > 0)
            exhaust_log(server)
            ballast.unlink()
            server.start()
            assert_recovers(record)


def exhaust_log(server: Server) -> None:
    """Uses up the segments of the write-ahead log until the server gives up."""

    def has_given_up() -> bool:
        with suppress(psycopg.OperationalError):
            query(server.url, "select pg_switch_wal()")
        return not server.is_running()

    wait_until(has_given_up)


def test_service_fails_over_to_a_replica_once_it_is_promoted(server: Server, tmp_path: Path) -> None:
    with (
        cleaned_up(create_standby(server, tmp_path / "replica")) as replica,
        running_proxy(f"{server.sockets}/.s.PGSQL.5432") as proxy,
    ):
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        with running_service(tmp_path / "service", DATABASE_URL=url) as service:
            replica.start()
            with under_load(service, database_url=replica.url) as record:
                proxy.target = f"{replica.sockets}/.s.PGSQL.5432"
                server.stop()  # a fast stop sends everything that was acknowledged to the replica
                wait_until(lambda: service.client.get("/api/appointments").status_code == 200)
                served_by_replica = time.monotonic()
                wait_until(lambda: len(record.refusals_of_calls_begun_after(served_by_replica)) > 10)
                assert record.first_verdict_after(served_by_replica) is None
                assert service.client.get("/api/appointments").status_code == 200
                query(replica.url, "select pg_promote()")
                assert_recovers(record)


def test_service_survives_other_clients_taking_all_connections(tmp_path: Path) -> None:
    options = ["-c", f"max_connections={CONNECTIONS}", "-c", "superuser_reserved_connections=0"]
    with running_server(tmp_path / "server", *options) as server:
        schema.migrate(server.url)
        query(server.url, "create role other login")
        query(server.url, "grant connect on database postgres to other")
        with (
            running_service(tmp_path / "service", DATABASE_URL=server.url) as service,
            under_load(service, database_url=server.url) as record,
        ):
            sessions: list[Session] = []

            def take_all() -> None:
                service.process.send_signal(signal.SIGSTOP)  # so that it cannot reconnect first
                query(server.url, END_SESSIONS)
                sessions.extend(open_sessions(server, CONNECTIONS))
                service.process.send_signal(signal.SIGCONT)

            def give_back() -> None:
                for session in sessions:
                    session.close()

            interrupt_database(record, service, take_all, give_back)


def open_sessions(server: Server, count: int) -> list[Session]:
    sessions: list[Session] = []

    def all_are_open() -> bool:
        with suppress(psycopg.OperationalError):  # a session that has just ended may still take up a connection
            sessions.append(psycopg.connect(server.url.replace("postgres@", "other@")))
        return len(sessions) == count

    wait_until(all_are_open)
    return sessions


def test_service_survives_a_migration_that_locks_the_tables(server: Server, service: ServiceProcess) -> None:
    """The attempts of the writes to get their locks time out again and again."""
    with under_load(service, database_url=server.url) as record:
        with psycopg.connect(server.url) as session:
            session.execute("lock table appointments, appointment_versions in access exclusive mode")
            wait_until(lambda: server.log().count("canceling statement due to lock timeout") >= LOCK_TIMEOUTS)
        assert_recovers(record)


def test_received_at_increases_while_the_clock_goes_back(server: Server, tmp_path: Path) -> None:
    """The clock is the database's: a function before PostgreSQL's own in the search paths. `received_at` is then one
    microsecond after that of the version before."""
    query(
        server.url,
        "create schema clock; create table clock.shift (by interval); insert into clock.shift values ('0 s');"
        "create function clock.clock_timestamp() returns timestamptz language sql"
        " as 'select pg_catalog.clock_timestamp() + by from clock.shift';"
        'alter database postgres set search_path = clock, pg_catalog, "$user", public;'
        "alter function put_appointments set search_path = clock, pg_catalog, public",
    )
    with (
        running_service(tmp_path / "service", DATABASE_URL=server.url) as service,
        under_load(service, database_url=server.url) as record,
    ):
        for minutes in (-1, -60, 5, -600):
            shift_clock(server, minutes)
            record.wait_for_answers(100)
        assert_recovers(record)
        assert record.refusals == []


def shift_clock(server: Server, minutes: int) -> None:
    """If the clock goes back, waits until an appointment with a version from before is updated."""
    steps = microsecond_steps(server)
    query(server.url, f"update clock.shift set by = interval '{minutes} min'")
    if minutes < 0:
        wait_until(lambda: microsecond_steps(server) > steps)


def microsecond_steps(server: Server) -> int:
    [[count]] = query(server.url, MICROSECOND_STEPS)
    return int(str(count))
