"""The figures of `/metrics`. Every label has a bounded set of values: routes, not paths."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial

from asyncpg import Pool
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

SAMPLE_SECONDS = 1

REGISTRY = CollectorRegistry()
for collector in (ProcessCollector, PlatformCollector, GCCollector):
    collector(registry=REGISTRY)

BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
seconds = partial(Histogram, buckets=BUCKETS_SECONDS, registry=REGISTRY)

REQUEST_SECONDS = seconds(
    "http_request_duration_seconds",
    "Time from the head of a request to the end of its answer.",
    ("method", "route", "status"),
)
request_seconds = cache(REQUEST_SECONDS.labels)  # looking a child up costs as much as observing
STATEMENT_SECONDS = seconds(
    "database_statement_duration_seconds", "Time of a statement, with the way to the database and back.", ("statement",)
)
statement_seconds = cache(STATEMENT_SECONDS.labels)
verdicts = Counter("appointment_verdicts", "What became of sound appointments.", ("verdict",), registry=REGISTRY)
REFUSALS = Counter(
    "http_connections_refused",
    "Connections that were ended with an error: too many, too slow, or too much.",
    ("code",),
    registry=REGISTRY,
)
VERDICTS = {outcome: verdicts.labels(outcome) for outcome in ("ok", "stale", "conflict")}
gauge = partial(Gauge, multiprocess_mode="livesum", registry=REGISTRY)
POOL_CONNECTIONS = gauge("database_pool_connections", "Connections of the pool, by what they do.", ("state",))
REQUESTS_WAITING = gauge("database_pool_waiting_requests", "Requests that wait for a connection of the pool.")
WRITES_WAITING = gauge("writer_waiting_writes", "Writes that wait for their verdict.")
BATCH_WRITES = Histogram(
    "writer_batch_writes",
    "Writes of a batch.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    registry=REGISTRY,
)
QUEUE_WAIT_SECONDS = seconds(
    "writer_queue_wait_seconds", "Time in the queue, of the first write of a batch, which waited longest."
)
BUSY_CARRIES = Counter(
    "writer_busy_carries",
    "Writes put into the next batch, since another process was at their organisation.",
    registry=REGISTRY,
)
PATIENT_BATCHES = Counter(
    "writer_patient_batches", "Batches that waited for an organisation's lock.", registry=REGISTRY
)


def exposition() -> bytes:
    """Where there are several workers, what all of them have counted."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    added_up = CollectorRegistry()
    MultiProcessCollector(added_up)
    return generate_latest(added_up)


@asynccontextmanager
async def sampled(pool: Pool, requests: Callable[[], int], writes: Callable[[], int]) -> AsyncIterator[None]:
    """Keeps up what is a level and not a count."""

    async def sample() -> None:
        while True:
            POOL_CONNECTIONS.labels("idle").set(pool.get_idle_size())
            POOL_CONNECTIONS.labels("busy").set(pool.get_size() - pool.get_idle_size())
            REQUESTS_WAITING.set(requests())
            WRITES_WAITING.set(writes())
            await asyncio.sleep(SAMPLE_SECONDS)

    task = asyncio.create_task(sample())
    try:
        yield
    finally:
        task.cancel()
