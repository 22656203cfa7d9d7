"""The figures of `/metrics`. Every label has a bounded set of values: routes, not paths."""

from functools import partial

from asyncpg import Pool
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

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
STATEMENT_SECONDS = seconds(
    "database_statement_duration_seconds", "Time of a statement, with the way to the database and back.", ("statement",)
)
VERDICTS = Counter("appointment_verdicts", "What became of sound appointments.", ("verdict",), registry=REGISTRY)
POOL_CONNECTIONS = Gauge(
    "database_pool_connections", "Connections of the pool, by what they do.", ("state",), registry=REGISTRY
)


def watch_pool(pool: Pool) -> None:
    """Figures of the pool are read when they are asked for."""
    POOL_CONNECTIONS.labels("idle").set_function(pool.get_idle_size)
    POOL_CONNECTIONS.labels("busy").set_function(lambda: pool.get_size() - pool.get_idle_size())
