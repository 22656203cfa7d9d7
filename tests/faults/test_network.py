"""The connections to the database are cut, stalled or slow, at every stage of a request."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from service.writing.back_off import NOTHING_WRITTEN
from tests.faults.outage import assert_recovers, interrupt_database, under_load
from tests.faults.proxy import Proxy, Stage, running_proxy
from tests.faults.server import Server
from tests.http.requests import assert_accepted, assert_problem, post
from tests.processes import ServiceProcess, running_service, wait_until

STALL_SECONDS = 1


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with running_proxy(f"{server.sockets}/.s.PGSQL.5432") as started:
        yield started


@pytest.fixture
def service(request: pytest.FixtureRequest, proxy: Proxy, tmp_path: Path) -> Iterator[ServiceProcess]:
    """The parameter is WRITE_WAIT_MS_MAX."""
    url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
    limit = getattr(request, "param", "5000")
    with running_service(tmp_path / "service", DATABASE_URL=url, WRITE_WAIT_MS_MAX=limit) as started:
        yield started


@pytest.mark.parametrize("stage", get_args(Stage))
def test_service_survives_repeated_cuts_at_one_stage_of_a_request(
    server: Server, proxy: Proxy, service: ServiceProcess, stage: Stage
) -> None:
    with under_load(service, database_url=server.url) as record:
        for _ in range(25):
            proxy.cut_next_request(stage)
            assert_recovers(record)


def test_service_survives_repeated_cuts_at_arbitrary_moments(
    server: Server, proxy: Proxy, service: ServiceProcess
) -> None:
    with under_load(service, database_url=server.url) as record:
        for number in range(30):
            proxy.cut_all()
            record.wait_for_calls(1 + number)  # answered or not, so that reconnecting is interrupted as well
        assert_recovers(record)


def test_service_survives_a_refused_connection(server: Server, proxy: Proxy, service: ServiceProcess) -> None:
    def disconnect() -> None:
        proxy.refuses_connections = True
        proxy.cut_all()

    def reconnect() -> None:
        proxy.refuses_connections = False

    with under_load(service, database_url=server.url) as record:
        interrupt_database(record, service, disconnect, reconnect)


def test_requests_wait_while_the_connections_stall(server: Server, proxy: Proxy, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        proxy.stalled = True
        time.sleep(STALL_SECONDS)  # below every time limit, so there is nothing to wait for
        proxy.stalled = False
        assert_recovers(record)
        assert record.seconds_max() >= STALL_SECONDS
        assert record.refusals == []


def test_service_survives_a_cut_of_stalled_connections(server: Server, proxy: Proxy, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        proxy.stalled = True
        wait_until(lambda: proxy.stalled_chunks >= 1)
        proxy.cut_all()
        wait_until(lambda: len(record.refusals) > 0)
        proxy.stalled = False
        assert_recovers(record)


def test_requests_are_slow_but_succeed_over_a_slow_connection(
    server: Server, proxy: Proxy, service: ServiceProcess
) -> None:
    with under_load(service, database_url=server.url) as record:
        proxy.delay_seconds = 0.1
        since = time.monotonic()
        record.wait_for_answers(100)
        slow = record.answered_calls_begun_after(since)
        proxy.delay_seconds = 0
        assert_recovers(record)
        assert min(call.ended - call.began for call in slow) >= 2 * 0.1  # there and back
        assert record.refusals == []


@pytest.mark.parametrize("service", ["5000", "200"], indirect=True)
def test_writes_are_refused_as_unavailable_while_the_first_new_connection_stalls(
    proxy: Proxy, service: ServiceProcess
) -> None:
    assert_accepted(post(service.client, "o"))
    proxy.stalled = True
    proxy.cut_all()
    wait_until(lambda: proxy.stalled_chunks >= 1)  # the writer connects again
    since = time.monotonic()
    problem = assert_problem(post(service.client, "o"), 503, "DATABASE_UNAVAILABLE")
    assert problem["detail"] == NOTHING_WRITTEN
    assert time.monotonic() - since < 3
    proxy.stalled = False
    wait_until(lambda: post(service.client, "o").status_code == 200)
