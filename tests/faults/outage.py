"""What must be true of a service whose database goes away and comes back, while clients write."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import psutil

from service.app import STREAM_CONNECTIONS_MAX
from service.settings import Settings
from service.writing.contended import CONNECTIONS_MAX as CONTENDED_CONNECTIONS_MAX
from tests.databases import assert_invariants
from tests.histories.clients import Record, clients, read_at_the_end
from tests.processes import ServiceProcess, wait_until

BEFORE_SECONDS, AFTER_SECONDS = 0.7, 0.7
BACK_SECONDS_MAX = 2
REFUSAL_SECONDS_MAX = 0.1  # the median
NOTICE_SECONDS = 0.5  # until the loss is noticed
MEMORY_BYTES_MAX = 30_000_000
# Every pool may have grown to its size meanwhile.
DESCRIPTORS_MAX = Settings().pool_connections_max + STREAM_CONNECTIONS_MAX + CONTENDED_CONNECTIONS_MAX + 1


@contextmanager
def under_load(*services: ServiceProcess, database_url: str) -> Iterator[Record]:
    """The block is the fault. Afterwards no acknowledged write is lost, nothing half written, and the
    processes are as they were."""
    before = [sizes(service) for service in services]
    with clients([service.url for service in services], seed=int(time.time())) as record:
        time.sleep(BEFORE_SECONDS)
        yield record
        time.sleep(AFTER_SECONDS)
    wait_until(lambda: services[0].client.get("/readyz").status_code == 200)
    read_at_the_end(record, services[0].url)
    record.check()
    assert_invariants(database_url)
    for service, was in zip(services, before, strict=True):
        wait_until(lambda service=service, was=was: sizes(service)[0] <= was[0] + DESCRIPTORS_MAX)  # type: ignore[misc]
        assert sizes(service)[1] <= was[1] + MEMORY_BYTES_MAX
        assert [event for event in service.events() if event["level"] in ("error", "critical")] == []


def sizes(service: ServiceProcess) -> tuple[int, int]:
    """Open descriptors and bytes of memory, of all processes of a service."""
    first = psutil.Process(service.process.pid)
    processes = [first, *first.children(recursive=True)]
    return sum(each.num_fds() for each in processes), sum(each.memory_info().rss for each in processes)


def assert_away(record: Record, service: ServiceProcess, since: float) -> None:
    """While the database is away requests get a quick 503 that says when to come again."""
    ready = service.client.get("/readyz")
    assert (ready.status_code, ready.json()["code"]) == (503, "NOT_READY")
    refusals = [refusal for refusal in record.refusals if refusal.at - refusal.seconds > since + NOTICE_SECONDS]
    assert len(refusals) > 10
    assert median(refusal.seconds for refusal in refusals) < REFUSAL_SECONDS_MAX
    assert {refusal.retry_after for refusal in refusals} == {"1"}


def assert_back(record: Record, since: float) -> None:
    """Writes are answered soon after the database is back."""
    wait_until(lambda: record.answered_after(since) is not None)
    answered = record.answered_after(since)
    assert answered is not None
    assert answered - since < BACK_SECONDS_MAX


def away(
    record: Record, service: ServiceProcess, seconds: float, begin: Callable[[], None], end: Callable[[], None]
) -> None:
    """The database is gone from `begin` on until `end` is done."""
    begin()
    began = time.monotonic()
    time.sleep(seconds)
    assert_away(record, service, began)
    end()
    assert_back(record, time.monotonic())
