"""Several processes behind one port."""

import os
import re
import signal
from pathlib import Path
from tempfile import gettempdir

import httpx
import psutil
import pytest

from service.web.workers import METRICS
from tests.databases import assert_invariants, query
from tests.http.requests import assert_accepted, post
from tests.processes import ServiceProcess, running_service, wait_until


def started_workers(service: ServiceProcess, count: int) -> list[int]:
    """The pids of the workers that have logged their start, once there are `count` of them."""
    pids: list[int] = []

    def all_started() -> bool:
        pids[:] = [event["process"] for event in service.events() if event["event"] == "started"]
        return len(pids) == count

    wait_until(all_started)
    assert len(set(pids)) == count
    return pids


def successful_requests(service: ServiceProcess) -> float:
    """The number of requests answered with 200, according to `/metrics`."""
    text = service.client.get("/metrics").text
    counts = re.findall(r'^http_request_duration_seconds_count{.*status="200"} (.*)$', text, re.MULTILINE)
    return sum(map(float, counts))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_share_a_port_aggregate_their_metrics_and_stop_together(
    database_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2", SHUTDOWN_DRAIN_MS="200") as service:
        started_workers(service, 2)
        before = successful_requests(service)
        for n in range(20):
            service.client.close()  # a new connection may reach the other worker
            service.client = httpx.Client(base_url=service.url, timeout=30)
            assert_accepted(post(service.client, f"o-{n}"))
        assert successful_requests(service) - before == 21  # 20 POSTs, and the first GET of /metrics
        for _ in range(3):
            service.process.send_signal(number)
        assert service.process.wait(30) == 0
        events = [event["event"] for event in service.events()]
        assert events[-2:] == ["stopped", "stopped"]
        assert events.count("shutdown begun") == (2 if number == signal.SIGTERM else 0)
        assert "Traceback" not in service.log_file.read_text()
    assert query(database_url, "select count(*) from appointments") == [(20,)]
    assert_invariants(database_url)


def test_killed_worker_is_replaced(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2") as service:
        victim = started_workers(service, 2)[0]
        os.kill(victim, signal.SIGKILL)
        assert service.wait_for_event("worker died", process=victim)["exit_code"] == -signal.SIGKILL
        started_workers(service, 3)
        with httpx.Client(base_url=service.url, timeout=30) as client:
            assert_accepted(post(client, "o"))


def test_workers_end_with_their_killed_parent_and_the_next_start_removes_its_metrics(
    database_url: str, tmp_path: Path
) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2") as service:
        processes = [psutil.Process(pid) for pid in started_workers(service, 2)]
        [metrics_directory] = Path(gettempdir()).glob(f"{METRICS}{service.process.pid}-*")
        service.kill()
        assert psutil.wait_procs(processes, timeout=30)[1] == []
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2") as again:
        assert_accepted(post(again.client, "o"))
        assert not metrics_directory.exists()
