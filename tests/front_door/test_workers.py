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


def workers(service: ServiceProcess, count: int) -> list[int]:
    """The processes that have said they started, once there are so many."""
    found: list[int] = []

    def all_started() -> bool:
        found[:] = [event["process"] for event in service.events() if event["event"] == "started"]
        return len(found) == count

    wait_until(all_started)
    return found


def answered(service: ServiceProcess) -> float:
    text = service.client.get("/metrics").text
    counts = re.findall(r'^http_request_duration_seconds_count{.*status="200"} (.*)$', text, re.MULTILINE)
    return sum(map(float, counts))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_share_the_port_add_up_their_figures_and_end_together(
    database_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2", SHUTDOWN_DRAIN_MS="200") as service:
        assert len(set(workers(service, 2))) == 2
        before = answered(service)
        for n in range(20):
            service.client.close()  # so that each worker gets some
            service.client = httpx.Client(base_url=service.url, timeout=30)
            assert_accepted(post(service.client, f"o-{n}"))
        assert answered(service) - before == 21  # the first look at the figures is in the second
        for _ in range(3):
            service.process.send_signal(number)
        assert service.process.wait(30) == 0
        events = [event["event"] for event in service.events()]
        assert events[-2:] == ["stopped", "stopped"]
        assert events.count("shutdown begun") == (2 if number == signal.SIGTERM else 0)
        assert "Traceback" not in service.log_file.read_text()
    assert query(database_url, "select count(*) from appointments") == [(20,)]
    assert_invariants(database_url)


def test_a_worker_that_dies_is_replaced(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2") as service:
        victim = workers(service, 2)[0]
        os.kill(victim, signal.SIGKILL)
        assert service.wait_for_event("worker died", process=victim)["exit_code"] == -signal.SIGKILL
        assert len(set(workers(service, 3))) == 3
        with httpx.Client(base_url=service.url, timeout=30) as client:
            assert_accepted(post(client, "o"))


def test_workers_do_not_outlive_their_parent(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2") as service:
        processes = [psutil.Process(number) for number in workers(service, 2)]
        [figures] = Path(gettempdir()).glob(f"{METRICS}{service.process.pid}-*")
        service.kill()
        assert psutil.wait_procs(processes, timeout=30)[1] == []
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2") as again:
        assert_accepted(post(again.client, "o"))
        assert not figures.exists()
