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
    """Writes that one call of a statement decides: no two of an organisation have the same id or overlap while active.

    All are judged by the rows before the call, which equals some sequential order: first the refused writes, then the
    accepted ones. A write that moves or cancels an appointment frees its time for the next run, not for this one.
    """

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self._ids: set[tuple[str, str]] = set()
        self._intervals: dict[str, list[tuple[datetime, datetime]]] = {}  # of an organisation, in order
        self._sequences: set[tuple[str, object]] = set()  # each with the organisation

    def touches(self, write: Write) -> bool:
        a = write.appointment
        if (a.org_id, a.id) in self._ids:
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

    def precedes(self, write: Write) -> bool:
        """Whether one of its sequence is in this run."""
        return (write.organisation, write.sequence) in self._sequences

    def in_order(self) -> bool:
        """Whether it has writes of a sequence."""
        return bool(self._sequences)

    def arguments(self) -> tuple[tuple[object, ...], ...]:
        return tuple(zip(*(write.arguments for write in self.writes), strict=True))


def arrange(batch: Iterable[Write], *, ordered_calls: bool = False) -> list[Run]:
    """As few runs as possible, in which each write comes after those that it touches, and after those of its sequence;
    in the same run as these if calls keep the order."""
    runs: list[Run] = []
    for write in batch:
        place = len(runs)
        while place and not runs[place - 1].touches(write):
            if runs[place - 1].precedes(write):
                place -= ordered_calls
                break
            place -= 1
        if place == len(runs):
            runs.append(Run())
        runs[place].add(write)
    return runs


def settle(runs: Iterable[Run], rows: Sequence[Mapping[str, Any]]) -> list[Write]:
    """Gives each write its verdict from the rows of all runs, except `later`; returns the writes whose lock was held
    elsewhere."""
    busy = []
    writes_of_row = (run.writes for run in runs for _ in run.writes)
    for writes, row in zip(writes_of_row, rows, strict=True):
        write, verdict = writes[row["place"] - 1], row["verdict"]
        if verdict == "busy":
            busy.append(write)
        elif verdict == "later":
            continue
        elif verdict == "conflict":
            blocker = Conflict(row["blocker_external_id"], row["blocker_start"], row["blocker_end"])
            write.settle(Verdict("conflict", blocker))
        else:
            write.settle(OK if verdict == "ok" else STALE)
    return busy
