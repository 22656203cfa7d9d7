"""A standby that fails under load costs nobody an answer, and its answers are never older than they may be."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.databases import query
from tests.faults.server import Server, cleaned_up, create_standby
from tests.http.requests import metrics, payload
from tests.processes import ServiceProcess, running_service, wait_until

LAG_SECONDS_MAX = 1
KINDS = ("no-cache", "If-None-Match", "neither")  # what a reader sends
STANDBY = "database_reads_total standby"
END_SESSIONS = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'appointments'"
SLOW_ON_STANDBYS = """
    create schema slow;
    create function slow.change_cursor(bigint, timestamptz, uuid) returns text language sql as $$
        select public.change_cursor($1, $2, $3) || case when pg_is_in_recovery() then pg_sleep(60)::text else '' end
    $$;
    alter database postgres set search_path = slow, public"""
# A read that a halted standby does not answer: until it counts as halted, and then the primary's answer.
READ_SECONDS_MAX = 3
STOP_SECONDS_MAX = 5
URL = "/api/appointments"


class Load:
    """A writer moves one appointment again and again; readers check that they see each accepted move in time. `faults`
    are answers that should not be."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._accepted: list[tuple[float, int]] = [(0, 0)]  # when its answer came, version
        self.faults: list[str] = []
        self.reads = 0
        self.slowest = 0.0
        readers = [threading.Thread(target=self._read, args=(kind,)) for kind in KINDS]
        self._threads = [threading.Thread(target=self._write), *readers]

    def run(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_reads(self, more: int = 200) -> None:
        count = self.reads + more
        wait_until(lambda: self.reads >= count)

    def _write(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.is_set():
                version = self._accepted[-1][1] + 1
                instant = f"2020-10-10 10:00:{version // 1000:02}.{version % 1000:03}"
                response = client.post(URL, json=payload("o", updatedAt=instant, createdAt="2020-01-01"))
                if response.status_code == 200:
                    self._accepted.append((time.monotonic(), version))
                else:
                    self.faults.append(f"{response.status_code} {response.text}")
                time.sleep(0.005)

    def _read(self, kind: str) -> None:
        headers = {"Cache-Control": "no-cache"} if kind == "no-cache" else {}
        seconds_max = 0 if kind == "no-cache" else LAG_SECONDS_MAX
        with httpx.Client(base_url=self._url, timeout=30, headers=headers) as client:
            seen = 0
            while not self._stop.is_set():
                began = time.monotonic()
                least = max(version for at, version in self._accepted if at <= max(began - seconds_max, 0))
                response = client.get(URL, params={"org": "o"})
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.reads += 1
                if response.status_code not in (200, 304):
                    self.faults.append(f"{kind}: {response.status_code} {response.text}")
                    continue
                if response.status_code == 200:
                    before, seen = seen, max((row["version"] for row in response.json()), default=0)
                    if kind != "neither" and seen < before:
                        self.faults.append(f"{kind}: version {seen} after {before}")
                    if kind == "If-None-Match":
                        client.headers["If-None-Match"] = response.headers["etag"]
                if seen < least:
                    self.faults.append(f"{kind}: version {seen} instead of {least}")


@pytest.fixture
def standby(server: Server, tmp_path: Path) -> Iterator[Server]:
    with cleaned_up(create_standby(server, tmp_path / "standby")) as started:
        started.start()
        yield started


@pytest.fixture
def service(server: Server, standby: Server, tmp_path: Path) -> Iterator[ServiceProcess]:
    settings = {"DATABASE_URL": server.url, "READ_DATABASE_URL": standby.url}
    with running_service(tmp_path / "service", READ_LAG_MS_MAX=str(LAG_SECONDS_MAX * 1000), **settings) as started:
        yield started
        assert [event for event in started.events() if event["level"] in ("error", "critical")] == []


@contextmanager
def under_load(service: ServiceProcess) -> Iterator[Load]:
    wait_until(lambda: is_used(service))
    load = Load(service.url)
    load.run()
    try:
        load.wait_for_reads()
        yield load
        load.wait_for_reads()
    finally:
        load.end()
    assert load.faults == []


def is_used(service: ServiceProcess) -> bool:
    count = metrics(service.client)[STANDBY]
    assert service.client.get(URL).status_code == 200
    return metrics(service.client)[STANDBY] > count


def halt(standby: Server) -> None:
    standby.signal_all(signal.SIGSTOP)


def go_on(standby: Server) -> None:
    standby.signal_all(signal.SIGCONT)


def pause(standby: Server) -> None:
    query(standby.url, "select pg_wal_replay_pause()")


def resume(standby: Server) -> None:
    query(standby.url, "select pg_wal_replay_resume()")


def replay_late(standby: Server) -> None:
    query(standby.url, "alter system set recovery_min_apply_delay = '3s'")
    query(standby.url, "select pg_reload_conf()")


def replay_at_once(standby: Server) -> None:
    query(standby.url, "alter system reset recovery_min_apply_delay")
    query(standby.url, "select pg_reload_conf()")


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (Server.kill, Server.start),
        (Server.stop, Server.start),
        (halt, go_on),
        (pause, resume),
        (replay_late, replay_at_once),
    ],
)
def test_standby_that_fails_costs_nobody_an_answer_and_is_used_again(
    standby: Server, service: ServiceProcess, begin: Callable[[Server], None], end: Callable[[Server], None]
) -> None:
    with under_load(service) as load:
        begin(standby)
        wait_until(lambda: not is_used(service))
        load.wait_for_reads()
        end(standby)
        wait_until(lambda: is_used(service), 60)
    assert load.slowest < READ_SECONDS_MAX


def test_promoted_standby_is_not_used(standby: Server, service: ServiceProcess) -> None:
    with under_load(service) as load:
        query(standby.url, "select pg_promote()")
        wait_until(lambda: not is_used(service))
        query(standby.url, "update appointments set version = 1000000")
        load.wait_for_reads()


def test_terminated_sessions_of_the_standby_cost_nobody_an_answer(standby: Server, service: ServiceProcess) -> None:
    with under_load(service) as load:
        for _ in range(4):
            query(standby.url, END_SESSIONS)
            load.wait_for_reads(50)
            wait_until(lambda: is_used(service))


def test_statement_that_a_recovery_conflict_cancels_is_answered_by_the_primary(
    server: Server, standby: Server, service: ServiceProcess
) -> None:
    """A function before the schema's own one in the search path keeps the statement waiting on the standby."""
    query(standby.url, "alter system set max_standby_streaming_delay = 0")
    query(standby.url, "select pg_reload_conf()")
    query(server.url, SLOW_ON_STANDBYS)
    assert service.client.post(URL, json=payload("o")).status_code == 200
    query(server.url, END_SESSIONS)
    wait_until(lambda: query(standby.url, "select count(*) from appointments") == [(1,)])
    query(standby.url, END_SESSIONS)
    wait_until(lambda: is_used(service))
    with ThreadPoolExecutor() as executor:
        answer = executor.submit(service.client.get, URL, params={"org": "o"})
        sleeping = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
        wait_until(lambda: query(standby.url, sleeping) == [(1,)])
        query(server.url, "begin; lock table appointments in access exclusive mode; commit")
        assert [row["externalId"] for row in answer.result().json()] == ["a-1"]
    service.wait_for_event("database unavailable", cause="SerializationError")


def test_halted_standby_delays_neither_the_start_nor_the_end(server: Server, standby: Server, tmp_path: Path) -> None:
    settings = {"DATABASE_URL": server.url, "READ_DATABASE_URL": standby.url, "WORKERS": "2"}
    halt(standby)
    with running_service(tmp_path / "service", **settings) as service:
        assert service.client.get(URL).status_code == 200
        go_on(standby)
        wait_until(lambda: is_used(service))
        wait_until(lambda: 0 <= metrics(service.client)[f"database_standby_lag_seconds {standby.sockets}:5432"] < 1)
        halt(standby)
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < STOP_SECONDS_MAX
