"""For writes that must wait for their organisation's lock.

They come here if another process was at the organisation in too many rounds (so that nobody starves:
PostgreSQL lets no try for a lock pass one who waits), or if their batch was refused as a whole, as by
a race with a writer that takes no lock. A transaction holds the lock of one organisation only, so no
two can wait for each other; and it is none of a lane's, which others need.
"""

import asyncio
from collections.abc import Iterable

import asyncpg

from service import metrics
from service.database import Database
from service.problems import ProblemError
from service.statements import LOCK_ORGANISATION, UPSERT_APPOINTMENT
from service.verdict import CONFLICT, Write, settle, too_late


class Patience:
    """One transaction at a time for an organisation, with all that has gathered meanwhile."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gathered: dict[str, list[Write]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def joined_by(self, write: Write) -> bool:
        """Whether the organisation is waited for already; then the write is taken."""
        gathered = self._gathered.get(write.organisation)
        if gathered is not None:
            gathered.append(write)
        return gathered is not None

    def put(self, writes: Iterable[Write]) -> None:
        for write in writes:
            if not self.joined_by(write):
                self._gathered[write.organisation] = [write]
                task = asyncio.create_task(self._work(write.organisation))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    def expire(self, queued_before: float) -> None:
        for gathered in self._gathered.values():
            for write in gathered:
                if write.queued_at < queued_before:
                    write.refuse(too_late())

    async def _work(self, organisation: str) -> None:
        try:
            while batch := [write for write in self._gathered[organisation] if not write.future.done()]:
                self._gathered[organisation] = []
                await self._decide(organisation, batch)
        finally:
            del self._gathered[organisation]

    async def _decide(self, organisation: str, batch: list[Write]) -> None:
        metrics.PATIENT_BATCHES.inc()
        try:
            async with self._database.connection() as connection, connection.transaction():
                await connection.fetch(LOCK_ORGANISATION, organisation)
                rows = await connection.fetch_many(UPSERT_APPOINTMENT, [write.arguments for write in batch])
        except ProblemError as error:
            for write in batch:
                write.refuse(error)
        except Exception as error:
            if len(batch) > 1:  # one by one, so that an error is only its own
                for write in batch:
                    await self._decide(organisation, [write])
            elif isinstance(error, asyncpg.ExclusionViolationError):  # by a writer that takes no lock
                batch[0].settle(CONFLICT)
            else:
                batch[0].refuse(error)
        else:
            settle(batch, rows)  # the lock is held, so none is busy
