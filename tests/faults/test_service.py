"""Processes of the service die, or are stopped while they hold the locks of organisations."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.databases import assert_invariants, query
from tests.faults.outage import assert_back, under_load
from tests.faults.proxy import line_to
from tests.faults.server import Server
from tests.histories.clients import clients, read_at_the_end
from tests.http.requests import assert_accepted, payload, post
from tests.processes import ServiceProcess, free_port, running_service, wait_until


def test_a_service_that_is_killed_and_started_again(server: Server, tmp_path: Path) -> None:
    port = str(free_port())
    with clients([f"http://127.0.0.1:{port}"]) as record:
        for number in range(3):
            service = ServiceProcess(tmp_path / str(number), DATABASE_URL=server.url, PORT=port)
            assert_back(record, time.monotonic())
            time.sleep(0.7)
            service.kill()
    with running_service(tmp_path / "last", DATABASE_URL=server.url) as last:
        read_at_the_end(record, last.url)
    record.check()
    assert_invariants(server.url)


def test_workers_that_are_killed_are_replaced(server: Server, tmp_path: Path) -> None:
    with running_service(tmp_path / "service", DATABASE_URL=server.url, WORKERS="2") as service:
        with clients([service.url]) as record:
            time.sleep(1)
            for _ in range(3):
                victim = next(
                    each for each in psutil.Process(service.process.pid).children() if len(each.net_connections()) > 1
                )
                victim.kill()
                time.sleep(1.2)
            assert_back(record, time.monotonic())
        read_at_the_end(record, service.url)
    record.check()
    assert_invariants(server.url)


def test_a_process_that_is_stopped_holds_nobody_up_for_long(server: Server, tmp_path: Path) -> None:
    """It may have sent half of a pipeline, and the database holds its locks."""
    settings = {"DATABASE_URL": server.url, "STATEMENT_MS_MAX": "1000", "WRITE_WAIT_MS_MAX": "2000"}
    with (
        running_service(tmp_path / "one", **settings) as one,
        running_service(tmp_path / "other", **settings) as other,
        under_load(other, database_url=server.url) as record,
        clients([one.url], seed=99) as record_of_one,
    ):
        time.sleep(0.5)
        for _ in range(3):
            os.kill(one.process.pid, signal.SIGSTOP)
            time.sleep(1.5)
            assert_back(record, time.monotonic())
            os.kill(one.process.pid, signal.SIGCONT)
            time.sleep(0.3)
        for organisation, calls in record_of_one.calls.items():
            record.calls[organisation] += calls


@pytest.mark.parametrize("path", ["/api/appointments", "/api/appointments/batch"])
def test_locks_of_a_process_that_has_stopped_in_the_middle_of_a_pipeline_are_given_up(
    server: Server, tmp_path: Path, path: str
) -> None:
    """For the database the session is neither idle nor in a statement. PostgreSQL 17 and later can end it."""
    with line_to(f"{server.sockets}/.s.PGSQL.5432") as line:
        url = f"postgresql://postgres@127.0.0.1:{line.port}/postgres"
        with (
            running_service(tmp_path / "one", DATABASE_URL=url, STATEMENT_MS_MAX="1500") as one,
            running_service(tmp_path / "other", DATABASE_URL=server.url) as other,
        ):
            line.halves = b"never-answered"
            body = payload("o", id="never-answered")
            stopped = threading.Thread(target=post_in_vain, args=(one.url + path, body if path[-1] == "s" else [body]))
            stopped.start()
            wait_until(lambda: not line.halves)
            time.sleep(0.1)
            os.kill(one.process.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                assert_accepted(post(other.client, "o", id="another"))
                assert 0.5 < time.monotonic() - began < 3
            finally:
                os.kill(one.process.pid, signal.SIGCONT)
                stopped.join()
    assert query(server.url, "select external_id from appointments") == [("another",)]


def post_in_vain(url: str, body: object) -> None:
    with suppress(httpx.TransportError):
        httpx.post(url, json=body, timeout=10)
