"""Nodes of a Citus cluster are killed, stopped and halted, and shards move. Each organisation is on one worker; those on
the others go on."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest

from service.database.buckets import bucket_of
from tests.cluster import distributed_database, needs_citus
from tests.databases import query
from tests.faults.nodes import Nodes, nodes_of
from tests.faults.outage import assert_recovers, assert_refusals_are_quick, interrupt_database, under_load
from tests.histories.clients import URL, Record
from tests.processes import ServiceProcess, running_service, wait_until

pytestmark = needs_citus

STALL_SECONDS_MAX = 1.5  # of organisations on other workers, while one does not answer
STATEMENT_MS_MAX = 2000
HALT_SECONDS = 6  # several times the limit of a statement
MOVE = """
    select citus_move_shard_placement(
        get_shard_id_for_distribution_column('appointments', {}), '127.0.0.1', {}, '127.0.0.1', {}, '{}')"""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster with a distributed database."""
    with distributed_database() as url, nodes_of(url) as found:
        yield found


@pytest.fixture
def service(nodes: Nodes, tmp_path: Path) -> Iterator[ServiceProcess]:
    with running_service(
        tmp_path / "service", DATABASE_URL=nodes.url, STATEMENT_MS_MAX=str(STATEMENT_MS_MAX)
    ) as started:
        yield started


def longest_stall(record: Record, since: float) -> float:
    """The longest time between two answers."""
    now = time.monotonic()
    ends = sorted(call.ended for call in record.answered() if since < call.ended < now)
    return max(later - earlier for earlier, later in zip([since, *ends], [*ends, now], strict=True))


def test_killed_worker_makes_only_its_organisations_unavailable(nodes: Nodes, service: ServiceProcess) -> None:
    worker, other = nodes.workers[:2]
    with (
        under_load(service, database_url=nodes.url, organisations=nodes.organisations_of(worker)) as record,
        under_load(service, database_url=nodes.url, organisations=nodes.organisations_of(other)) as spared,
    ):
        for _ in range(2):
            since = time.monotonic()
            worker.kill()
            assert_refusals_are_quick(record, since)
            spared.wait_for_answers(200)
            assert longest_stall(spared, since) < STALL_SECONDS_MAX
            assert service.client.get("/readyz").status_code == 200
            worker.start()
            assert_recovers(record)
        assert spared.refusals == []
    nodes.assert_nothing_in_doubt()


def test_halted_worker_delays_only_its_organisations(nodes: Nodes, service: ServiceProcess) -> None:
    worker, other = nodes.workers[:2]
    with (
        under_load(service, database_url=nodes.url, organisations=nodes.organisations_of(worker, 6)) as record,
        under_load(service, database_url=nodes.url, organisations=nodes.organisations_of(other)) as spared,
    ):
        since = time.monotonic()
        worker.halt()
        time.sleep(HALT_SECONDS)
        assert longest_stall(spared, since) < STALL_SECONDS_MAX
        assert service.client.get("/readyz").status_code == 200
        worker.go_on()
        assert_recovers(record)
        assert spared.refusals == []
    nodes.assert_nothing_in_doubt()


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_service_survives_a_restart_of_the_coordinator(nodes: Nodes, service: ServiceProcess, fault: str) -> None:
    with under_load(service, database_url=nodes.url) as record:
        interrupt_database(record, service, getattr(nodes.coordinator, fault), nodes.coordinator.start)
    nodes.assert_nothing_in_doubt()


@pytest.mark.parametrize("mode", ["block_writes", "force_logical"])
def test_shard_moves_while_two_services_use_it(
    nodes: Nodes, service: ServiceProcess, tmp_path: Path, mode: str
) -> None:
    worker, other = nodes.workers[:2]
    organisation, *rest = nodes.organisations_of(worker)
    done = Event()
    with (
        running_service(tmp_path / "second", DATABASE_URL=nodes.url) as second,
        under_load(service, second, database_url=nodes.url, organisations=[organisation]) as record,
        under_load(service, database_url=nodes.url, organisations=rest) as spared,
        ThreadPoolExecutor(1) as executor,
    ):
        followed = executor.submit(follow, second.url, organisation, done)
        for source, target in ((worker, other), (other, worker)):
            since = time.monotonic()
            query(nodes.url, MOVE.format(bucket_of(organisation), source.port, target.port, mode))
            print("move", mode, time.monotonic() - since, longest_stall(record, since), longest_stall(spared, since))
            assert nodes.worker_of(organisation) is target
            assert longest_stall(spared, since) < STALL_SECONDS_MAX
            assert_recovers(record)
            record.wait_for_answers(100)
        done.set()
        seen = followed.result()
        assert spared.refusals == []
        assert record.refusals == []
    complete = httpx.get(service.url + URL + "/changes", params={"org": organisation}).json()["changes"]
    assert seen == complete[: len(seen)]
    nodes.assert_nothing_in_doubt()


def follow(url: str, organisation: str, done: Event) -> list[object]:
    """All changes, by cursor, from the first until `done`."""
    changes: list[object] = []
    cursor = "0"
    with httpx.Client(base_url=url) as client:
        while not done.is_set():
            answer = client.get(URL + "/changes", params={"org": organisation, "after": cursor, "limit": 5, "wait": 1})
            if answer.status_code != 503:
                page = answer.raise_for_status().json()
                changes += page["changes"]
                cursor = page["cursor"]
    return changes


def test_two_services_write_the_same_organisations(nodes: Nodes, service: ServiceProcess, tmp_path: Path) -> None:
    with (
        running_service(tmp_path / "second", DATABASE_URL=nodes.url) as second,
        under_load(service, second, database_url=nodes.url) as record,
    ):
        record.wait_for_answers(2000)
        assert record.refusals == []
    nodes.assert_nothing_in_doubt()
