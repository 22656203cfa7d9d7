"""The only way an appointment is written: group commit.

    write ─ queue of a lane ─ batch ─ one pipeline, one commit ─ verdicts

An organisation belongs to one lane, and a lane owns one connection. While a batch is under way new
requests queue, and the next batch takes what has gathered: no timer, so a lone request waits for
nobody. Those of a batch that touch each other are decided by calls that follow one another, so the
outcome is that of running all of the batch one after another in some order: nobody has an answer before
another is sent. A lane waits for no organisation, and for no row of a foreign session longer than LOCK_MS_MAX:
requests that must wait go to patience.py.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from time import monotonic

import msgspec
import structlog

from service import metrics
from service.batch import arrange, settle
from service.database import UNKNOWN, Connection, open_connection, open_database, undecided
from service.messages import Appointment
from service.patience import LOCK_MS_MAX, Patience
from service.problems import ProblemError
from service.settings import Settings
from service.statements import UPSERT_APPOINTMENT
from service.verdict import Verdict, Write, too_late

log = structlog.get_logger()

BUSY_ROUNDS_MAX = 3  # of one write
BACK_OFF_SECONDS = (0.05, 0.1, 0.2, 0.5)  # before connecting again; the last one from then on
EXPIRY_SECONDS = 0.1
REPORT_SECONDS = 1
TOO_MANY = "Too many writes are waiting; nothing was written."
NOTHING_WRITTEN = "The database does not answer; nothing was written."


class Writer:
    """Spreads organisations over lanes."""

    def __init__(self, patience: Patience, settings: Settings) -> None:
        self._patience = patience
        self._loop = asyncio.get_running_loop()  # each look for it is a system call
        self._waiting = 0
        self._waiting_max = settings.writes_waiting_max
        self._items_waiting = 0
        self._items_waiting_max = settings.batch_items_waiting_max
        self._wait_seconds = settings.write_wait_ms_max / 1e3
        self._coming = 0
        self._refused = 0  # since the last report
        self.lanes = [Lane(patience, settings) for _ in range(settings.lanes)]

    def admits(self) -> bool:
        """Whether there is room for one more. Who was admitted is counted until the loop has come round, and
        with it the tasks of all who came at once: until then none of these is in `write`."""
        if self._waiting + self._coming >= self._waiting_max:
            self._refused += 1
            return False
        if not self._coming:
            self._loop.call_soon(self._forget_coming)
        self._coming += 1
        return True

    def _forget_coming(self) -> None:
        self._coming = 0

    async def write(self, appointment: Appointment) -> Verdict:
        """The verdict, once it is committed. Raises ProblemError, a 503, if there is no room or no
        answer; writing again is safe."""
        if self._waiting >= self._waiting_max:
            raise ProblemError("OVERLOADED", TOO_MANY)
        write = Write(appointment, self._loop)
        if not self._patience.joined_by(write):
            self.lanes[hash(write.organisation) % len(self.lanes)].put(write)
        self._waiting += 1
        try:
            return await write.future
        finally:
            self._waiting -= 1

    @contextmanager
    def room_for_items(self, count: int) -> Iterator[None]:
        """Raises ProblemError, a 503, if so many items of a batch are too many."""
        if self._items_waiting + count > self._items_waiting_max:
            raise ProblemError("OVERLOADED", TOO_MANY)
        self._items_waiting += count
        try:
            yield
        finally:
            self._items_waiting -= count

    async def write_in_order(self, appointments: Sequence[Appointment]) -> list[Verdict | BaseException]:
        """The verdict of each, or why there is none; those of an organisation are written one after
        another."""
        sequence = object()
        writes = [Write(appointment, self._loop, sequence) for appointment in appointments]
        # Not by a lane: of two tries for a lock the first may fail and the second not.
        self._patience.put(writes)
        return await asyncio.gather(*(write.future for write in writes), return_exceptions=True)

    def waiting(self) -> int:
        """Writes without a verdict yet, and items of batches."""
        return self._waiting + self._items_waiting

    async def expire(self) -> None:
        """Refuses those who wait too long to be taken into a batch; the time of a batch has a limit too."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            self._patience.expire()
            for lane in self.lanes:
                lane.expire(monotonic() - self._wait_seconds)

    async def report(self) -> None:
        """One line for all that are refused unread, of which there may be very many."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if self._refused:
                log.warning("too many writes", refused=self._refused, waiting=self._waiting)
                self._refused = 0


@asynccontextmanager
async def open_writer(settings: Settings) -> AsyncIterator[Writer]:
    patient = msgspec.structs.replace(settings, pool_connections_max=settings.patient_connections_max)
    async with open_database(patient, LOCK_MS_MAX) as database:
        patience = Patience(database, settings)
        writer = Writer(patience, settings)
        works = [writer.expire(), writer.report(), *(lane.run() for lane in writer.lanes)]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield writer
        finally:
            tasks.extend(patience.tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Lane:
    """One connection, and the queue of those whose organisations belong to it."""

    def __init__(self, patience: Patience, settings: Settings) -> None:
        self._patience = patience
        self._settings = settings
        self._queue: deque[Write] = deque()  # in the order of arrival
        self._awake = asyncio.Event()
        self._down = False

    def put(self, write: Write) -> None:
        if self._down:
            raise ProblemError("DATABASE_UNAVAILABLE", NOTHING_WRITTEN)
        self._queue.append(write)
        self._awake.set()

    def expire(self, queued_before: float) -> None:
        while self._queue and self._queue[0].queued_at < queued_before:
            self._queue.popleft().refuse(too_late())

    async def run(self) -> None:
        """Until it is cancelled. A lost connection is replaced; while none is to be had, nobody waits."""
        attempts = 0
        while True:
            try:
                async with open_connection(self._settings, LOCK_MS_MAX, on_close=self._awake.set) as connection:
                    attempts, self._down = 0, False
                    await self._serve(connection)
            except Exception as error:  # whatever it is, the lane goes on
                log.warning("lane lost its connection", cause=type(error).__name__, attempts=attempts)
            if attempts:
                self._down = True
                while self._queue:
                    self._queue.popleft().refuse(ProblemError("DATABASE_UNAVAILABLE", NOTHING_WRITTEN))
                await asyncio.sleep(BACK_OFF_SECONDS[min(attempts, len(BACK_OFF_SECONDS)) - 1])
            attempts += 1

    async def _serve(self, connection: Connection) -> None:
        while not connection.is_closed():
            self._awake.clear()
            if batch := self._take():
                await self._decide(connection, batch)
            else:
                await self._awake.wait()

    def _take(self) -> list[Write]:
        batch: list[Write] = []
        while self._queue and len(batch) < self._settings.batch_writes_max:
            write = self._queue.popleft()
            if not write.future.done():
                batch.append(write)
        return batch

    async def _decide(self, connection: Connection, batch: list[Write]) -> None:
        """Raises what leaves the connection in doubt, once everybody of the batch knows."""
        metrics.BATCH_WRITES.observe(len(batch))
        metrics.QUEUE_WAIT_SECONDS.observe(monotonic() - batch[0].queued_at)
        runs = arrange(batch)
        try:
            rows = await connection.fetch_many(UPSERT_APPOINTMENT, [run.arguments() for run in runs])
            busy = settle(runs, rows)
        except Exception as error:
            if not undecided(error):
                for write in batch:
                    write.refuse(ProblemError("DATABASE_UNAVAILABLE", UNKNOWN))
                raise
            self._patience.put(batch)
        else:
            self._carry(busy)

    def _carry(self, busy: list[Write]) -> None:
        """Into the next batch, in front. Those that were busy too often learn patience; so do, at once,
        several of one organisation, since that is wanted elsewhere as much as here."""
        metrics.BUSY_CARRIES.inc(len(busy))
        crowds = Counter(write.organisation for write in busy)
        patient: list[Write] = []
        again: list[Write] = []
        for write in busy:
            write.busy_rounds += 1
            wanted = write.busy_rounds == BUSY_ROUNDS_MAX or crowds[write.organisation] > 1
            (patient if wanted else again).append(write)
        self._patience.put(patient)
        self._queue.extendleft(reversed(again))
