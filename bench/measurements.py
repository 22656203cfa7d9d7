"""The measurements, and the checks of the answers and of the rows they wrote."""

import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.request import urlopen

from bench import citus_commands, floor, open_loop, wrk
from bench.contenders import Contender
from bench.stage import SHORT_HISTORY, SLOW_WRITES_WAITING_MAX, WARM_UP_SECONDS, Stage
from tests.databases import assert_invariants, query

Figures = Mapping[str, float]


class Measurement(NamedTuple):
    """A contender and its work. `amount` is the number of connections, with these exceptions: for `open` the
    offered load as a share of the rate of W1, for `flood` the offered load as a multiple of the contender's
    capacity, for `at`, `changes` and `stream` the size of the list or history, for `as of` the number of
    versions per appointment."""

    contender: str
    work: str
    amount: float

    def __str__(self) -> str:
        return f"{self.contender}: {self.work} {self.amount:g}"


SETTLE_SECONDS = 0.3  # longer than any commit takes, including the slowed down ones
BUSY = "select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'"
HOT_ORGANISATIONS = 5
ORGANISATIONS = {"new": 1000, "one": 1, "hot": HOT_ORGANISATIONS, "storm": 1, "batch": 100}
READS = ("reads", "history", "alone", "standby", "citus reads")  # contenders
LONG_HISTORY = "long 0"
READS_CONNECTIONS = 4
FLOOD_CONNECTIONS = 1000
CROWD_SECONDS = 3  # within a single second thousands of connections would do little more than connect
ROW_MARKER = b'"version"'  # occurs once per row of a list
# As a replica, so that the foreign key is not checked: there is no index for that check, as the service never deletes.
DELETE_ADDED = """
    set session_replication_role = replica;
    delete from appointment_versions where external_id not like 'filled-%';
    delete from appointments where external_id not like 'filled-%'"""


def measure(stage: Stage, measurement: Measurement, base_rate: float) -> Figures:
    """The rate per second and latencies in ms. Raises AssertionError if an answer or a row is wrong."""
    name, work, amount = measurement
    seconds = stage.size.seconds
    if name in ("pgbench", "psql"):
        return {"rate": floor_rate(stage, measurement)}
    contender = stage.contender(name)
    if name in READS:
        return stream(contender, int(amount)) if work == "stream" else read(contender, work, int(amount), seconds)
    if name.startswith("table "):
        remove_added(contender.database_url)
        wrk.load(contender.url, "new", WARM_UP_SECONDS, 64)  # other measurements have evicted the table from caches
        accepted_once_idle(contender.database_url)
    else:
        empty(contender.database_url)
    if work == "open":
        return offer(contender, amount * base_rate, seconds)
    if work == "flood":
        return flood(contender, amount, seconds)
    if work == "crowd":
        return crowd(contender, int(amount))
    return write(contender, work, int(amount), seconds)


def floor_rate(stage: Stage, measurement: Measurement) -> float:
    """The rate of PostgreSQL's own programs, pgbench and psql."""
    name, work, amount = measurement
    if name == "psql":
        return floor.copy_rate(stage.contender("history").database_url, LONG_HISTORY, int(amount))
    if work == "list":
        return floor.list_rate(stage.contender("reads").database_url, int(amount), stage.size.seconds)
    empty(stage.floor())
    rate = floor.upsert_rate(stage.floor(), int(amount), stage.size.seconds)
    assert_invariants(stage.floor())
    return rate


def empty(database_url: str) -> None:
    """Also writes all dirty pages, so that no measurement pays for the one before it."""
    accepted_once_idle(database_url)
    query(database_url, "truncate appointments, appointment_versions")
    query(database_url, "checkpoint")


def remove_added(database_url: str) -> None:
    """Deletes the rows of earlier rounds, so that the table has its nominal size again."""
    accepted_once_idle(database_url)
    query(database_url, DELETE_ADDED)
    query(database_url, "vacuum analyze appointments, appointment_versions")
    query(database_url, "checkpoint")


def write(contender: Contender, work: str, connections: int, seconds: float) -> Figures:
    before = accepted(contender.database_url)
    statuses = contender.statuses() if work == "storm" else {}
    kind, items, target = "new", 1, wrk.POST_TARGET
    if work == "storm":
        kind = work
    elif work == "batch":
        kind, items, target = work, wrk.BATCH_ITEMS, wrk.POST_TARGET + "/batch"
    load = wrk.load(contender.url, kind, seconds, connections, organisations=ORGANISATIONS[work], target=target)
    assert load.lost == 0, load
    if work == "storm":
        counts = {status: count - statuses.get(status, 0) for status, count in contender.statuses().items()}
        assert {status for status, count in counts.items() if count} <= {"200", "409"}, counts
    else:
        assert load.refused == 0, load
        # When wrk's time is up, requests in flight are still written, but not counted as answers.
        written = accepted_once_idle(contender.database_url) - before
        assert load.answers * items <= written <= (load.answers + connections) * items, load
    assert_invariants(contender.database_url)
    memory = contender.memory_mb()
    return {**latencies(load), "rate": load.rate * items, "memory_mb": memory}


def latencies(load: wrk.Load) -> Figures:
    return {"rate": load.rate, "p50": load.p50_ms, "p99": load.p99_ms, "max": load.max_ms}


def offer(contender: Contender, rate: float, seconds: float) -> Figures:
    found = open_loop.load(contender.url, rate, seconds)
    assert (found.refused, found.lost) == (0, 0), found
    assert accepted(contender.database_url) == found.answers
    assert_invariants(contender.database_url)
    return {"offered": rate, "p50": found.p50_ms, "p99": found.p99_ms, "max": found.max_ms}


def flood(contender: Contender, times: float, seconds: float) -> Figures:
    """Rate and latencies are those of accepted writes; `growth_mb` is that of the process."""
    capacity = wrk.load(contender.url, "new", seconds, SLOW_WRITES_WAITING_MAX).rate
    before, memory_before = accepted_once_idle(contender.database_url), contender.memory_mb()
    found = open_loop.load(contender.url, times * capacity, seconds, FLOOD_CONNECTIONS)
    growth = contender.memory_mb() - memory_before
    assert found.lost == 0, found
    taken = found.answers - found.refused
    assert accepted(contender.database_url) == before + taken
    assert_invariants(contender.database_url)
    figures = {"offered": times * capacity, "p50": found.p50_ms, "p99": found.p99_ms, "max": found.max_ms}
    return figures | {"rate": taken / seconds, "refused_p50": found.refused_p50_ms, "growth_mb": growth}


def crowd(contender: Contender, connections: int) -> Figures:
    """More connections than there is room for: some requests are refused, and their clients send again at once.
    `rate` counts accepted writes."""
    before = accepted(contender.database_url)
    load = wrk.load(contender.url, "new", CROWD_SECONDS, connections)
    assert load.lost == 0, load
    taken = load.answers - load.refused
    assert taken <= accepted_once_idle(contender.database_url) - before <= taken + connections, load
    assert_invariants(contender.database_url)
    return {"rate": taken / load.seconds, "refused_rate": load.refused / load.seconds}


def read(contender: Contender, work: str, amount: int, seconds: float) -> Figures:
    """`list`: an organisation of 1,000 appointments, over `amount` connections. `at`: one instant in an
    organisation of `amount` appointments. `as of`: 1,000 appointments with `amount` versions each, at an instant
    in the middle of the versions. `changes`: the last 1,000 of `amount` changes. `calls` and `commands`: their numbers
    on Citus."""
    if work in ("calls", "commands"):
        calls = work == "calls"
        return {"count": citus_commands.CALLS_IN_ALL if calls else citus_commands.sent(contender.database_url)}
    connections = amount if work == "list" else 64 if work == "at" else READS_CONNECTIONS
    match work:
        case "list":
            target = "/api/appointments?org=1000"
        case "at":
            target = f"/api/appointments?org={amount}&at=1999-12-30"
        case "as of":
            target = f"/api/appointments?org=versions+{amount}+0&asOf=2000-01-01T00:00:50&limit=1000"
        case _:
            organisation = LONG_HISTORY if amount > SHORT_HISTORY else "short 0"
            before = """select change_cursor(sequence_number, received_at, appointment_id) from appointment_versions
                where org_id = %s order by sequence_number desc offset 1000 limit 1"""
            [[after]] = query(contender.database_url, before, organisation) or [("0",)]
            target = f"/api/appointments/changes?org={organisation.replace(' ', '+')}&after={after}"
    if work in ("as of", "changes"):
        with urlopen(contender.url + target) as response:
            assert response.read().count(b'"externalId"') == 1000, target
    load = wrk.load(contender.url, "get", seconds, connections, target=target)
    assert (load.refused, load.lost) == (0, 0), load
    return latencies(load)


def stream(contender: Contender, rows: int) -> Figures:
    """The whole list of the largest organisation: rows per second, and the growth of the process."""
    before, peak, found, started = contender.memory_mb(), 0.0, 0, time.perf_counter()
    with urlopen(f"{contender.url}/api/appointments?org={LONG_HISTORY.replace(' ', '+')}") as response:
        ending = b""
        while chunk := response.read(1 << 20):
            found += (ending + chunk).count(ROW_MARKER)
            ending = chunk[1 - len(ROW_MARKER) :]
            peak = max(peak, contender.memory_mb())
    seconds = time.perf_counter() - started
    assert (found, ending[-1:]) == (rows, b"]")
    return {"rate": rows / seconds, "growth_mb": peak - before}


def accepted_once_idle(database_url: str) -> int:
    """The number of accepted writes, once the requests that wrk left in flight are done."""
    count, before = accepted(database_url), -1
    while count != before or query(database_url, BUSY):
        time.sleep(SETTLE_SECONDS)
        count, before = accepted(database_url), count
    return count


def accepted(database_url: str) -> int:
    """The number of accepted writes."""
    [[count]] = query(database_url, "select count(*) from appointment_versions")
    assert isinstance(count, int)
    return count


def soak(contender: Contender, seconds: float, parts: int = 10) -> list[float]:
    """The memory in MB after each part of a long load of new appointments."""
    empty(contender.database_url)
    memory = []
    for _ in range(parts):
        empty(contender.database_url)
        load = wrk.load(contender.url, "new", seconds / parts, 64)
        assert (load.refused, load.lost) == (0, 0), load
        memory.append(contender.memory_mb())
    return memory
