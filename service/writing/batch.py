"""A batch of writes: how they are arranged into calls of the statement, and how its rows become verdicts."""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from random import getrandbits
from time import monotonic, time_ns
from typing import Any, Literal

from msgspec import Struct

from service.contract.body import Appointment
from service.database.buckets import bucket_of
from service.problems import Conflict

WRITES_MAX = 256  # of a batch
ARGUMENTS = 9  # of the statement
START = itemgetter(0)


class Verdict(Struct, frozen=True):
    """The committed outcome of a write. A conflict found by the exclusion constraint has no known blocker."""

    outcome: Literal["ok", "stale", "conflict"]
    blocker: Conflict | None = None


OK, STALE, CONFLICT = Verdict("ok"), Verdict("stale"), Verdict("conflict")


class Write:
    """An appointment that waits for its verdict, which is ignored if the client has disconnected. Writes of one
    `sequence` to one organisation are made in the order in which they were queued."""

    __slots__ = ("appointment", "arguments", "busy_rounds", "future", "organisation", "queued_at", "sequence")

    def __init__(
        self, appointment: Appointment, loop: asyncio.AbstractEventLoop, sequence: object | None = None
    ) -> None:
        self.appointment = a = appointment
        self.organisation = a.org_id
        self.arguments = (
            a.org_id,
            a.id,
            a.start,
            a.end,
            a.created_at,
            a.updated_at,
            a.cancelled,
            uuid7(),
            bucket_of(a.org_id),
        )
        self.future: asyncio.Future[Verdict] = loop.create_future()
        self.queued_at = monotonic()
        self.busy_rounds = 0
        self.sequence = sequence

    def settle(self, verdict: Verdict) -> None:
        if not self.future.done():
            self.future.set_result(verdict)

    def refuse(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def unsettled(writes: Iterable[Write]) -> list[Write]:
    return [write for write in writes if not write.future.done()]


def refuse(writes: Iterable[Write], error: Exception) -> None:
    for write in writes:
        write.refuse(error)


def uuid7() -> str:
    """A UUID of version 7 (RFC 9562, section 5.7) as 32 hexadecimal digits: milliseconds since 1970, then 74 random
    bits. Ordered by time, so that the primary key's index grows at its end. Generated here, because a PostgreSQL
    without OpenSSL opens /dev/urandom for each random one."""
    milliseconds = time_ns() // 1_000_000
    # Ids are not secret, and this generator needs no system call; each process seeds it from the system.
    return f"{milliseconds << 80 | 7 << 76 | getrandbits(12) << 64 | 2 << 62 | getrandbits(62):032x}"


class Run:
    """Writes that one call of `sql/upsert_appointment.sql` decides: no two of an organisation have the same id,
    overlap while active, or belong to one sequence.

    All are judged by the rows before the call, which equals some sequential order: first the refused writes, then the
    accepted ones. A write that moves or cancels an appointment frees its time for the next run, not for this one.
    """

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self._ids: set[tuple[str, str]] = set()
        self._intervals: dict[str, list[tuple[datetime, datetime]]] = {}  # of an organisation, in order
        self._sequences: set[tuple[str, object]] = set()  # each with the organisation

    def must_precede(self, write: Write) -> bool:
        """Whether the write touches one of this run, or has to follow it."""
        a = write.appointment
        if (a.org_id, a.id) in self._ids or (a.org_id, write.sequence) in self._sequences:
            return True
        intervals = self._intervals.get(a.org_id)
        if intervals is None or a.cancelled:
            return False
        started = bisect_left(intervals, a.end, key=START)  # the number of intervals that start before its end
        return started > 0 and intervals[started - 1][1] > a.start

    def add(self, write: Write) -> None:
        a = write.appointment
        self.writes.append(write)
        self._ids.add((a.org_id, a.id))
        if not a.cancelled:
            insort(self._intervals.setdefault(a.org_id, []), (a.start, a.end))
        if write.sequence is not None:
            self._sequences.add((a.org_id, write.sequence))

    def arguments(self) -> tuple[tuple[object, ...], ...]:
        return tuple(zip(*(write.arguments for write in self.writes), strict=True))


def arrange(batch: Iterable[Write]) -> list[Run]:
    """As few runs as possible, in which each write comes after those that it touches or must follow."""
    runs: list[Run] = []
    for write in batch:
        place = len(runs)
        while place and not runs[place - 1].must_precede(write):
            place -= 1
        if place == len(runs):
            runs.append(Run())
        runs[place].add(write)
    return runs


def settle(runs: Iterable[Run], rows: Sequence[Mapping[str, Any]]) -> list[Write]:
    """Gives each write its verdict from the rows of all runs; returns the writes whose lock was held elsewhere."""
    busy = []
    writes_of_row = (run.writes for run in runs for _ in run.writes)
    for writes, row in zip(writes_of_row, rows, strict=True):
        write, verdict = writes[row["place"] - 1], row["verdict"]
        if verdict == "busy":
            busy.append(write)
        elif verdict == "conflict":
            blocker = Conflict(row["blocker_external_id"], row["blocker_start"], row["blocker_end"])
            write.settle(Verdict("conflict", blocker))
        else:
            write.settle(OK if verdict == "ok" else STALE)
    return busy
