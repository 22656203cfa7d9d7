"""The metrics of `/metrics`. Every label has a bounded set of values: routes, not paths."""

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import cache, partial

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

SAMPLE_SECONDS = 1

REGISTRY = CollectorRegistry()
for collector in (prometheus.ProcessCollector, prometheus.PlatformCollector, prometheus.GCCollector):
    collector(registry=REGISTRY)

BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
seconds = partial(Histogram, buckets=BUCKETS_SECONDS, registry=REGISTRY)
counter = partial(Counter, registry=REGISTRY)
gauge = partial(Gauge, multiprocess_mode="livesum", registry=REGISTRY)

requests = seconds(
    "http_request_duration_seconds",
    "Time from the headers of a request to the end of its answer.",
    ("method", "route", "status"),
)
request_seconds = cache(requests.labels)  # looking up a child costs as much as observing
statements = seconds("database_statement_duration_seconds", "Time of a statement, round trip included.", ("statement",))
statement_seconds = cache(statements.labels)
verdicts = counter("appointment_verdicts", "Outcomes of valid appointments.", ("verdict",))
REFUSALS = counter(
    "http_connections_refused", "Connections ended with an error: too many, too slow, or too large.", ("code",)
)
VERDICTS = {outcome: verdicts.labels(outcome) for outcome in ("ok", "stale", "conflict")}
POOL_CONNECTIONS = gauge("database_pool_connections", "Connections of the pool, by state.", ("state",))
REQUESTS_WAITING = gauge("database_pool_waiting_requests", "Requests that wait for a connection of the pool.")
WRITES_WAITING = gauge("writer_waiting_writes", "Writes that wait for their verdict.")
BUCKETS_WRITES = [2**power for power in range(11)]
BATCH_WRITES = Histogram("writer_batch_writes", "Writes in a batch.", buckets=BUCKETS_WRITES, registry=REGISTRY)
QUEUE_WAIT_SECONDS = seconds("writer_queue_wait_seconds", "Time in the queue of the oldest write of a batch.")
BUSY_CARRIES = counter(
    "writer_busy_carries", "Writes moved to the next batch because another process held the lock of their organisation."
)
CONTENDED_BATCHES = counter("writer_patient_batches", "Batches that waited for the locks of their organisations.")
CHANGES_WAITING = gauge("changes_waiting_requests", "Requests that wait for a change (long polling).")
reads = counter("database_reads", "Requests that read, by the kind of server that was asked.", ("server",))
READS = {kind: reads.labels(kind) for kind in ("primary", "standby")}
STANDBY_LAG_SECONDS = Gauge(
    "database_standby_lag_seconds",
    "How far a standby is behind the primary at most; infinite while that is unknown.",
    ("standby",),
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
BACKGROUND_FAILURES = counter("background_task_failures", "Background tasks that failed and were restarted.", ("task",))


def exposition() -> bytes:
    """Prometheus text; with several workers, the sum over all of them."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry := CollectorRegistry())
    return prometheus.generate_latest(registry)


async def sample(levels: Mapping[Gauge, Callable[[], float]]) -> None:
    """Samples the gauges whose values are not updated by events."""
    while True:
        for gauge_, level in levels.items():
            gauge_.set(level())
        await asyncio.sleep(SAMPLE_SECONDS)
