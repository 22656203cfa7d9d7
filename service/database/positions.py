"""Positions of the primary in its write-ahead log, sampled: they date the position of a standby.

A standby that has replayed the position that the primary had at some moment has every change that was visible at that
moment. That needs no clock but this process's own, and an idle primary, a halted replay and a standby that is cut off
from its primary need no rules of their own.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Mapping
from math import inf
from time import monotonic
from typing import Any

import structlog

from service.database.connection import Connection, open_connection
from service.database.statements import FLUSHED_POSITION, Statement
from service.settings import Settings
from service.supervisor import pause_after

log = structlog.get_logger()

POLL_SECONDS = 0.1
ANSWER_SECONDS_MAX = 1  # of a server that is polled; it counts as halted then
SAMPLES_MAX = 1_000  # within the limit of the lag
BACK_OFF_SECONDS = (0.1, 0.5, 1, 2)  # before a server is connected to again; the last one from then on
STEADY_SECONDS = 10  # a connection that lived this long is replaced after the shortest pause

Row = Mapping[str, Any]


class PrimaryPositions:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seconds_max = settings.read_lag_ms_max / 1e3
        self._log: tuple[object, ...] = ()
        self._samples: list[tuple[int, float]] = []  # position, a moment before it was asked for; both ascend

    async def sample(self) -> None:
        """Runs until it is cancelled."""

        async def connected() -> None:
            async with open_connection(self._settings, lock_ms_max=0, on_close=lambda: None) as connection:
                await poll(connection, FLUSHED_POSITION, self.add)

        await keep_trying(connected, lambda cause: log.warning("position of the primary unknown", cause=cause))

    def add(self, row: Row, asked_at: float) -> None:
        if log_of(row) != self._log or (self._samples and row["position"] < self._samples[-1][0]):
            self._log, self._samples = log_of(row), []  # another primary, or a restored one
        samples = self._samples
        if len(samples) > 1 and samples[-1][1] - samples[-2][1] < self._seconds_max / SAMPLES_MAX:
            samples.pop()  # close to the one before
        samples.append((row["position"], asked_at))
        # One sample older than the limit is enough to tell that a standby is older, too.
        while len(samples) > 1 and samples[1][1] < asked_at - self._seconds_max:
            del samples[0]

    def moment_of(self, row: Row) -> tuple[float, str]:
        """A moment up to which a standby with this position has every change, or -inf. If it is long ago, the text says
        why."""
        if row["position"] is None:
            return -inf, "it is not a standby"
        if not self._samples:
            return -inf, "the position of the primary is unknown"
        if log_of(row) != self._log:
            return -inf, "it belongs to another cluster, database or timeline"
        place = bisect_right(self._samples, (row["position"], inf))
        return self._samples[place - 1][1] if place else -inf, "it is too far behind"

    def lacks(self, row: Row, seen_at: float) -> bool:
        """Whether the primary had not got as far as this position some time after it had been seen on a standby: it has
        been restored from a copy, which a timeline does not show, and the standby has another history."""
        position, asked_at = self._samples[-1] if self._samples else (inf, -inf)
        return log_of(row) == self._log and seen_at < asked_at and position < row["position"]


def log_of(row: Row) -> tuple[object, ...]:
    """Positions can be compared within one log. The timeline belongs to it: after a fail-over, a standby that still
    follows the old primary may have what the new one never had."""
    return row["cluster"], row["database"], row["timeline"]


async def poll(connection: Connection, statement: Statement, see: Callable[[Row, float], None]) -> None:
    """Runs until the connection fails, or does not answer in time."""
    while True:
        asked_at = monotonic()
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            [row] = await connection.fetch(statement)
        see(row, asked_at)
        await asyncio.sleep(POLL_SECONDS)


async def keep_trying(work: Callable[[], Coroutine[None, None, None]], failed: Callable[[str], object]) -> None:
    """Runs the work again and again, with back-off; `failed` is called with the name of each error."""
    failures = 0
    while True:
        began = monotonic()
        try:
            await work()
        except Exception as error:  # after any failure a new connection is tried
            failed(type(error).__name__)
        failures = 1 if monotonic() - began > STEADY_SECONDS else failures + 1
        await asyncio.sleep(pause_after(failures, BACK_OFF_SECONDS))
