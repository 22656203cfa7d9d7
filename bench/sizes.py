"""The sizes of a benchmark run."""

from typing import NamedTuple


class Size(NamedTuple):
    """Durations and amounts of one run.

    `tunings` are the (pool size, processes) that each rival is tried with. `tables` are row counts. `lists` are
    the sizes of the organisations that are listed at one instant. `history` is the number of appointments of the
    organisation with the longest history. `loads` are shares of the service's rate, offered in an open loop.
    """

    seconds: float
    rounds: int
    soak_seconds: float
    connections: tuple[int, ...]
    pgbench_clients: tuple[int, ...]
    tunings: tuple[tuple[int, int], ...]
    tables: tuple[int, ...]
    lists: tuple[int, int]
    history: int
    loads: tuple[float, ...]


SIZES = {
    "full": Size(
        seconds=3,
        rounds=3,
        soak_seconds=300,
        connections=(1, 16, 64, 256, 1000),
        pgbench_clients=(8, 16, 32),
        tunings=((8, 1), (16, 1), (8, 2), (16, 2)),
        tables=(10_000, 100_000, 1_000_000, 5_000_000),
        lists=(100, 100_000),
        history=1_000_000,
        loads=(0.25, 0.5, 0.75, 0.9),
    ),
    "quick": Size(
        seconds=1,
        rounds=2,
        soak_seconds=0,
        connections=(1, 64, 1000),
        pgbench_clients=(16, 32),
        tunings=((8, 2),),
        tables=(1000, 20_000),
        lists=(100, 20_000),
        history=20_000,
        loads=(0.5,),
    ),
    "tiny": Size(
        seconds=1,
        rounds=1,
        soak_seconds=0,
        connections=(1, 64),
        pgbench_clients=(8,),
        tunings=((8, 1),),
        tables=(1000, 2000),
        lists=(100, 2000),
        history=4000,
        loads=(0.5,),
    ),
}
