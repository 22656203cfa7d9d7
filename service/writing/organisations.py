"""Queues by organisation: writes that wait for the locks of their organisations.

Organisations are in groups; those of a group share batches, and a group has one batch under way at a time. Writes that
come for an organisation meanwhile join its queue, so that competing processes take turns, batch by batch. A batch that
fails, or does not get its locks in time, is narrowed down to single organisations, and then to single writes.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain, groupby
from operator import attrgetter
from time import monotonic

import asyncpg
import structlog

from service.database.connection import Connection
from service.database.failures import UNKNOWN_OUTCOME, Action, action_for
from service.database.pool import Database
from service.database.turns import Turns
from service.problems import ProblemError
from service.writing.back_off import Outage, unavailable
from service.writing.batch import CONFLICT, WRITES_MAX, Write, refuse, unsettled

log = structlog.get_logger()

LOCK_MS_MAX = 500  # of one attempt; a failed one frees the connection and rejoins the lock's queue at its end
CONNECTIONS_ALONE = 3  # for organisations on their own
RETRY_SECONDS = 0.02  # before an organisation on its own is tried again
LOGGED_ROUND = 10  # of a write on its own; other sessions do not undo it so often
ORGANISATION = attrgetter("organisation")


class OrganisationQueues(ABC):
    """Under way are `together` batches of groups, CONNECTIONS_ALONE organisations, and `late_max` late ones of each."""

    def __init__(self, database: Database, together: int, wait_ms_max: int, late_max: int = 0) -> None:
        self._database, self._wait_seconds = database, wait_ms_max / 1e3
        # For each organisation that is being worked on: the writes that arrived since its last batch began.
        self._queues: dict[str, list[Write]] = {}
        self._groups: defaultdict[int, set[str]] = defaultdict(set)  # without the organisations on their own
        self._outages: defaultdict[int, Outage] = defaultdict(Outage)  # of a group: its server may have failed alone
        self._shared, self._single = Turns(together, late_max), Turns(CONNECTIONS_ALONE, late_max)
        self.tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    def group_of(self, organisation: str) -> int:
        """The group whose batches the organisation shares."""

    @abstractmethod
    async def decide(self, connection: Connection, batch: list[Write]) -> None:
        """Settles the writes, except those whose locks another session holds. If it raises, those that are not settled
        were not written, or their outcome is unknown, as the error says."""

    def joined_by(self, write: Write) -> bool:
        """Takes the write if its organisation is being worked on here; returns whether it did."""
        queue = self._queues.get(write.organisation)
        if queue is not None:
            queue.append(write)
        return queue is not None

    def put(self, writes: Iterable[Write]) -> None:
        refusing: dict[int, bool] = {}
        for write in writes:
            group = self.group_of(write.organisation)
            if refusing.setdefault(group, self._refuses(group)):
                write.refuse(unavailable())
            elif not self.joined_by(write):
                self._queues[write.organisation] = [write]
                self._gather(write.organisation)

    def _refuses(self, group: int) -> bool:
        """In an outage, what comes first after a pause is tried, and all else refused until that is answered."""
        outage = self._outages[group]
        return outage.lasts() and (bool(self._groups[group]) or outage.pauses())

    def expire(self) -> None:
        self._expire(chain.from_iterable(self._queues.values()))

    def _expire(self, writes: Iterable[Write]) -> None:
        queued_before = monotonic() - self._wait_seconds
        for write in writes:
            if write.queued_at < queued_before:
                write.refuse(too_late())

    def _gather(self, organisation: str) -> None:
        group = self._groups[self.group_of(organisation)]
        if not group:
            self._start(group, self._shared)
        group.add(organisation)

    def _start(self, organisations: set[str], turns: Turns) -> None:
        task = asyncio.create_task(self._work(organisations, turns))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _work(self, organisations: set[str], turns: Turns) -> None:
        """Batch after batch, until no writes are left. An organisation whose lock is held for long, or whose batches
        fail, continues on its own, so that it does not delay the others, until one of its batches is answered."""
        alone = turns is self._single
        batch: list[Write] = []
        try:
            while organisations:
                with await turns.take():
                    batch = self._take(organisations)
                    again = await self._try(batch) if batch else []
                for organisation, writes in groupby(sorted(again, key=ORGANISATION), ORGANISATION):
                    self._queues[organisation][:0] = writes
                    if not alone:
                        organisations.remove(organisation)
                        self._start({organisation}, self._single)
                if alone and again:
                    await asyncio.sleep(RETRY_SECONDS)
                elif alone and organisations:
                    self._gather(organisations.pop())
        except Exception as error:  # unforeseen: refuses the waiting writes, and lets the organisations start afresh
            log.exception("writes failed", organisations=len(organisations))
            for organisation in organisations:
                batch += self._queues.pop(organisation, [])
            refuse(batch, error)
            organisations.clear()

    def _take(self, organisations: set[str]) -> list[Write]:
        """The next batch, beginning with the organisation whose oldest write waits longest. Organisations without
        writes are removed."""
        waiting = {}
        for organisation in list(organisations):
            if self._outages[self.group_of(organisation)].pauses():
                refuse(self._queues[organisation], unavailable())
            self._expire(self._queues[organisation])
            if queue := unsettled(self._queues[organisation]):
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
        outage = self._outages[self.group_of(batch[0].organisation)]
        failure: Exception | None = None
        problem = unavailable()
        try:
            async with self._database.connection() as connection:
                problem = ProblemError("DATABASE_UNAVAILABLE", UNKNOWN_OUTCOME)
                try:
                    await self.decide(connection, batch)
                except asyncpg.PostgresError as error:
                    if action_for(error) is Action.UNAVAILABLE:
                        raise
                    failure = error
        except ProblemError as error:
            if lost := error.problem.code == "DATABASE_UNAVAILABLE":
                outage.failed()
            refuse(batch, problem if lost else error)
            return []
        except Exception as error:
            failure = error
        outage.ended()
        batch = unsettled(batch)
        several = len({write.organisation for write in batch}) > 1
        if failure is None or several or isinstance(failure, asyncpg.LockNotAvailableError):
            return batch
        return await self._try_each(batch) if len(batch) > 1 else judged(batch, failure)

    async def _try_each(self, batch: list[Write]) -> list[Write]:
        """One write after another, in order; if one has to be tried again, so must all after it."""
        for place, write in enumerate(batch):
            self._expire([write])
            if not write.future.done() and await self._try([write]):
                return batch[place:]
        return []


def judged(single: list[Write], failure: Exception) -> list[Write]:
    """What the failure means for a write on its own, if it was not settled meanwhile; returns it if it is to be tried
    again. So is a conflict with a writer that does not take the lock, once: the blocker may then be known."""
    again = []
    for write in single:
        write.busy_rounds += 1
        if action_for(failure) is not Action.OTHERWISE:
            write.refuse(failure)
        elif isinstance(failure, asyncpg.ExclusionViolationError) and write.busy_rounds > 1:
            write.settle(CONFLICT)
        else:
            if write.busy_rounds == LOGGED_ROUND:
                log.warning("write fails again and again", cause=type(failure).__name__)
            again.append(write)
    return again


def too_late() -> ProblemError:
    return ProblemError("OVERLOADED", "The writes before this one took too long; nothing was written.")
