"""The targets: which measurements are compared, and the ratio to be reached."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from bench.measurements import Figures, Measurement
from bench.sizes import Size
from bench.stage import LONG_VERSIONS, MANY_VERSIONS, SHORT_HISTORY
from bench.wrk import BATCH_ITEMS
from tests.cluster import COORDINATOR_URL

Round = dict[Measurement, Figures]


class Target(NamedTuple):
    """Compares `figure` of the measurement `of` with the best one among `against`."""

    name: str
    work: str
    figure: str
    of: Measurement
    against: Sequence[Measurement]
    bound: float
    at_least: bool = True

    def ratio(self, rounds: Sequence[Round]) -> float:
        """The median of the ratios of each round, because conditions vary least within a round."""
        best: Callable[..., float] = max if self.at_least else min
        return median(
            rounds_[self.of][self.figure] / best(rounds_[other][self.figure] for other in self.against)
            for rounds_ in rounds
        )

    def reached(self, ratio: float) -> bool:
        return ratio >= self.bound if self.at_least else ratio <= self.bound


def targets(size: Size) -> list[Target]:
    def new(contender: str, connections: int = 64) -> Measurement:
        return Measurement(contender, "new", connections)

    service, connections_max, tables = new("service"), max(size.connections), size.tables
    small, large = new(f"table {tables[0]}"), new(f"table {tables[-1]}")
    pgbench = [new("pgbench", clients) for clients in size.pgbench_clients]
    lists = [Measurement("pgbench", "list", clients) for clients in size.pgbench_clients]
    storm, half = Measurement("service", "storm", 256), Measurement("service", "open", 0.5)
    pool = half._replace(contender="pool")
    hot = Measurement("service", "hot", 64)
    small_list, large_list = (Measurement("reads", "at", rows) for rows in size.lists)
    stream = Measurement("history", "stream", size.history)
    one_version, many_versions = (Measurement("history", "as of", versions) for versions in (1, MANY_VERSIONS))
    short_history, long_history = (
        Measurement("history", "changes", rows) for rows in (SHORT_HISTORY, LONG_VERSIONS * size.history)
    )
    batch = Measurement("service", "batch", 8)
    crowd = Measurement("service", "crowd", 4 * connections_max)
    alone, standby = (Measurement(name, "list", 64) for name in ("alone", "standby"))
    on_citus = [
        Target(
            "C1", "256 connections on Citus against one server", "rate", new("citus", 256), [new("service", 256)], 0.35
        ),
        Target(
            "C2",
            "commands to the workers for calls of each statement",
            "count",
            Measurement("citus reads", "commands", 1),
            [Measurement("citus reads", "calls", 1)],
            1,
            False,
        ),
        Target(
            "C3",
            "a list of 1,000 on Citus against one server",
            "rate",
            Measurement("citus reads", "list", 64),
            [Measurement("reads", "list", 64)],
            0.5,
        ),
    ]
    at_capacity, flood = (Measurement("slow", "flood", times) for times in (1, 10))
    return [
        Target("W1", "new appointments, 64 connections, against pgbench", "rate", service, pgbench, 1.5),
        Target("W2", "the same against rival b", "rate", service, [new("pool")], 3),
        Target("W2", "the same against rival c", "rate", service, [new("orm")], 8),
        Target("W3", "one organisation against 1,000", "rate", service._replace(work="one"), [service], 0.8),
        Target("W4", "storm over 256 connections against W1", "rate", storm, [service], 1.0),
        Target("W4", "the storm's p99 against W1's", "p99", storm, [service], 3, False),
        Target(
            "W5", f"{connections_max:,} connections against 64", "rate", new("service", connections_max), [service], 0.8
        ),
        Target("W6", f"a table of {tables[-1]:,} against {tables[0]:,}", "rate", large, [small], 0.8),
        Target("W7", "p99 at half of W1's rate (open loop) against rival b", "p99", half, [pool], 0.5, False),
        Target("W8", "one connection against rival b", "rate", new("service", 1), [new("pool", 1)], 1.0),
        Target("W9", "two processes against one", "rate", new("workers"), [service], 1.0),
        Target("W9", "the same on 5 organisations", "rate", hot._replace(contender="workers"), [hot], 1.0),
        Target("R1", "a list of 1,000 against pgbench", "rate", Measurement("reads", "list", 64), lists, 0.8),
        Target(
            "R2",
            f"p50 of a list at an instant, {large_list.amount:,} appointments against {small_list.amount}",
            "p50",
            large_list,
            [small_list],
            1.3,
            False,
        ),
        Target(
            "H1",
            f"batches of {BATCH_ITEMS} over 100 organisations against single requests",
            "rate",
            batch,
            [service],
            2.5,
        ),
        Target(
            "H2", f"a list of {size.history:,} against psql", "rate", stream, [stream._replace(contender="psql")], 0.5
        ),
        Target(
            "H3",
            f"p50 of a list of 1,000 as of an instant, {MANY_VERSIONS} versions each against 1",
            "p50",
            many_versions,
            [one_version],
            2,
            False,
        ),
        Target(
            "H4",
            f"p50 of 1,000 changes, a history of {long_history.amount:,} against {short_history.amount:,}",
            "p50",
            long_history,
            [short_history],
            1.3,
            False,
        ),
        Target(
            "O1",
            "slow commits: accepted at ten times the capacity against at capacity",
            "rate",
            flood,
            [at_capacity],
            0.9,
        ),
        Target("O1", "p99 of the accepted writes", "p99", flood, [at_capacity], 3, False),
        Target(
            "O2",
            f"accepted from {4 * connections_max:,} connections that retry at once against 64",
            "rate",
            crowd,
            [service],
            0.9,
        ),
        Target(
            "S2",
            "the writer for distributed tables, on one server, against the lane",
            "rate",
            new("buckets"),
            [service],
            0.4,
        ),
        Target("P1", "a list of 1,000 with a standby against without", "rate", standby, [alone], 0.8),
        *(on_citus if COORDINATOR_URL else []),
    ]


def measurements(size: Size, selected: Sequence[Target], everything: bool) -> list[Measurement]:
    """The measurements of the targets and, for `everything`, of the charts. Compared ones run one after another."""
    found: dict[Measurement, None] = {}
    for target in selected:
        found |= dict.fromkeys([target.of, *target.against])
    if everything:
        for connections in size.connections:
            rivals = ("service", "pool", "orm") if connections <= 256 else ("service",)
            found |= dict.fromkeys(Measurement(name, "new", connections) for name in rivals)
        found |= dict.fromkeys(Measurement(f"table {rows}", "new", 64) for rows in size.tables)
        found |= dict.fromkeys(Measurement(name, "open", load) for load in size.loads for name in ("service", "pool"))
    return list(found)
