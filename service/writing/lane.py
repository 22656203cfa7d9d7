"""The lane: one connection, and the queue of writes that wait for its next batch.

While a batch is under way new writes queue, and the next batch takes what has gathered. There is no timer, so a lone
write is sent at once. Writes of a batch that touch each other go into calls that follow one another in one pipeline
and commit together, so the outcome is that of some sequential order. The lane waits for no organisation's lock, and
for no row lock of another session longer than LOCK_MS_MAX: such writes continue in contended.py.
"""

import asyncio
from collections import Counter, deque
from math import inf
from time import monotonic

import structlog

from service import metrics
from service.database.connection import Connection, open_connection
from service.database.failures import UNKNOWN_OUTCOME, Action, action_for, cause_of
from service.database.statements import UPSERT_APPOINTMENT
from service.problems import ProblemError
from service.settings import Settings
from service.supervisor import pause_after
from service.writing.back_off import BACK_OFF_SECONDS, unavailable
from service.writing.batch import WRITES_MAX, Write, arrange, refuse, settle
from service.writing.contended import ContendedWrites
from service.writing.organisations import LOCK_MS_MAX, too_late

log = structlog.get_logger()

BUSY_ROUNDS_MAX = 3  # of one write, before it waits for the lock
RECONNECT_SECONDS_MAX = 1  # of the first attempt, for which the queued writes wait
STEADY_SECONDS = 5  # a connection that lived this long is replaced without a pause


class Lane:
    def __init__(self, contended: ContendedWrites, settings: Settings) -> None:
        self._contended, self._settings = contended, settings
        self._queue: deque[Write] = deque()  # in order of arrival
        self._awake = asyncio.Event()
        self._connected = self._down = False
        self._failures = 0  # since a batch succeeded

    def put(self, write: Write) -> None:
        """Raises ProblemError, a 503, while the database does not answer."""
        if self._down:
            raise unavailable()
        self._queue.append(write)
        self._awake.set()

    def expire(self, queued_before: float) -> None:
        while self._queue and self._queue[0].queued_at < queued_before:
            self._queue.popleft().refuse(too_late() if self._connected else unavailable())

    async def run(self) -> None:
        """Runs until it is cancelled. After a failure the connection is replaced, even if it survived: another one may
        lead to a database that can write. If that does not help at once, writes are refused during each pause."""
        while True:
            connected_at = inf
            try:
                async with (
                    asyncio.timeout(None if self._down else RECONNECT_SECONDS_MAX) as limit,
                    open_connection(self._settings, LOCK_MS_MAX, on_close=self._awake.set) as connection,
                ):
                    limit.reschedule(None)
                    connected_at = monotonic()
                    self._connected, self._down = True, False
                    await self._serve(connection)
            except Exception as error:  # after any failure the lane goes on with a new connection
                log.warning("lane lost its connection", cause=cause_of(error), attempts=self._failures)
            self._connected = False
            if monotonic() - connected_at > STEADY_SECONDS:
                self._failures = 0
            if self._failures:
                self._down = True
                while self._queue:
                    self._queue.popleft().refuse(unavailable())
                await asyncio.sleep(pause_after(self._failures, BACK_OFF_SECONDS))
            self._failures += 1

    async def _serve(self, connection: Connection) -> None:
        while not connection.is_closed():
            self._awake.clear()
            if batch := self._take():
                await self._decide(connection, batch)
            else:
                await self._awake.wait()

    def _take(self) -> list[Write]:
        batch: list[Write] = []
        while self._queue and len(batch) < WRITES_MAX:
            write = self._queue.popleft()
            if not write.future.done():
                batch.append(write)
        return batch

    async def _decide(self, connection: Connection, batch: list[Write]) -> None:
        """Raises errors that leave the connection in doubt, after all writes of the batch are refused."""
        metrics.BATCH_WRITES.observe(len(batch))
        metrics.QUEUE_WAIT_SECONDS.observe(monotonic() - batch[0].queued_at)
        try:
            runs = arrange(batch)
            rows = await connection.fetch_many(UPSERT_APPOINTMENT, [run.arguments() for run in runs])
            busy = settle(runs, rows)
        except Exception as error:
            if action_for(error) is Action.UNAVAILABLE:
                refuse(batch, ProblemError("DATABASE_UNAVAILABLE", UNKNOWN_OUTCOME))
                raise
            self._contended.put(batch)  # so that a write that is at fault fails alone
        else:
            self._failures = 0
            self._carry(busy)

    def _carry(self, busy: list[Write]) -> None:
        """Moves busy writes to the front of the next batch. A write that was busy too often waits for its lock, and so,
        at once, do several writes of one organisation: it is contended."""
        metrics.BUSY_CARRIES.inc(len(busy))
        writes_of = Counter(write.organisation for write in busy)
        waiting: list[Write] = []
        again: list[Write] = []
        for write in busy:
            write.busy_rounds += 1
            contended = write.busy_rounds == BUSY_ROUNDS_MAX or writes_of[write.organisation] > 1
            (waiting if contended else again).append(write)
        self._contended.put(waiting)
        self._queue.extendleft(reversed(again))
