"""How far a Citus cluster goes: `TEST_CITUS_URL=... python -m bench.citus_model`, on a machine that runs all its nodes.

Measures the CPU of the coordinator and of the workers, and the bytes between them, for calls of several sizes. Fits a
price of a call and a price of a row, and computes from them what a load needs that this machine cannot make.
"""

import asyncio
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from statistics import linear_regression
from typing import NamedTuple
from uuid import uuid4

import psutil

from service.database.buckets import bucket_of
from service.database.connection import Connection
from service.database.pool import open_database
from service.database.statements import PUT_APPOINTMENTS
from service.settings import Settings
from tests.cluster import distributed_database
from tests.databases import query

ROWS = (1, 8, 64, 256)  # of a call
CALLS = 200  # of each size
ROUNDS = 3
DAY = datetime(2020, 1, 1, tzinfo=UTC)
BUCKET = 0
ORGANISATIONS = [name for number in range(5_000) if bucket_of(name := f"o-{number}") == BUCKET]
WRITES_A_SECOND = 100_000
BACKEND = "select pg_backend_pid(), current_setting('port')"
WORKERS = "select nodename, nodeport from pg_dist_node where shouldhaveshards"
OCTETS = re.compile(r"bytes_(?:sent|received):(\d+)")


class Used(NamedTuple):
    """CPU in µs, and bytes between coordinator and workers."""

    coordinator: float
    workers: float
    octets: float


class Nodes:
    """The processes of a cluster on this machine."""

    def __init__(self, coordinator_url: str) -> None:
        name = coordinator_url.rpartition("/")[2]
        hosts = query(coordinator_url, WORKERS)
        urls = [f"postgresql://postgres@{host}:{port}/{name}" for host, port in hosts]
        self._coordinator = postmaster(coordinator_url)
        self._workers = [postmaster(url) for url in urls]
        self._ports = [port for _, port in hosts]

    def used(self) -> Used:
        sockets = " or ".join(f"sport = :{port}" for port in self._ports)
        shown = subprocess.run(["ss", "-tinH", sockets], stdout=subprocess.PIPE, text=True, check=True).stdout
        workers = sum(cpu(worker) for worker in self._workers)
        return Used(cpu(self._coordinator), workers, sum(map(int, OCTETS.findall(shown))))


def postmaster(url: str) -> psutil.Process:
    [[pid, _]] = query(url, BACKEND)
    parent = psutil.Process(int(str(pid))).parent()
    assert parent
    return parent


def cpu(server: psutil.Process) -> float:
    """In µs, of all its processes so far."""
    own = server.cpu_times()
    children = [child.cpu_times() for child in server.children(recursive=True)]
    ended = own.children_user + own.children_system
    return 1e6 * (ended + sum(times.user + times.system for times in (own, *children)))


class Load:
    """New appointments in organisations of one bucket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent = 0

    async def call(self, rows: int) -> None:
        numbers = range(self._sent, self._sent + rows)
        self._sent += rows
        organisations = [ORGANISATIONS[number % len(ORGANISATIONS)] for number in numbers]
        starts = [DAY + timedelta(hours=number // len(ORGANISATIONS)) for number in numbers]
        ends = [start + timedelta(minutes=30) for start in starts]
        ids = [f"a-{number}" for number in numbers]
        created, cancelled, keys = [DAY] * rows, [False] * rows, [uuid4() for _ in numbers]
        arguments = (organisations, ids, starts, ends, created, created, cancelled, keys, False)
        answers = await self._connection.fetch(PUT_APPOINTMENTS, BUCKET, *arguments)
        assert {answer["verdict"] for answer in answers} == {"ok"}


async def measure(url: str) -> list[tuple[int, Used]]:
    """For each size in each round, what a call used."""
    nodes, found = Nodes(url), []
    async with (
        open_database(Settings(database_url=url), distributed=True, connections_max=1) as database,
        database.connection() as connection,
    ):
        load = Load(connection)
        await load.call(ROWS[-1])
        for _ in range(ROUNDS):
            for rows in ROWS:
                before = nodes.used()
                for _ in range(CALLS):
                    await load.call(rows)
                difference = (after - first for after, first in zip(nodes.used(), before, strict=True))
                found.append((rows, Used(*(each / CALLS for each in difference))))
    return found


def model(found: Sequence[tuple[int, Used]]) -> str:
    """Two Markdown tables: the fitted prices, and what WRITES_A_SECOND need."""
    rows = [size for size, _ in found]
    lines = ["| | a call | a row |", "| --- | ---: | ---: |"]
    prices = {}
    for figure, unit in (("coordinator", "µs of CPU"), ("workers", "µs of CPU"), ("octets", "bytes")):
        row, call = prices[figure] = linear_regression(rows, [getattr(used, figure) for _, used in found])
        lines.append(f"| {figure} | {call:,.0f} {unit} | {row:,.1f} {unit} |")
    lines += ["", "| rows a call | calls/s | coordinator, cores | workers, cores | MB/s between them |"]
    lines += ["| ---: | ---: | ---: | ---: | ---: |"]
    for size in ROWS:
        calls = WRITES_A_SECOND / size
        coordinator, workers, octets = (calls * (call + row * size) / 1e6 for row, call in prices.values())
        lines.append(f"| {size} | {calls:,.0f} | {coordinator:.1f} | {workers:.1f} | {octets:,.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    with distributed_database() as created:
        print(model(asyncio.run(measure(created))))
