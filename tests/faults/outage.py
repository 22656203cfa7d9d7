"""Assertions about a service under load whose database becomes unavailable and comes back."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import psutil

from service.app import STREAM_CONNECTIONS_MAX
from service.settings import Settings
from service.writing.contended import CONNECTIONS_MAX as CONTENDED_CONNECTIONS_MAX
from service.writing.distributed import connections_max
from tests.cluster import COORDINATOR_URL
from tests.databases import assert_invariants
from tests.histories.clients import CLIENTS, ORGANISATIONS, Record, Refusal, clients, record_final_state
from tests.http.requests import assert_problem
from tests.processes import ServiceProcess, wait_until, writes_by_bucket

CALLS_BEFORE, CALLS_AFTER = 200, 200  # answered calls before and after the fault
RECOVERY_SECONDS_MAX = 2
REFUSAL_SECONDS_MAX = 0.1  # the median
DETECTION_SECONDS = 0.5  # after that, the service must have noticed that the database is gone
# The clients pause after each refusal, so this many take half a second at least. With DETECTION_SECONDS an outage then
# lasts long enough for the lane to reach its longest back-off.
REFUSALS_MIN = 300
MEMORY_GROWTH_BYTES_MAX = 30_000_000
# Every pool may have grown to its full size in the meantime.
WRITERS = connections_max(Settings()) if COORDINATOR_URL or writes_by_bucket() else CONTENDED_CONNECTIONS_MAX + 1
DESCRIPTOR_GROWTH_MAX = Settings().pool_connections_max + STREAM_CONNECTIONS_MAX + WRITERS


@contextmanager
def under_load(
    *services: ServiceProcess, database_url: str, organisations: Sequence[str] = ORGANISATIONS, count: int = CLIENTS
) -> Iterator[Record]:
    """The fault is injected in the block. Afterwards the recorded calls must be linearizable, the database consistent,
    the log free of errors, and the processes no larger than before."""
    before = [resource_usage(service) for service in services]
    with clients([service.url for service in services], int(time.time()), organisations, count) as record:
        record.wait_for_answers(CALLS_BEFORE)
        yield record
        record.wait_for_answers(CALLS_AFTER)
    wait_until(lambda: services[0].client.get("/readyz").status_code == 200)
    record_final_state(record, services[0].url)
    record.assert_linearizable()
    assert_invariants(database_url)
    for service, usage in zip(services, before, strict=True):
        assert_has_not_grown(service, *usage)
        assert [event for event in service.events() if event["level"] in ("error", "critical")] == []


def assert_has_not_grown(service: ServiceProcess, descriptors: int, memory_bytes: int) -> None:
    wait_until(lambda: resource_usage(service)[0] <= descriptors + DESCRIPTOR_GROWTH_MAX)
    assert resource_usage(service)[1] <= memory_bytes + MEMORY_GROWTH_BYTES_MAX


def resource_usage(service: ServiceProcess) -> tuple[int, int]:
    """Open descriptors and bytes of memory, summed over all processes of the service."""
    parent = psutil.Process(service.process.pid)
    processes = [parent, *parent.children(recursive=True)]
    return sum(process.num_fds() for process in processes), sum(process.memory_info().rss for process in processes)


def assert_refusals_are_quick(record: Record, service: ServiceProcess, since: float) -> None:
    """While the database is unavailable, requests get a quick 503 with `Retry-After`."""
    assert_refused(record, since, REFUSAL_SECONDS_MAX)
    assert_problem(service.client.get("/readyz"), 503, "NOT_READY")


def assert_refused(record: Record, since: float, seconds_max: float) -> None:
    """The median of the refusals takes this long at most."""

    def refusals() -> list[Refusal]:
        return record.refusals_of_calls_begun_after(since + DETECTION_SECONDS)

    wait_until(lambda: len(refusals()) >= REFUSALS_MIN)
    assert median(refusal.seconds for refusal in refusals()) < seconds_max
    assert {refusal.retry_after for refusal in refusals()} == {"1"}


def assert_recovers(record: Record, seconds: float = RECOVERY_SECONDS_MAX) -> None:
    """From now on, a write must get its verdict within a few seconds."""
    since = time.monotonic()
    wait_until(lambda: record.first_verdict_after(since) is not None)
    ended = record.first_verdict_after(since)
    assert ended is not None
    assert ended - since < seconds


def interrupt_database(
    record: Record, service: ServiceProcess, begin: Callable[[], object], end: Callable[[], object]
) -> None:
    """The database is unavailable from `begin` until `end` returns."""
    begin()
    assert_refusals_are_quick(record, service, time.monotonic())
    end()
    assert_recovers(record)


def hosts_in_use(service: ServiceProcess) -> list[str]:
    """In the order of time: the checks before the start may have found another one than the service."""
    return [event["host"] for event in service.events() if event["event"] == "database host in use"]
