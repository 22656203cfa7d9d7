"""The database dies, halts, is full, or takes no writes."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from service.database import schema
from service.database.account import switch_to, unprivileged_account
from service.database.embedded import BINARIES
from tests.databases import query
from tests.faults.outage import assert_back, away, under_load
from tests.faults.proxy import line_to
from tests.faults.server import Server, fill, prepared, running_server, served_by, small_disk
from tests.processes import ServiceProcess, running_service, wait_until

END_SESSIONS = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'appointments'"
CONNECTIONS = 12


@pytest.fixture
def service(server: Server, tmp_path: Path) -> Iterator[ServiceProcess]:
    with running_service(tmp_path / "service", DATABASE_URL=server.url) as started:
        yield started


def test_a_server_that_is_killed_and_recovers(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        away(record, service, 1.5, server.kill, server.start)
        away(record, service, 1.5, server.kill, server.start)


def test_a_server_that_is_stopped_and_started(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        away(record, service, 1.5, server.stop, server.start)


def test_a_backend_that_is_killed_takes_all_others_with_it(server: Server, service: ServiceProcess) -> None:
    """PostgreSQL then ends all sessions and recovers, as after a crash."""
    with under_load(service, database_url=server.url) as record:
        for _ in range(3):
            for pid in server.backends()[:1]:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
            killed_at = time.monotonic()
            assert_back(record, killed_at + recovery_seconds(server, killed_at))


def recovery_seconds(server: Server, since: float) -> float:
    while not server.answers():
        time.sleep(0.01)
    return time.monotonic() - since


def test_sessions_that_are_ended_one_by_one(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        for _ in range(15):
            query(server.url, END_SESSIONS)
            time.sleep(0.1)
        assert_back(record, time.monotonic())


def test_a_server_that_halts_for_five_seconds(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        server.signal_all(signal.SIGSTOP)
        time.sleep(5)
        assert service.client.get("/livez").status_code == 200
        server.signal_all(signal.SIGCONT)
        assert_back(record, time.monotonic())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk(tmp_path: Path) -> None:
    """First the data files cannot grow, then the log of changes cannot either, and the server gives up."""
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
            ballast = fill(disk)
            time.sleep(4)
            ballast.unlink()
            if not server.alive():
                server.start()
            assert_back(record, time.monotonic())


def test_a_fail_over_to_a_replica_that_takes_no_writes_before_it_is_promoted(server: Server, tmp_path: Path) -> None:
    with (
        served_by(copy_of(server, tmp_path / "replica")) as replica,
        line_to(f"{server.sockets}/.s.PGSQL.5432") as line,
    ):
        url = f"postgresql://postgres@127.0.0.1:{line.port}/postgres"
        with running_service(tmp_path / "service", DATABASE_URL=url) as service:
            replica.start()
            with under_load(service, database_url=replica.url) as record:
                line.target = f"{replica.sockets}/.s.PGSQL.5432"
                server.stop()  # fast, so all that was acknowledged has reached the replica
                time.sleep(1.5)
                assert record.refusals
                assert service.client.get("/api/appointments").status_code == 200
                subprocess.run(
                    [str(BINARIES / "psql"), replica.url, "-qc", "select pg_promote()"],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                assert_back(record, time.monotonic())


def copy_of(server: Server, directory: Path) -> Server:
    """A standby, not yet started."""
    replica = Server(prepared(directory))
    command = [
        str(BINARIES / "pg_basebackup"),
        "-h",
        str(server.sockets),
        "-U",
        "postgres",
        "-D",
        str(replica.data),
        "-R",
        "-c",
        "fast",
    ]
    subprocess.run(command, check=True, **switch_to(unprivileged_account()))
    return replica


def test_connections_that_others_hold(tmp_path: Path) -> None:
    options = ["-c", f"max_connections={CONNECTIONS}", "-c", "superuser_reserved_connections=0"]
    with running_server(tmp_path / "server", *options) as server:
        schema.migrate(server.url)
        query(server.url, "create role other login")
        query(server.url, "grant connect on database postgres to other")
        with (
            running_service(tmp_path / "service", DATABASE_URL=server.url) as service,
            under_load(service, database_url=server.url) as record,
        ):
            service.process.send_signal(signal.SIGSTOP)  # or it would be back before the others are there
            query(server.url, END_SESSIONS)
            held = hold(server, CONNECTIONS)
            service.process.send_signal(signal.SIGCONT)
            time.sleep(1.5)
            for session in held:
                session.close()
            assert_back(record, time.monotonic())
            assert record.refusals


def hold(server: Server, amount: int) -> list[psycopg.Connection[tuple[object, ...]]]:
    held: list[psycopg.Connection[tuple[object, ...]]] = []

    def are_held() -> bool:
        with suppress(psycopg.OperationalError):  # one that has just ended may still have its place
            held.append(psycopg.connect(server.url.replace("postgres@", "other@")))
        return len(held) == amount

    wait_until(are_held)
    return held


def test_tables_that_a_migration_locks_for_seconds(server: Server, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        with psycopg.connect(server.url) as session:
            session.execute("lock table appointments, appointment_versions in access exclusive mode")
            time.sleep(3)
        assert_back(record, time.monotonic())


def test_a_clock_that_goes_back(server: Server, tmp_path: Path) -> None:
    """Of the database: a function before PostgreSQL's own in the search path, an hour behind at last."""
    query(
        server.url,
        "create schema clock; create table clock.shift (by interval); insert into clock.shift values ('0 s');"
        "create function clock.clock_timestamp() returns timestamptz language sql"
        " as 'select pg_catalog.clock_timestamp() + by from clock.shift';"
        'alter database postgres set search_path = clock, pg_catalog, "$user", public',
    )
    with (
        running_service(tmp_path / "service", DATABASE_URL=server.url) as service,
        under_load(service, database_url=server.url) as record,
    ):
        for minutes in (-1, -60, 5, -600):
            query(server.url, f"update clock.shift set by = interval '{minutes} min'")
            time.sleep(0.4)
        assert_back(record, time.monotonic())
    [[next_to_each_other]] = query(
        server.url,
        """select count(*) from (
            select received_at - lag(received_at) over (partition by appointment_id order by version) as step
            from appointment_versions) v
        where step = interval '1 microsecond'""",
    )
    assert int(str(next_to_each_other)) > 0
