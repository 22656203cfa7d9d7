"""Several processes behind one port."""

import os
import re
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from subprocess import DEVNULL, PIPE
from tempfile import gettempdir

import httpx
import psutil
import pytest

from service.web.workers import METRICS
from tests.databases import assert_invariants, query
from tests.http.requests import assert_accepted, post
from tests.processes import ServiceProcess, clean_environment, running_service, wait_until


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


def workers_of(service: ServiceProcess) -> list[psutil.Process]:
    """The newest one last."""
    workers = [
        process
        for process in psutil.process_iter(["ppid", "cmdline"])
        if process.info["ppid"] == service.process.pid and "spawn_main" in " ".join(process.info["cmdline"] or [])
    ]
    return sorted(workers, key=lambda worker: worker.create_time())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_worker_that_hangs_is_killed_after_the_grace_time(
    database_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    limits = {"SHUTDOWN_DRAIN_MS": "100", "SHUTDOWN_GRACE_MS": "1000"}
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2", **limits) as service:
        hanging, healthy = map(psutil.Process, started_workers(service, 2))
        hanging.suspend()
        service.process.send_signal(number)
        assert service.process.wait(10) == 1
        assert not hanging.is_running()
        assert not healthy.is_running()
        [line] = [line for line in service.log_file.read_text().splitlines() if line.startswith("error: ")]
        assert line == "error: Workers killed, since they did not end within 3 seconds: 1."


def test_worker_that_dies_during_a_shutdown_is_not_replaced(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2", SHUTDOWN_DRAIN_MS="60000") as service:
        victim, _ = map(psutil.Process, started_workers(service, 2))
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: [event["event"] for event in service.events()].count("shutdown begun") == 2)
        victim.kill()
        wait_until(lambda: not victim.is_running())
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(30) == 0
        started_workers(service, 2)


def test_workers_that_die_at_each_start_are_replaced_more_and_more_slowly(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2") as service:
        started_workers(service, 2)

        def replacements() -> list[datetime]:
            events = [event for event in service.events() if event["event"] == "worker died"]
            return [datetime.fromisoformat(event["timestamp"]) for event in events]

        for count in range(1, 5):
            workers_of(service)[-1].kill()
            wait_until(lambda count=count: len(replacements()) == count)  # type: ignore[misc]
        first, second, third, fourth = replacements()
        assert third - second > second - first
        assert fourth - third > timedelta(seconds=3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_that_are_stopped_while_they_start_end_in_silence(
    database_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2", SHUTDOWN_DRAIN_MS="0") as service:
        started_workers(service, 2)
        [*_, victim] = workers_of(service)
        victim.kill()
        wait_until(lambda: victim not in workers_of(service) and len(workers_of(service)) == 2)
        service.process.send_signal(number)
        assert service.process.wait(10) == 0
        assert "Traceback" not in service.log_file.read_text()


def test_workers_that_are_interrupted_during_their_imports_end_in_silence(database_url: str, tmp_path: Path) -> None:
    environment = clean_environment(DATABASE_URL=database_url, PORT="0", WORKERS="2")
    line = [sys.executable, "-m", "service", "serve"]
    with subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=DEVNULL, stderr=PIPE) as process:
        parent = psutil.Process(process.pid)

        def importing() -> bool:
            workers = [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]
            return len(workers) == 2 and workers[0].cpu_times().user > 0.05

        wait_until(importing)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode in (0, -signal.SIGINT)
