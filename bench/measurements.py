"""What is measured, by name, and the check of what it left behind."""

import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.request import urlopen

from bench import floor, open_loop, wrk
from bench.contenders import Contender
from bench.stage import SHORT_HISTORY, SLOW_ROOM, WARM_UP_SECONDS, Stage
from tests.databases import assert_invariants, query

Figures = Mapping[str, float]


class Measurement(NamedTuple):
    """`contender` does `work`; `amount` is the number of connections, for `open` the requests a second
    as a share of the rate at W1, for `flood` as a multiple of what the contender can take, for `at` the
    appointments of the organisation."""

    contender: str
    work: str
    amount: float

    def __str__(self) -> str:
        return f"{self.contender}: {self.work} {self.amount:g}"


SETTLE_SECONDS = 0.3  # longer than any commit takes
BUSY = "select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'"
HOT_ORGANISATIONS = 5
ORGANISATIONS = {"new": 1000, "one": 1, "hot": HOT_ORGANISATIONS, "storm": 1, "batch": 100}
LONG = "long 0"
READS_CONNECTIONS = 4
FLOOD_CONNECTIONS = 1000
CROWD_SECONDS = 3  # in one second thousands of connections do little but begin
ONE_A_ROW = b'"version"'
# Without the look for versions, which the foreign key has no index for: the product deletes nothing.
DELETE_ADDED = """
    set session_replication_role = replica;
    delete from appointment_versions where external_id not like 'filled-%';
    delete from appointments where external_id not like 'filled-%'"""


def measure(stage: Stage, measurement: Measurement, base_rate: float) -> Figures:
    """`rate` a second, and latencies in ms. Raises AssertionError if an answer or a row is not right."""
    name, work, amount = measurement
    seconds = stage.size.seconds
    if name in ("pgbench", "psql"):
        return {"rate": floor_rate(stage, measurement)}
    contender = stage.contender(name)
    if name in ("reads", "history"):
        return stream(contender, int(amount)) if work == "stream" else read(contender, work, int(amount), seconds)
    if name.startswith("table "):
        as_filled(contender.database_url)
        wrk.load(contender.url, "new", WARM_UP_SECONDS, 64)  # the others have pushed it out of the caches meanwhile
        settled(contender.database_url)
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
    """Of PostgreSQL's own programs."""
    name, work, amount = measurement
    if name == "psql":
        return floor.copy_rate(stage.contender("history").database_url, LONG, int(amount))
    if work == "list":
        return floor.list_rate(stage.contender("reads").database_url, int(amount), stage.size.seconds)
    empty(stage.floor())
    rate = floor.upsert_rate(stage.floor(), int(amount), stage.size.seconds)
    assert_invariants(stage.floor())
    return rate


def empty(database_url: str) -> None:
    """And nothing left to write back, so that nobody pays for the one before."""
    settled(database_url)
    query(database_url, "truncate appointments, appointment_versions")
    query(database_url, "checkpoint")


def as_filled(database_url: str) -> None:
    """Without what earlier rounds added, so that the table has the size it is named for."""
    settled(database_url)
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
        # wrk leaves when its time is up; what is under way then is written, but not counted.
        written = settled(contender.database_url) - before
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
    """`rate`, `p99` and so on are of those accepted; `growth` of the process, in MB."""
    capacity = wrk.load(contender.url, "new", seconds, SLOW_ROOM).rate
    before, was = settled(contender.database_url), contender.memory_mb()
    found = open_loop.load(contender.url, times * capacity, seconds, FLOOD_CONNECTIONS)
    growth = contender.memory_mb() - was
    assert found.lost == 0, found
    taken = found.answers - found.refused
    assert accepted(contender.database_url) == before + taken
    assert_invariants(contender.database_url)
    figures = {"offered": times * capacity, "p50": found.p50_ms, "p99": found.p99_ms, "max": found.max_ms}
    return figures | {"rate": taken / seconds, "refused_p50": found.refused_p50_ms, "growth_mb": growth}


def crowd(contender: Contender, connections: int) -> Figures:
    """Of so many that some are refused, and come again at once; `rate` is that of those accepted."""
    before = accepted(contender.database_url)
    load = wrk.load(contender.url, "new", CROWD_SECONDS, connections)
    assert load.lost == 0, load
    taken = load.answers - load.refused
    assert taken <= settled(contender.database_url) - before <= taken + connections, load
    assert_invariants(contender.database_url)
    return {"rate": taken / load.seconds, "refused_rate": load.refused / load.seconds}


def read(contender: Contender, work: str, amount: int, seconds: float) -> Figures:
    """`list`: the organisation of 1,000, over `amount` connections. `at`: one instant in an organisation
    of `amount`. `as of`: the organisation of 1,000 with `amount` versions each, in the middle of them.
    `changes`: the last 1,000 of `amount`."""
    connections = amount if work == "list" else 64 if work == "at" else READS_CONNECTIONS
    match work:
        case "list":
            target = "/api/appointments?org=1000"
        case "at":
            target = f"/api/appointments?org={amount}&at=1999-12-30"
        case "as of":
            target = f"/api/appointments?org=versions+{amount}+0&asOf=2000-01-01T00:00:50&limit=1000"
        case _:
            organisation = LONG if amount > SHORT_HISTORY else "short 0"
            last = "select max(sequence_number) - 1000 from appointment_versions where org_id = %s"
            [[after]] = query(contender.database_url, last, organisation)
            target = f"/api/appointments/changes?org={organisation.replace(' ', '+')}&after={after}"
    if work in ("as of", "changes"):
        with urlopen(contender.url + target) as response:
            assert response.read().count(b'"externalId"') == 1000, target
    load = wrk.load(contender.url, "get", seconds, connections, target=target)
    assert (load.refused, load.lost) == (0, 0), load
    return latencies(load)


def stream(contender: Contender, rows: int) -> Figures:
    """The whole list of the longest organisation: rows a second, and how much the process grows."""
    before, peak, found, started = contender.memory_mb(), 0.0, 0, time.perf_counter()
    with urlopen(f"{contender.url}/api/appointments?org={LONG.replace(' ', '+')}") as response:
        ending = b""
        while chunk := response.read(1 << 20):
            found += (ending + chunk).count(ONE_A_ROW)
            ending = chunk[1 - len(ONE_A_ROW) :]
            peak = max(peak, contender.memory_mb())
    seconds = time.perf_counter() - started
    assert (found, ending[-1:]) == (rows, b"]")
    return {"rate": rows / seconds, "growth_mb": peak - before}


def settled(database_url: str) -> int:
    """As `accepted`, once what wrk has left behind is through."""
    count, before = accepted(database_url), -1
    while count != before or query(database_url, BUSY):
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
