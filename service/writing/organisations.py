"""Queues by organisation: writes that wait for the locks of their organisations.

Organisations are in groups; those of a group share batches, and a group has one batch under way at a time. Writes that
come for an organisation meanwhile join its queue, so that competing processes take turns, batch by batch. A batch that
fails, or does not get its locks in time, is narrowed down to single organisations, and then to single writes.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from time import monotonic

import asyncpg
import structlog

from service.database.connection import Connection
from service.database.failures import UNKNOWN_OUTCOME, Action, action_for
from service.database.pool import Database
from service.database.turns import Turns
from service.problems import ProblemError
from service.writing.batch import CONFLICT, WRITES_MAX, Write

log = structlog.get_logger()

LOCK_MS_MAX = 500  # of one attempt; a failed one frees the connection and rejoins the lock's queue at its end
CONNECTIONS_ALONE = 3  # for organisations on their own
RETRY_SECONDS = 0.02  # before a single write that other sessions have undone
ORGANISATION = attrgetter("organisation")


class OrganisationQueues(ABC):
    """`together` batches of groups are under way at a time, and those of CONNECTIONS_ALONE organisations. Beside them
    there may be `late_max` of each kind that are late."""

    def __init__(self, database: Database, together: int, wait_ms_max: int, late_max: int = 0) -> None:
        self._database = database
        self._wait_seconds = wait_ms_max / 1e3
        # For each organisation that is being worked on: the writes that arrived since its last batch began.
        self._queues: dict[str, list[Write]] = {}
        self._groups: defaultdict[int, set[str]] = defaultdict(set)
        self._shared = Turns(together, late_max)
        self._single = Turns(CONNECTIONS_ALONE, late_max)
        self.tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    def group_of(self, organisation: str) -> int:
        """The group whose batches the organisation shares."""

    @abstractmethod
    async def decide(self, connection: Connection, batch: list[Write]) -> None:
        """Settles the writes. If it raises, those that are not settled were not written, or their outcome is unknown,
        as the error says."""

    def joined_by(self, write: Write) -> bool:
        """Takes the write if its organisation is being worked on here; returns whether it did."""
        queue = self._queues.get(write.organisation)
        if queue is not None:
            queue.append(write)
        return queue is not None

    def put(self, writes: Iterable[Write]) -> None:
        began: list[set[str]] = []
        for write in writes:
            if not self.joined_by(write):
                self._queues[write.organisation] = [write]
                group = self._groups[self.group_of(write.organisation)]
                if not group:
                    began.append(group)
                group.add(write.organisation)
        for group in began:
            self._start(group, self._shared)

    def expire(self) -> None:
        for queue in self._queues.values():
            self._expire(queue)

    def _expire(self, writes: Iterable[Write]) -> None:
        queued_before = monotonic() - self._wait_seconds
        for write in writes:
            if write.queued_at < queued_before:
                write.refuse(too_late())

    def _start(self, organisations: set[str], turns: Turns) -> None:
        task = asyncio.create_task(self._work(organisations, turns))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _work(self, organisations: set[str], turns: Turns) -> None:
        """Batch after batch, until no writes are left. An organisation whose lock is held for long, or whose batches
        fail, continues on its own, so that it does not delay the others."""
        batch: list[Write] = []
        try:
            while organisations:
                turn = await turns.take()
                try:
                    batch = self._take(organisations)
                    again = await self._try(batch) if batch else []
                finally:
                    turn.end()
                for organisation, writes in groupby(sorted(again, key=ORGANISATION), ORGANISATION):
                    self._queues[organisation][:0] = writes
                    if turns is self._shared:
                        organisations.remove(organisation)
                        self._start({organisation}, self._single)
        except Exception as error:  # unforeseen: refuses the waiting writes, and lets the organisations start afresh
            log.exception("writes failed", organisations=len(organisations))
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
            queue = unsettled(self._queues[organisation])
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

    async def _try(self, batch: list[Write]) -> list[Write]:
        """Settles or refuses the writes; returns those to be tried again, one organisation at a time."""
        failure: Exception
        try:
            async with self._database.connection() as connection:
                try:
                    await self.decide(connection, batch)
                    return []
                except asyncpg.PostgresError as error:
                    if action_for(error) is Action.UNAVAILABLE:
                        raise
                    failure = error
        except ProblemError as error:
            lost = error.problem.code == "DATABASE_UNAVAILABLE"
            for write in batch:
                write.refuse(ProblemError("DATABASE_UNAVAILABLE", UNKNOWN_OUTCOME) if lost else error)
            return []
        except Exception as error:
            failure = error
        batch = unsettled(batch)
        if len({write.organisation for write in batch}) > 1 or isinstance(failure, asyncpg.LockNotAvailableError):
            return batch
        if len(batch) > 1:
            return await self._try_each(batch)
        return await self._judge(batch, failure)

    async def _try_each(self, batch: list[Write]) -> list[Write]:
        """One write after another, in order; if one has to be tried again, so must all after it."""
        for place, write in enumerate(batch):
            self._expire([write])
            if not write.future.done() and await self._try([write]):
                return batch[place:]
        return []

    async def _judge(self, single: list[Write], failure: Exception) -> list[Write]:
        """What the failure means for a write on its own, if it was not settled meanwhile; returns it if it is to be
        tried again."""
        for write in single:
            if isinstance(failure, asyncpg.ExclusionViolationError):  # caused by a writer that does not take the lock
                write.settle(CONFLICT)
            elif action_for(failure) is Action.OTHERWISE:
                await asyncio.sleep(RETRY_SECONDS)
                return single
            else:
                write.refuse(failure)
        return []


def unsettled(writes: Iterable[Write]) -> list[Write]:
    return [write for write in writes if not write.future.done()]


def too_late() -> ProblemError:
    return ProblemError("OVERLOADED", "The writes before this one took too long; nothing was written.")
