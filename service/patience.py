"""For writes that must wait for their organisation's lock.

They come here if another process was at the organisation in too many rounds (so that nobody starves:
PostgreSQL lets no try for a lock pass one who waits), or if their batch was refused as a whole, as by
a race with a writer that takes no lock. What comes for the same organisations meanwhile follows them,
so that processes that want the same organisations take turns, batch by batch.

A batch here is one pipeline and one commit too. Its first call waits for the locks, in the order of
the organisations' names, so that no two batches wait for each other (but for names with one hash, whom
the limit of the wait parts). A batch that fails, or whose locks do not come in time, is narrowed down:
to single organisations, each from then on by itself, and of these, if they fail, to single writes.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from itertools import groupby
from operator import attrgetter
from time import monotonic

import asyncpg

from service import metrics
from service.batch import arrange, settle
from service.database import Database
from service.problems import ProblemError
from service.settings import Settings
from service.statements import UPSERT_APPOINTMENT
from service.verdict import CONFLICT, Write, too_late

GROUPS = 2  # of organisations that share their batches: one made 0.75 of the rows a second, four as many as two
LOCK_MS_MAX = 500  # of one try; one that fails frees the connection and goes to the end of the lock's queue


class Patience:
    """`_came`, for each organisation that is waited for: who came since its last batch began."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._wait_seconds = settings.write_wait_ms_max / 1e3
        self._batch_max = settings.batch_writes_max
        self._came: dict[str, list[Write]] = {}
        # Organisations that share their batches; the other connections are for those that wait by themselves.
        self._together: list[set[str]] = [set() for _ in range(GROUPS)]
        self._alone = asyncio.Semaphore(settings.patient_connections_max - GROUPS)
        self.tasks: set[asyncio.Task[None]] = set()

    def joined_by(self, write: Write) -> bool:
        """Whether the organisation is waited for already; then the write is taken."""
        came = self._came.get(write.organisation)
        if came is not None:
            came.append(write)
        return came is not None

    def put(self, writes: Iterable[Write]) -> None:
        at_rest = [organisations for organisations in self._together if not organisations]
        for write in writes:
            if not self.joined_by(write):
                organisation = write.organisation
                self._came[organisation] = [write]
                self._together[hash(organisation) % len(self._together)].add(organisation)
        for organisations in at_rest:
            if organisations:
                self._start(self._work(organisations))

    def expire(self) -> None:
        for came in self._came.values():
            self._expire(came)

    def _expire(self, writes: Iterable[Write]) -> None:
        queued_before = monotonic() - self._wait_seconds
        for write in writes:
            if write.queued_at < queued_before:
                write.refuse(too_late())

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _work(self, organisations: set[str]) -> None:
        """Batch after batch, until nobody comes for these organisations."""
        while batch := self._take(organisations):
            for part in by_organisation(await self._decide(batch)):
                organisation = part[0].organisation
                self._came[organisation][:0] = part
                organisations.remove(organisation)
                self._start(self._work_alone(organisation))

    async def _work_alone(self, organisation: str) -> None:
        """Whoever holds its lock for long, or makes it fail, shall keep no other organisation waiting."""
        waited_for = {organisation}
        while waited_for:
            async with self._alone:
                if batch := self._take(waited_for):
                    self._came[organisation][:0] = await self._decide(batch)

    def _take(self, organisations: set[str]) -> list[Write]:
        """A batch of those who came, first for whom somebody waits longest; organisations that nobody
        came for are no longer waited for."""
        waiting = {}
        for organisation in list(organisations):
            self._expire(self._came[organisation])
            came = [write for write in self._came[organisation] if not write.future.done()]
            if came:
                waiting[organisation] = came
            else:
                del self._came[organisation]
                organisations.remove(organisation)
        batch: list[Write] = []
        for organisation, came in sorted(waiting.items(), key=lambda item: item[1][0].queued_at):
            room = self._batch_max - len(batch)
            batch += came[:room]
            self._came[organisation] = came[room:]
        return batch

    async def _decide(self, batch: list[Write]) -> list[Write]:
        """Returns those that are to be tried again, by themselves."""
        metrics.PATIENT_BATCHES.inc()
        parts = by_organisation(batch)
        locks = locks_alone([part[0].organisation for part in parts])
        runs = arrange(batch)
        try:
            async with self._database.connection() as connection:
                try:
                    calls = [locks, *(run.arguments() for run in runs)]
                    rows = await connection.fetch_many(UPSERT_APPOINTMENT, calls)
                except asyncpg.LockNotAvailableError:
                    return batch
                settle(runs, rows[len(parts) :])  # the locks are held, so none is busy
        except ProblemError as error:
            for write in batch:
                write.refuse(error)
        except Exception as error:
            if len(parts) > 1:
                return batch
            if len(batch) > 1:  # so that an error is only its own
                return await self._decide_each(batch)
            if isinstance(error, asyncpg.ExclusionViolationError):  # by a writer that takes no lock
                batch[0].settle(CONFLICT)
            else:
                batch[0].refuse(error)
        return []

    async def _decide_each(self, batch: list[Write]) -> list[Write]:
        """One after another, as they came; once one is late, so are those after it."""
        for place, write in enumerate(batch):
            self._expire([write])
            if not write.future.done() and await self._decide([write]):
                return batch[place:]
        return []


def locks_alone(organisations: list[str]) -> tuple[list[object], ...]:
    """Arguments of the statement that wait for these locks, one after another, and write nothing."""
    nothing: list[object] = [None] * len(organisations)
    return list(organisations), *[nothing] * 7


def by_organisation(batch: Iterable[Write]) -> list[list[Write]]:
    """In the order of their names; within one, in the order of arrival."""
    organisation = attrgetter("organisation")
    return [list(part) for _, part in groupby(sorted(batch, key=organisation), organisation)]
