"""An appointment on its way to the database, and what becomes of it."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Any, Literal

from msgspec import Struct

from service.messages import Appointment
from service.problems import ProblemError
from service.uuid7 import uuid7


class Blocker(Struct, frozen=True):
    """The active appointment in the way."""

    external_id: str
    start: datetime
    end: datetime


class Verdict(Struct, frozen=True):
    """What became of an appointment, once it is committed. A conflict found by the constraint
    itself has no known blocker."""

    outcome: Literal["ok", "stale", "conflict"]
    blocker: Blocker | None = None


OK, STALE, CONFLICT = Verdict("ok"), Verdict("stale"), Verdict("conflict")


class Write:
    """An appointment that waits for its verdict. Once its client is gone, what becomes of it is ignored."""

    __slots__ = ("arguments", "busy_rounds", "future", "organisation", "queued_at")

    def __init__(self, appointment: Appointment) -> None:
        a = appointment
        self.organisation = a.org_id
        self.arguments = (a.org_id, a.id, a.start, a.end, a.created_at, a.updated_at, uuid7())
        self.future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self.queued_at = monotonic()
        self.busy_rounds = 0

    def settle(self, verdict: Verdict) -> None:
        if not self.future.done():
            self.future.set_result(verdict)

    def refuse(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def too_late() -> ProblemError:
    return ProblemError("OVERLOADED", "The writes before this one took too long; nothing was written.")


def settle(batch: Sequence[Write], rows: Sequence[Mapping[str, Any]]) -> list[Write]:
    """Gives each its verdict by its row of `sql/upsert_appointment.sql`; returns those that were busy."""
    busy = []
    for write, row in zip(batch, rows, strict=True):
        match row["verdict"]:
            case "ok":
                write.settle(OK)
            case "stale":
                write.settle(STALE)
            case "conflict":
                blocker = Blocker(row["blocker_external_id"], row["blocker_start"], row["blocker_end"])
                write.settle(Verdict("conflict", blocker))
            case _:
                busy.append(write)
    return busy
