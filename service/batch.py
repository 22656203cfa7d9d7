"""A batch of writes on its way into the statement, and the statement's rows on their way back."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

from service.problems import Conflict
from service.verdict import OK, STALE, Verdict, Write

START = itemgetter(0)


class Run:
    """Writes that one call of `sql/upsert_appointment.sql` decides: no two of an organisation have the
    same id, or are active and overlap. All are judged by what is held before, so what becomes of them
    is that of writing one after another, first those that are refused: one that moves away, or is
    cancelled, frees its place for the next run, not for this one. Hence a run has one of a
    sequence of an organisation."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self._ids: set[tuple[str, str]] = set()
        self._intervals: dict[str, list[tuple[datetime, datetime]]] = {}  # of an organisation, in order
        self._sequences: set[tuple[str, object]] = set()  # each with the organisation

    def must_precede(self, write: Write) -> bool:
        a = write.appointment
        if (a.org_id, a.id) in self._ids or (a.org_id, write.sequence) in self._sequences:
            return True
        intervals = self._intervals.get(a.org_id)
        if intervals is None or a.cancelled:
            return False
        started = bisect_left(intervals, a.end, key=START)  # how many start before its end
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
    """Few runs, in which each write comes after those before it that it touches or must follow."""
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
    """Gives each write its verdict, by the rows of all runs; returns those that were busy."""
    busy = []
    writes_of_row = (run.writes for run in runs for _ in run.writes)
    for writes, row in zip(writes_of_row, rows, strict=True):
        write = writes[row["place"] - 1]
        match row["verdict"]:
            case "ok":
                write.settle(OK)
            case "stale":
                write.settle(STALE)
            case "conflict":
                blocker = Conflict(row["blocker_external_id"], row["blocker_start"], row["blocker_end"])
                write.settle(Verdict("conflict", blocker))
            case _:
                busy.append(write)
    return busy
