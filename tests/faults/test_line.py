"""The line to the database is cut, stalled or slow, at every stage of a request."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from tests.faults.outage import assert_back, away, under_load
from tests.faults.proxy import Line, Stage, line_to
from tests.faults.server import Server
from tests.processes import ServiceProcess, running_service


@pytest.fixture
def line(server: Server) -> Iterator[Line]:
    with line_to(f"{server.sockets}/.s.PGSQL.5432") as opened:
        yield opened


@pytest.fixture
def service(line: Line, tmp_path: Path) -> Iterator[ServiceProcess]:
    url = f"postgresql://postgres@127.0.0.1:{line.port}/postgres"
    with running_service(tmp_path / "service", DATABASE_URL=url) as started:
        yield started


@pytest.mark.parametrize("stage", get_args(Stage))
def test_a_line_that_is_cut_again_and_again(server: Server, line: Line, service: ServiceProcess, stage: Stage) -> None:
    with under_load(service, database_url=server.url) as record:
        for _ in range(25):
            line.cut_at = stage
            time.sleep(0.08)
        line.cut_at = None
        assert line.cuts > 10
        assert_back(record, time.monotonic())


def test_a_line_that_is_cut_wherever_it_happens_to_be(server: Server, line: Line, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        for number in range(30):
            line.cut()
            time.sleep(0.02 + number * 0.003)
        assert_back(record, time.monotonic())


def test_a_line_that_is_gone_for_a_while(server: Server, line: Line, service: ServiceProcess) -> None:
    def lose() -> None:
        line.refuses = True
        line.cut()

    def restore() -> None:
        line.refuses = False

    with under_load(service, database_url=server.url) as record:
        away(record, service, 1.5, lose, restore)


def test_a_line_that_stalls_and_goes_on(server: Server, line: Line, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        line.stalled = True
        time.sleep(3)
        line.stalled = False
        assert_back(record, time.monotonic())


def test_a_line_that_stalls_and_is_cut(server: Server, line: Line, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        line.stalled = True
        time.sleep(3)
        line.cut()
        line.stalled = False
        assert_back(record, time.monotonic())


def test_a_slow_line(server: Server, line: Line, service: ServiceProcess) -> None:
    with under_load(service, database_url=server.url) as record:
        line.seconds = 0.1
        time.sleep(2)
        line.seconds = 0
        assert_back(record, time.monotonic())
        assert record.refusals == []
