"""The service process on a given database: start, shutdown, limits, failures and logs."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from service import VERSION
from service.database import schema
from tests.databases import LOCK_ORGANISATION, assert_invariants, query, wait_until_blocked
from tests.http.requests import assert_accepted, assert_problem, listed, post
from tests.processes import ServiceProcess, clean_environment, free_port, running_service, wait_until, writes_by_bucket
from tests.roles.role import role_under_test

SESSIONS = """select pid from pg_stat_activity
    where application_name = 'appointments' and datname = current_database()"""
TERMINATE_SESSIONS = SESSIONS.replace("pid", "pg_terminate_backend(pid, 5000)", 1)


class Post(threading.Thread):
    """A POST in flight; `response` is set once it is answered, unless the connection is lost."""

    def __init__(self, url: str, organisation: str) -> None:
        super().__init__()
        self.url, self.organisation = url, organisation
        self.response: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            try:
                self.response = post(client, self.organisation)
            except httpx.TransportError:
                self.response = None


@contextmanager
def held_posts(database_url: str, service: ServiceProcess, count: int = 1) -> Iterator[list[Post]]:
    """`count` POSTs to organisation `o`, kept in flight by a session that holds the organisation's lock."""
    with psycopg.connect(database_url) as session:
        session.execute(LOCK_ORGANISATION, ("o",))
        posts = [Post(service.url, "o") for _ in range(count)]
        wait_until_blocked(database_url)
        yield posts
    for in_flight in posts:
        in_flight.join()


def refuses_connections(service: ServiceProcess) -> bool:
    try:
        service.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_fails_readiness_then_drains_and_answers_requests_in_flight(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, SHUTDOWN_DRAIN_MS="1500") as service:
        with held_posts(database_url, service) as [in_flight]:
            service.process.send_signal(signal.SIGTERM)
            service.wait_for_event("shutdown begun")
            ready = assert_problem(service.client.get("/readyz"), 503, "NOT_READY")
            assert "shutting down" in ready["detail"]
            assert_accepted(post(service.client, "other"))
            service.client.close()
            wait_until(lambda: refuses_connections(service))
            with pytest.raises(subprocess.TimeoutExpired):  # nothing else shows that the service is waiting
                service.process.wait(0.3)
            assert in_flight.response is None
        assert service.process.wait(30) == 0
        assert in_flight.response is not None
        assert_accepted(in_flight.response)
        assert service.events()[-1]["event"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_repeated_signals_do_not_disturb_a_shutdown(database_url: str, tmp_path: Path, number: signal.Signals) -> None:
    settings = {"SHUTDOWN_DRAIN_MS": "50", "STATEMENT_SLOW_MS": "60000"}
    with running_service(tmp_path, DATABASE_URL=database_url, **settings) as service:
        with held_posts(database_url, service) as [in_flight]:
            service.process.send_signal(number)
            wait_until(lambda: refuses_connections(service))
            for _ in range(5):
                service.process.send_signal(number)
                time.sleep(0.02)  # nothing shows that a signal has arrived, and pending ones are merged into one
            assert service.process.poll() is None
        assert service.process.wait(30) == 0
        assert in_flight.response is not None
        assert_accepted(in_flight.response)
        assert service.events()[-1]["event"] == "stopped"
        assert {event["level"] for event in service.events() if event["event"] != "open"} == {"info"}
        assert "Traceback" not in service.log_file.read_text()


def test_requests_in_flight_at_the_end_of_the_grace_time_get_503(database_url: str, tmp_path: Path) -> None:
    settings = {"SHUTDOWN_DRAIN_MS": "0", "SHUTDOWN_GRACE_MS": "1000", "WRITE_WAIT_MS_MAX": "60000"}
    with running_service(tmp_path, DATABASE_URL=database_url, **settings) as service:
        with held_posts(database_url, service) as [in_flight]:
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(30) == 0
        assert in_flight.response is not None
        problem = assert_problem(in_flight.response, 503, "OVERLOADED")
        assert "shutting down" in problem["detail"]
        assert "Traceback" not in service.log_file.read_text()
    assert query(database_url, "select * from appointments") == []


def test_read_without_a_free_connection_gets_503(database_url: str, tmp_path: Path) -> None:
    settings = {"POOL_CONNECTIONS_MAX": "1", "POOL_WAIT_MS_MAX": "100"}
    with running_service(tmp_path, DATABASE_URL=database_url, **settings) as service, ThreadPoolExecutor() as threads:
        with psycopg.connect(database_url) as session:
            session.execute("lock table appointments in access exclusive mode")
            blocked = threads.submit(httpx.get, f"{service.url}/api/appointments?org=o", timeout=60)
            wait_until_blocked(database_url)
            response = service.client.get("/api/appointments?org=o")
            assert_problem(response, 503, "OVERLOADED")
            assert response.headers["retry-after"] == "1"
            assert service.client.get("/readyz").status_code == 200
        assert (blocked.result().status_code, blocked.result().json()) == (200, [])
        assert listed(service.client, "o") == []


def test_writes_to_a_locked_organisation_time_out_without_blocking_others(database_url: str, tmp_path: Path) -> None:
    settings = {"POOL_CONNECTIONS_MAX": "2", "WRITE_WAIT_MS_MAX": "500"}
    with running_service(tmp_path, DATABASE_URL=database_url, **settings) as service:
        with held_posts(database_url, service, count=6) as in_flight:
            assert_accepted(post(service.client, "other"))
            response = post(service.client, "o")
            assert_problem(response, 503, "OVERLOADED")
            assert response.headers["retry-after"] == "1"
            for held in in_flight:
                held.join()
                assert held.response is not None
                assert_problem(held.response, 503, "OVERLOADED")
        assert query(database_url, "select org_id, version from appointments") == [("other", 1)]
        assert_accepted(post(service.client, "o"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_acknowledged_write_is_lost_when_the_service_is_killed(
    database_url: str, tmp_path: Path, workers: str
) -> None:
    answered: list[str] = []

    def keep_posting(name: int) -> None:
        with httpx.Client(base_url=service.url, timeout=10) as client, suppress(httpx.TransportError):
            for number in range(100_000):
                day = date(2000, 1, 1) + timedelta(days=number)
                times = {"start": f"{day}", "end": f"{day + timedelta(days=1)}"}
                response = post(client, f"o-{name}", id=f"{name}-{number}", **times)
                if response.status_code == 200:
                    answered.append(f"{name}-{number}")

    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS=workers) as service:
        threads = [threading.Thread(target=keep_posting, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answered) >= 200)
        for child in psutil.Process(service.process.pid).children():
            child.kill()
        service.kill()
        for thread in threads:
            thread.join()
    assert set(answered) <= {
        external_id for [external_id] in query(database_url, "select external_id from appointments")
    }
    assert_invariants(database_url)


def test_lost_connections_are_replaced(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, POOL_CONNECTIONS_MAX="2") as service:
        assert_accepted(post(service.client, "o"))
        assert len(listed(service.client, "o")) == 1
        lost = query(database_url, SESSIONS)
        assert set(query(database_url, TERMINATE_SESSIONS)) == {(True,)}
        responses = [post(service.client, "o") for _ in range(4)]
        for response in responses[:2]:  # each finds its connection lost already, or loses it
            if response.status_code == 503:
                assert_problem(response, 503, "DATABASE_UNAVAILABLE")
            else:
                assert_accepted(response, "ignored-stale")
        for response in responses[2:]:
            assert_accepted(response, "ignored-stale")
        wait_until(lambda: service.client.get("/api/appointments?org=o").status_code == 200)
        assert len(listed(service.client, "o")) == 1
        assert not set(lost) & set(query(database_url, SESSIONS))


def test_defect_is_a_500_without_details_and_a_log_line_with_the_traceback(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url) as service:
        query(
            database_url,
            "drop function change_cursor; create function change_cursor(bigint, timestamptz, uuid) returns text"
            " language plpgsql as $$ begin raise 'instant_text failed'; end $$",
        )
        post(service.client, "o")
        response = service.client.get("/api/appointments?org=o", headers={"X-Request-Id": "the-defect"})
        assert (response.status_code, response.headers["x-request-id"]) == (500, "the-defect")
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "INTERNAL"
        assert not re.search("select|instant_text|/service/|Traceback|Raise", response.text)
        event = service.wait_for_event("request failed", request_id="the-defect")
        assert event["level"] == "error"
        assert "RaiseError: instant_text failed" in event["exception"]
        assert service.wait_for_event("request", request_id="the-defect")["status"] == 500


@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_whose_logs_nobody_reads_any_more_serves_on(database_url: str, tmp_path: Path, workers: str) -> None:
    port = free_port()
    settings = {"DATABASE_URL": database_url, "PORT": str(port), "LOG_LEVEL": "debug", "WORKERS": workers}
    reading, writing = os.pipe()
    os.close(reading)
    with (
        subprocess.Popen(
            [sys.executable, "-m", "service", "serve"],
            cwd=tmp_path,
            env=clean_environment(**settings),
            stdout=writing,
            stderr=subprocess.PIPE,
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        os.close(writing)
        wait_until(lambda: answers(client))
        assert client.get("/nowhere").status_code == 404
        assert client.get("/api/appointments").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 0


def answers(client: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return client.get("/readyz").status_code == 200
    return False


def test_readiness_names_the_missing_migration(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url) as service:
        query(database_url, "delete from _yoyo_migration")
        ready = assert_problem(service.client.get("/readyz"), 503, "NOT_READY")
        assert "0001.appointments" in ready["detail"]
        query(database_url, "drop table _yoyo_migration")
        ready = assert_problem(service.client.get("/readyz"), 503, "NOT_READY")
        assert "0001.appointments" in ready["detail"]


def test_what_a_rollback_has_dropped_is_a_503_for_requests_that_need_it(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url) as service:
        for known in reversed(schema.KNOWN):
            assert schema.rollback(database_url) == [known]
            for query_string in ("", "?limit=1", "?asOf=2020-01-01", "/versions?id=a", "/changes", ".ics"):
                response = service.client.get(f"/api/appointments{query_string}")
                assert response.is_success or assert_problem(response, 503, "DATABASE_UNAVAILABLE")
        assert service.client.get("/api/appointments").status_code == 503
        assert schema.migrate(database_url) == schema.KNOWN
        wait_until(lambda: service.client.get("/api/appointments").status_code == 200)


def test_missing_tables_are_reported_as_503_and_not_as_500(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url) as service:
        for known in reversed(schema.KNOWN):
            assert schema.rollback(database_url) == [known]
        read = assert_problem(service.client.get("/api/appointments"), 503, "DATABASE_UNAVAILABLE")
        assert "write" not in read["detail"]
        write = assert_problem(post(service.client, "o"), 503, "DATABASE_UNAVAILABLE")
        assert "A write may have happened" in write["detail"]
        schema.migrate(database_url, role_under_test())
        assert_accepted(post(service.client, "o"))


def test_start_stop_and_slow_statements_are_logged_without_secrets(database_url: str, tmp_path: Path) -> None:
    secret = f"{database_url}{'&' if '?' in database_url else '?'}password=s3cret"
    with running_service(tmp_path, DATABASE_URL=secret, STATEMENT_SLOW_MS="0") as service:
        started = service.wait_for_event("started")
        assert started["version"] == VERSION
        assert started["docs"] == f"{service.url}/api/docs"
        assert started["settings"]["statement_slow_ms"] == 0
        response = service.client.get("/api/appointments")
        service.wait_for_event("slow statement", request_id=response.headers["x-request-id"])
        post(service.client, "o")
        slow = service.wait_for_event(
            "slow statement", statement="put_appointments" if writes_by_bucket() else "upsert_appointment"
        )
        assert slow["level"] == "warning"
    assert service.events()[-1]["event"] == "stopped"
    assert "s3cret" not in service.log_file.read_text()


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "message"),
    [
        (["serve"], {"DATABASE_URL": "postgresql://127.0.0.1:1/d"}, 1, "error: The database refuses: "),
        (["migrate"], {"DATABASE_URL": "postgresql://127.0.0.1:1/d"}, 1, "error: The database refuses: "),
        (["serve"], {"HOST": "no.such.host.invalid"}, 1, "error: Cannot listen on no.such.host.invalid"),
        (["serve"], {"PORT": "x"}, 1, "error: Setting PORT is wrong: "),
        (["nonsense"], {}, 2, "usage: "),
        ([], {}, 2, "usage: "),
    ],
)
def test_failed_start_is_explained_in_one_line(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], code: int, message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=tmp_path,
        env=clean_environment(**{"PORT": "0"} | settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if code == 1:
        assert len(done.stderr.splitlines()) == 1


FAILING = """
import logging
from service import logs
logs.configure("info")
def fail(password):
    raise ValueError("the cause")
try:
    fail("s3" + "cret")
except ValueError:
    logging.exception("failed")
"""


def test_traceback_on_a_terminal_shows_no_values() -> None:
    """A connection's arguments have the password; rich, which shows such values, is among the tools for development."""
    terminal, other_end = os.openpty()
    try:
        command = [sys.executable, "-c", FAILING]
        subprocess.run(command, env=clean_environment(), stdout=other_end, check=True, timeout=60)
        os.close(other_end)
        shown = b""
        with suppress(OSError):  # at its end
            while portion := os.read(terminal, 65_536):
                shown += portion
    finally:
        os.close(terminal)
    assert b"Traceback" in shown
    assert b"the cause" in shown
    assert b"s3cret" not in shown


def test_help_lists_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "--help"], env=clean_environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    commands = ["serve", "migrate", "distribute", "rollback", "import", "export"]
    assert re.findall(r"^    (\w+)", done.stdout, re.MULTILINE) == commands
