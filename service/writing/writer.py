"""Entry point of all writes: refuses them when too many are waiting, otherwise waits for the verdict."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from time import monotonic

import structlog

from service.contract.body import Appointment
from service.database.pool import open_database
from service.problems import TOO_MANY_WRITES, ProblemError
from service.settings import Settings
from service.supervisor import cancel, supervised
from service.writing.batch import Verdict, Write
from service.writing.contended import CONNECTIONS_MAX, LOCK_MS_MAX, ContendedWrites
from service.writing.lane import Lane

log = structlog.get_logger()

ITEMS_WAITING_MAX = 32_000  # of batches sent by clients
EXPIRY_SECONDS = 0.1
REPORT_SECONDS = 1


class Writer:
    def __init__(self, contended: ContendedWrites, settings: Settings) -> None:
        self._contended = contended
        self._loop = asyncio.get_running_loop()  # looking it up costs a system call
        self._waiting = self._items_waiting = 0
        self._waiting_max = settings.writes_waiting_max
        self._wait_seconds = settings.write_wait_ms_max / 1e3
        self._admitted = 0  # in this round of the event loop
        self._refused = 0  # since the last report
        self.lane = Lane(contended, settings)

    def admits(self) -> bool:
        """Whether there is room for one more write. Admitted writes are counted until the next round of the event
        loop: only then have the tasks of requests that came at once reached `write`."""
        if self._waiting + self._admitted >= self._waiting_max:
            self._refused += 1
            return False
        if not self._admitted:
            self._loop.call_soon(setattr, self, "_admitted", 0)
        self._admitted += 1
        return True

    async def write(self, appointment: Appointment) -> Verdict:
        """The verdict, after its commit. Raises ProblemError, a 503, if there is no room or the database does not
        answer; writing again is safe."""
        if self._waiting >= self._waiting_max:
            raise ProblemError("OVERLOADED", TOO_MANY_WRITES)
        write = Write(appointment, self._loop)
        if not self._contended.joined_by(write):
            self.lane.put(write)
        self._waiting += 1
        try:
            return await write.future
        finally:
            self._waiting -= 1

    @contextmanager
    def room_for_items(self, count: int) -> Iterator[None]:
        """Raises ProblemError, a 503, if there is no room for this number of items."""
        if self._items_waiting + count > ITEMS_WAITING_MAX:
            raise ProblemError("OVERLOADED", TOO_MANY_WRITES)
        self._items_waiting += count
        try:
            yield
        finally:
            self._items_waiting -= count

    async def write_in_order(self, appointments: Sequence[Appointment]) -> list[Verdict | BaseException]:
        """The verdict of each, or the reason why there is none. Appointments of one organisation are written in this
        order, so the lane cannot take them: of two try-locks the first may fail and the second succeed."""
        sequence = object()
        writes = [Write(appointment, self._loop, sequence) for appointment in appointments]
        self._contended.put(writes)
        return await asyncio.gather(*(write.future for write in writes), return_exceptions=True)

    def waiting(self) -> int:
        """Writes without a verdict, and items of batches."""
        return self._waiting + self._items_waiting

    async def expire(self) -> None:
        """Refuses writes that wait too long for a batch; the time of a batch itself is limited, too."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            self._contended.expire()
            self.lane.expire(monotonic() - self._wait_seconds)

    async def report(self) -> None:
        """One log line a second for all writes refused unread; there may be very many."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if self._refused:
                log.warning("too many writes", refused=self._refused, waiting=self._waiting)
                self._refused = 0


@asynccontextmanager
async def open_writer(settings: Settings) -> AsyncIterator[Writer]:
    async with open_database(settings, connections_max=CONNECTIONS_MAX, lock_ms_max=LOCK_MS_MAX) as database:
        contended = ContendedWrites(database, settings)
        writer = Writer(contended, settings)
        try:
            async with supervised(lane=writer.lane.run, write_expiry=writer.expire, shedding_report=writer.report):
                yield writer
        finally:
            await cancel(list(contended.tasks))
