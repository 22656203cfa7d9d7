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
from service.writing.contended import CONNECTIONS_MAX, ContendedWrites
from service.writing.distributed import DistributedWrites
from service.writing.distributed import connections_max as distributed_connections_max
from service.writing.lane import Lane
from service.writing.organisations import LOCK_MS_MAX, OrganisationQueues

log = structlog.get_logger()

ITEMS_WAITING_MAX = 32_000  # of batches sent by clients
EXPIRY_SECONDS = 0.1
REPORT_SECONDS = 1
ALWAYS_BY_BUCKET = False  # write as to distributed tables, for tests on plain PostgreSQL


class Writer:
    def __init__(self, queues: OrganisationQueues, lane: Lane | None, settings: Settings) -> None:
        self._queues, self._lane = queues, lane
        self._loop = asyncio.get_running_loop()  # looking it up costs a system call
        self._waiting = self._items_waiting = 0
        self._waiting_max = settings.writes_waiting_max
        self._wait_seconds = settings.write_wait_ms_max / 1e3
        self._admitted = 0  # in this round of the event loop
        self._refused = 0  # since the last report

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
        if self._lane is None:
            self._queues.put([write])
        elif not self._queues.joined_by(write):
            self._lane.put(write)
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
        self._queues.put(writes)
        return await asyncio.gather(*(write.future for write in writes), return_exceptions=True)

    def waiting(self) -> int:
        """Writes without a verdict, and items of batches."""
        return self._waiting + self._items_waiting

    async def expire(self) -> None:
        """Refuses writes that wait too long for a batch; the time of a batch itself is limited, too."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            self._queues.expire()
            if self._lane:
                self._lane.expire(monotonic() - self._wait_seconds)

    async def report(self) -> None:
        """One log line a second for all writes refused unread; there may be very many."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if self._refused:
                log.warning("too many writes", refused=self._refused, waiting=self._waiting)
                self._refused = 0


@asynccontextmanager
async def open_writer(settings: Settings, *, distributed: bool = False) -> AsyncIterator[Writer]:
    by_bucket = distributed or ALWAYS_BY_BUCKET
    connections_max = distributed_connections_max(settings) if by_bucket else CONNECTIONS_MAX
    async with open_database(
        settings, distributed=distributed, connections_max=connections_max, lock_ms_max=LOCK_MS_MAX
    ) as database:
        queues: OrganisationQueues
        if by_bucket:
            queues, lane = DistributedWrites(database, settings), None
        else:
            queues = contended = ContendedWrites(database, settings)
            lane = Lane(contended, settings)
        writer = Writer(queues, lane, settings)
        works = {"write_expiry": writer.expire, "shedding_report": writer.report} | ({"lane": lane.run} if lane else {})
        try:
            async with supervised(**works):
                yield writer
        finally:
            await cancel(list(queues.tasks))
