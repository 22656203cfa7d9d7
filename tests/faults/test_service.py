"""Processes of the service are killed, or stopped while they hold locks of organisations."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.databases import assert_invariants, query, wait_until_blocked
from tests.faults.outage import RECOVERY_SECONDS_MAX, assert_recovers, under_load
from tests.faults.proxy import running_proxy
from tests.faults.server import Server
from tests.histories.clients import ORGANISATIONS, Record, clients, record_final_state
from tests.http.requests import assert_accepted, payload, post
from tests.processes import ServiceProcess, free_port, running_service, wait_until

URL = "/api/appointments"
ADVISORY_LOCKS = "select count(*) from pg_locks where locktype = 'advisory' and granted"


def test_acknowledged_writes_survive_kills_of_the_service(server: Server, tmp_path: Path) -> None:
    port = str(free_port())
    with clients([f"http://127.0.0.1:{port}"]) as record:
        for number in range(3):
            service = ServiceProcess(tmp_path / str(number), DATABASE_URL=server.url, PORT=port)
            assert_recovers(record)
            record.wait_for_answers(200)
            service.kill()
    with running_service(tmp_path / "last", DATABASE_URL=server.url) as last:
        record_final_state(record, last.url)
    record.assert_linearizable()
    assert_invariants(server.url)


def test_killed_workers_are_replaced(server: Server, tmp_path: Path) -> None:
    with running_service(tmp_path / "service", DATABASE_URL=server.url, WORKERS="2") as service:
        wait_until(lambda: len(starts(service)) == 2)
        with clients([service.url]) as record:
            for _ in range(3):
                record.wait_for_answers(200)
                kill_worker(service)
            assert_recovers(record)
        record_final_state(record, service.url)
    record.assert_linearizable()
    assert_invariants(server.url)


def kill_worker(service: ServiceProcess) -> None:
    """Kills the worker with the most connections. Returns when another one has started in its place."""
    started = len(starts(service))
    workers = psutil.Process(service.process.pid).children()
    victim = max(workers, key=lambda worker: len(worker.net_connections()))
    victim.kill()
    service.wait_for_event("worker died", process=victim.pid)
    wait_until(lambda: len(starts(service)) == started + 1)


def starts(service: ServiceProcess) -> list[int]:
    return [event["process"] for event in service.events() if event["event"] == "started"]


def test_stopped_process_delays_writes_of_other_processes_only_briefly(server: Server, tmp_path: Path) -> None:
    """The process may have sent half of a pipeline; its session then holds locks until its transaction times out."""
    settings = {"DATABASE_URL": server.url, "STATEMENT_MS_MAX": "1000", "WRITE_WAIT_MS_MAX": "2000"}
    with (
        running_service(tmp_path / "one", **settings) as one,
        running_service(tmp_path / "other", **settings) as other,
        under_load(other, database_url=server.url) as record,
        clients([one.url], seed=99) as record_of_one,
    ):
        for _ in range(3):
            record_of_one.wait_for_answers(50)
            os.kill(one.process.pid, signal.SIGSTOP)
            try:
                assert_every_organisation_is_served(record, 1 + RECOVERY_SECONDS_MAX)  # after STATEMENT_MS_MAX
            finally:
                os.kill(one.process.pid, signal.SIGCONT)
        record_of_one.wait_for_answers(50)
        for organisation, calls in record_of_one.calls.items():
            record.calls[organisation] += calls


def assert_every_organisation_is_served(record: Record, seconds: float) -> None:
    since = time.monotonic()
    wait_until(lambda: all(record.first_verdict_after(since, organisation) for organisation in ORGANISATIONS))
    assert time.monotonic() - since < seconds


@pytest.mark.parametrize("path", [URL, URL + "/batch"])
def test_locks_of_a_process_stopped_within_a_pipeline_are_released(server: Server, tmp_path: Path, path: str) -> None:
    """PostgreSQL regards the session as neither idle nor in a statement. Version 17 and later can end it."""
    with running_proxy(f"{server.sockets}/.s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        with (
            running_service(tmp_path / "one", DATABASE_URL=url, STATEMENT_MS_MAX="1500") as one,
            running_service(tmp_path / "other", DATABASE_URL=server.url) as other,
            ThreadPoolExecutor(1) as executor,
        ):
            proxy.unfinished = b"never-answered"
            body = payload("o", id="never-answered")
            stopped = threading.Thread(target=post_in_vain, args=(one.url + path, body if path == URL else [body]))
            stopped.start()
            wait_until(lambda: query(server.url, ADVISORY_LOCKS) == [(1,)])
            os.kill(one.process.pid, signal.SIGSTOP)
            try:
                write = executor.submit(post, other.client, "o", id="another")
                wait_until_blocked(server.url)
                assert_accepted(write.result(3))  # the time limits of `other` are longer
            finally:
                os.kill(one.process.pid, signal.SIGCONT)
                stopped.join()
    assert query(server.url, "select external_id from appointments") == [("another",)]


def post_in_vain(url: str, body: object) -> None:
    with suppress(httpx.TransportError):
        httpx.post(url, json=body, timeout=10)
