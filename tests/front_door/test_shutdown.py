"""SIGINT and SIGTERM, one or several of them: what becomes of requests that wait, and how soon the process ends."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.databases import wait_until_blocked
from tests.http.requests import assert_problem
from tests.processes import ServiceProcess, running_service, wait_until

POLL = "/api/appointments/changes?wait=30"
LONG_MS = "60000"  # far more than a shutdown takes here
INTERRUPT, TERMINATE = signal.SIGINT, signal.SIGTERM


def waiting(service: ServiceProcess) -> bool:
    return "changes_waiting_requests 1.0" in service.client.get("/metrics").text


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("numbers", [[INTERRUPT], [INTERRUPT, INTERRUPT], [TERMINATE, INTERRUPT]])
def test_interrupt_answers_long_polls_and_ends_the_process_at_once(
    database_url: str, tmp_path: Path, numbers: list[signal.Signals], workers: str
) -> None:
    settings = {"SHUTDOWN_DRAIN_MS": LONG_MS, "SHUTDOWN_GRACE_MS": LONG_MS, "WORKERS": workers}
    with (
        running_service(tmp_path, DATABASE_URL=database_url, **settings) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        started = int(workers)
        wait_until(lambda: [event["event"] for event in service.events()].count("started") == started)
        long_poll = threads.submit(client.get, POLL)
        wait_until(lambda: waiting(service))
        for number in numbers:
            service.process.send_signal(number)
            assert long_poll.result(10).json() == {"changes": [], "cursor": "0"}
        assert service.process.wait(10) == 0  # although the connection of `service.client` is idle
        assert [event["event"] for event in service.events()].count("stopped") == started
        assert "Traceback" not in service.log_file.read_text()


def test_long_polls_that_come_during_the_drain_period_are_answered_soon(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, SHUTDOWN_DRAIN_MS=LONG_MS) as service:
        service.process.send_signal(TERMINATE)
        service.wait_for_event("shutdown begun")
        assert httpx.get(service.url + POLL, timeout=10).json() == {"changes": [], "cursor": "0"}


def test_read_cut_by_a_shutdown_is_not_told_of_a_write(database_url: str, tmp_path: Path) -> None:
    with (
        running_service(tmp_path, DATABASE_URL=database_url, SHUTDOWN_GRACE_MS="1000") as service,
        ThreadPoolExecutor(1) as threads,
        psycopg.connect(database_url) as session,
    ):
        session.execute("lock table appointments in access exclusive mode")
        read = threads.submit(httpx.get, f"{service.url}/api/appointments?org=o", timeout=60)
        wait_until_blocked(database_url)
        service.process.send_signal(INTERRUPT)
        assert assert_problem(read.result(), 503, "OVERLOADED")["detail"] == "The service is shutting down."
        assert service.process.wait(30) == 0
        assert [event for event in service.events() if event["level"] == "error"] == []
