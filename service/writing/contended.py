"""Contended writes: they wait for the locks of their organisations.

A write comes here if another process held its organisation's lock in too many rounds (PostgreSQL grants no try-lock
while another session waits, so nobody starves), if its batch failed as a whole, or if a client sent it in a batch.
Later writes of the same organisations follow, so that competing processes take turns, batch by batch.

A batch is one pipeline and one commit here, too. Its first call waits for the locks in the order of the organisations'
names, so that no two batches wait for each other (names with equal hashes could, until LOCK_MS_MAX). A batch that
fails, or does not get its locks in time, is narrowed down to single organisations, and then to single writes.
"""

import asyncio
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from time import monotonic

import asyncpg
import structlog

from service import metrics
from service.database.failures import UNKNOWN_OUTCOME, Action, action_for
from service.database.pool import Database
from service.database.statements import UPSERT_APPOINTMENT
from service.problems import ProblemError
from service.settings import Settings
from service.writing.batch import ARGUMENTS, CONFLICT, WRITES_MAX, Write, arrange, settle

log = structlog.get_logger()

CONNECTIONS_MAX = 5
GROUPS = 2  # of organisations that share batches; with 1 the throughput was 0.75, with 4 the same
LOCK_MS_MAX = 500  # of one attempt; a failed one frees the connection and rejoins the lock's queue at its end
ORGANISATION = attrgetter("organisation")


class ContendedWrites:
    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._wait_seconds = settings.write_wait_ms_max / 1e3
        # For each organisation that is being worked on: the writes that arrived since its last batch began.
        self._queues: dict[str, list[Write]] = {}
        self._groups: list[set[str]] = [set() for _ in range(GROUPS)]
        self._shared = asyncio.Semaphore(GROUPS)  # a connection for each group
        self._single = asyncio.Semaphore(CONNECTIONS_MAX - GROUPS)  # connections for organisations on their own
        self.tasks: set[asyncio.Task[None]] = set()

    def joined_by(self, write: Write) -> bool:
        """Takes the write if its organisation is being worked on here; returns whether it did."""
        queue = self._queues.get(write.organisation)
        if queue is not None:
            queue.append(write)
        return queue is not None

    def put(self, writes: Iterable[Write]) -> None:
        idle = [group for group in self._groups if not group]
        for write in writes:
            if not self.joined_by(write):
                organisation = write.organisation
                self._queues[organisation] = [write]
                self._groups[hash(organisation) % GROUPS].add(organisation)
        for group in idle:
            if group:
                self._start(group, self._shared)

    def expire(self) -> None:
        for queue in self._queues.values():
            self._expire(queue)

    def _expire(self, writes: Iterable[Write]) -> None:
        queued_before = monotonic() - self._wait_seconds
        for write in writes:
            if write.queued_at < queued_before:
                write.refuse(too_late())

    def _start(self, organisations: set[str], turns: asyncio.Semaphore) -> None:
        task = asyncio.create_task(self._work(organisations, turns))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _work(self, organisations: set[str], turns: asyncio.Semaphore) -> None:
        """Batch after batch, until no writes are left. An organisation whose lock is held for long, or whose batches
        fail, continues on its own, so that it does not delay the others."""
        batch: list[Write] = []
        try:
            while organisations:
                async with turns:
                    batch = self._take(organisations)
                    again = await self._decide(batch) if batch else []
                for organisation, writes in groupby(sorted(again, key=ORGANISATION), ORGANISATION):
                    self._queues[organisation][:0] = writes
                    if turns is self._shared:
                        organisations.remove(organisation)
                        self._start({organisation}, self._single)
        except Exception as error:  # unforeseen: refuses the waiting writes, and lets the organisations start afresh
            log.exception("contended writes failed", organisations=len(organisations))
            for organisation in organisations:
                batch += self._queues.pop(organisation, [])
            for write in batch:
                write.refuse(error)
            organisations.clear()

    def _take(self, organisations: set[str]) -> list[Write]:
        """The next batch, beginning with the organisation whose oldest write waits longest. Organisations without
        writes are removed."""
        waiting = {}
        for organisation in list(organisations):
            self._expire(self._queues[organisation])
            queue = [write for write in self._queues[organisation] if not write.future.done()]
            if queue:
                waiting[organisation] = queue
            else:
                del self._queues[organisation]
                organisations.remove(organisation)
        batch: list[Write] = []
        for organisation, queue in sorted(waiting.items(), key=lambda item: item[1][0].queued_at):
            room = WRITES_MAX - len(batch)
            batch += queue[:room]
            self._queues[organisation] = queue[room:]
        return batch

    async def _decide(self, batch: list[Write]) -> list[Write]:
        """Settles or refuses the writes; returns those to be tried again, one organisation at a time."""
        metrics.CONTENDED_BATCHES.inc()
        organisations = sorted({write.organisation for write in batch})
        runs = arrange(batch)
        calls = [only_locks(organisations), *(run.arguments() for run in runs)]
        failure: Exception | None = None
        try:
            async with self._database.connection() as connection:
                try:
                    rows = await connection.fetch_many(UPSERT_APPOINTMENT, calls)
                except asyncpg.PostgresError as error:
                    if action_for(error) is Action.UNAVAILABLE:
                        raise
                    failure = error
            if failure is None:
                settle(runs, rows[len(organisations) :])  # the locks are held, so no write is busy
                return []
        except ProblemError as error:
            lost = error.problem.code == "DATABASE_UNAVAILABLE"
            for write in batch:
                write.refuse(ProblemError("DATABASE_UNAVAILABLE", UNKNOWN_OUTCOME) if lost else error)
            return []
        except Exception as error:
            failure = error
        if len(organisations) > 1 or isinstance(failure, asyncpg.LockNotAvailableError):
            return batch
        if len(batch) > 1:
            return await self._decide_each(batch)
        if isinstance(failure, asyncpg.ExclusionViolationError):  # caused by a writer that does not take the lock
            batch[0].settle(CONFLICT)
        else:
            undone = action_for(failure) is Action.OTHERWISE
            batch[0].refuse(ProblemError("DATABASE_UNAVAILABLE", UNKNOWN_OUTCOME) if undone else failure)
        return []

    async def _decide_each(self, batch: list[Write]) -> list[Write]:
        """One write after another, in order; if one has to be tried again, so must all after it."""
        for place, write in enumerate(batch):
            self._expire([write])
            if not write.future.done() and await self._decide([write]):
                return batch[place:]
        return []


def only_locks(organisations: list[str]) -> tuple[list[object], ...]:
    """Arguments of the statement that wait for these locks, one after another, and write nothing."""
    nothing: list[object] = [None] * len(organisations)
    return list(organisations), *[nothing] * (ARGUMENTS - 1)


def too_late() -> ProblemError:
    return ProblemError("OVERLOADED", "The writes before this one took too long; nothing was written.")
