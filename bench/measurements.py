"""What is measured, by name, and the check of what it left behind."""

import time
from collections.abc import Mapping
from typing import NamedTuple

from bench import floor, open_loop, wrk
from bench.contenders import Contender
from bench.stage import WARM_UP_SECONDS, Stage
from tests.databases import assert_invariants, query

Figures = Mapping[str, float]


class Measurement(NamedTuple):
    """`contender` does `work`; `amount` is the number of connections, for `open` the requests a second
    as a share of the rate at W1, for `at` the appointments of the organisation."""

    contender: str
    work: str
    amount: float

    def __str__(self) -> str:
        return f"{self.contender}: {self.work} {self.amount:g}"


SETTLE_SECONDS = 0.3
HOT_ORGANISATIONS = 5
ORGANISATIONS = {"new": 1000, "one": 1, "hot": HOT_ORGANISATIONS, "storm": 1}


def measure(stage: Stage, measurement: Measurement, base_rate: float) -> Figures:
    """`rate` a second, and latencies in ms. Raises AssertionError if an answer or a row is not right."""
    name, work, amount = measurement
    seconds = stage.size.seconds
    if name == "pgbench" and work == "list":
        return {"rate": floor.list_rate(stage.contender("reads").database_url, int(amount), seconds)}
    if name == "pgbench":
        empty(stage.floor())
        rate = floor.upsert_rate(stage.floor(), int(amount), seconds)
        assert_invariants(stage.floor())
        return {"rate": rate}
    contender = stage.contender(name)
    if work in ("list", "at"):
        return read(contender, work, int(amount), seconds)
    if name.startswith("table "):
        as_filled(contender.database_url)
        wrk.load(contender.url, "new", WARM_UP_SECONDS, 64)  # the others have pushed it out of the caches meanwhile
    else:
        empty(contender.database_url)
    if work == "open":
        return offer(contender, amount * base_rate, seconds)
    return write(contender, work, int(amount), seconds)


def empty(database_url: str) -> None:
    """And nothing left to write back, so that nobody pays for the one before."""
    settled(database_url)
    query(database_url, "truncate appointments, appointment_versions")
    query(database_url, "checkpoint")


def as_filled(database_url: str) -> None:
    """Without what earlier rounds added, so that the table has the size it is named for."""
    settled(database_url)
    query(database_url, "delete from appointment_versions where external_id not like 'filled-%'")
    query(database_url, "delete from appointments where external_id not like 'filled-%'")
    query(database_url, "vacuum analyze appointments, appointment_versions")
    query(database_url, "checkpoint")


def write(contender: Contender, work: str, connections: int, seconds: float) -> Figures:
    before = settled(contender.database_url)
    statuses = contender.statuses() if work == "storm" else {}
    kind = "storm" if work == "storm" else "new"
    load = wrk.load(contender.url, kind, seconds, connections, organisations=ORGANISATIONS[work])
    assert load.lost == 0, load
    if work == "storm":
        counts = {status: count - statuses.get(status, 0) for status, count in contender.statuses().items()}
        assert {status for status, count in counts.items() if count} <= {"200", "409"}, counts
    else:
        assert load.refused == 0, load
        # wrk leaves when its time is up; what is under way then is written, but not counted.
        assert load.answers <= settled(contender.database_url) - before <= load.answers + connections, load
    assert_invariants(contender.database_url)
    memory = contender.memory_mb()
    return {"rate": load.rate, "p50": load.p50_ms, "p99": load.p99_ms, "max": load.max_ms, "memory_mb": memory}


def offer(contender: Contender, rate: float, seconds: float) -> Figures:
    latencies = open_loop.load(contender.url, rate, seconds)
    assert (latencies.refused, latencies.lost) == (0, 0), latencies
    assert accepted(contender.database_url) == latencies.answers
    assert_invariants(contender.database_url)
    return {"offered": rate, "p50": latencies.p50_ms, "p99": latencies.p99_ms, "max": latencies.max_ms}


def read(contender: Contender, work: str, amount: int, seconds: float) -> Figures:
    """`list`: the organisation of 1,000, over `amount` connections. `at`: one instant in an organisation
    of `amount`."""
    target = "/api/appointments?org=1000" if work == "list" else f"/api/appointments?org={amount}&at=1999-12-30"
    load = wrk.load(contender.url, "get", seconds, amount if work == "list" else 64, target=target)
    assert (load.refused, load.lost) == (0, 0), load
    return {"rate": load.rate, "p50": load.p50_ms, "p99": load.p99_ms, "max": load.max_ms}


def settled(database_url: str) -> int:
    """As `accepted`, once what wrk has left behind is through."""
    count, before = accepted(database_url), -1
    while count != before:
        time.sleep(SETTLE_SECONDS)
        count, before = accepted(database_url), count
    return count


def accepted(database_url: str) -> int:
    [[count]] = query(database_url, "select count(*) from appointment_versions")
    assert isinstance(count, int)
    return count


def soak(contender: Contender, seconds: float, parts: int = 10) -> list[float]:
    """Memory in MB after each part of a long load of new appointments."""
    empty(contender.database_url)
    memory = []
    for _ in range(parts):
        empty(contender.database_url)
        load = wrk.load(contender.url, "new", seconds / parts, 64)
        assert (load.refused, load.lost) == (0, 0), load
        memory.append(contender.memory_mb())
    return memory
