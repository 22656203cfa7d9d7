"""An appointment on its way to the database, and what becomes of it."""

import asyncio
from time import monotonic
from typing import Literal

from msgspec import Struct

from service.messages import Appointment
from service.problems import Conflict, ProblemError
from service.uuid7 import uuid7


class Verdict(Struct, frozen=True):
    """What became of an appointment, once it is committed. A conflict found by the constraint
    itself has no known blocker."""

    outcome: Literal["ok", "stale", "conflict"]
    blocker: Conflict | None = None


OK, STALE, CONFLICT = Verdict("ok"), Verdict("stale"), Verdict("conflict")


class Write:
    """An appointment that waits for its verdict. Once its client is gone, what becomes of it is ignored.
    Those of one `sequence` come, within their organisation, one after another as they were put."""

    __slots__ = ("appointment", "arguments", "busy_rounds", "future", "organisation", "queued_at", "sequence")

    def __init__(
        self, appointment: Appointment, loop: asyncio.AbstractEventLoop, sequence: object | None = None
    ) -> None:
        self.appointment = a = appointment
        self.organisation = a.org_id
        self.arguments = (a.org_id, a.id, a.start, a.end, a.created_at, a.updated_at, a.cancelled, uuid7())
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


def too_late() -> ProblemError:
    return ProblemError("OVERLOADED", "The writes before this one took too long; nothing was written.")
