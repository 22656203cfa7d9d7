"""Long polling: requests that wait for a change of their organisation share one query.

A `notify` in the write would serialise the commits of the whole server, and a query for each request would be a load
that grows with their number. So while any request waits, a process looks every POLL_SECONDS at all organisations that
are waited for: one call for each of their buckets, with one index lookup for each of them. Where the tables are
distributed, each call is a look of its own, since a server that does not answer delays only its buckets.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from math import inf

from service.database.buckets import by_bucket
from service.database.pool import Database
from service.database.statements import LIST_LAST_CHANGES
from service.metrics import CHANGES_WAITING
from service.problems import ProblemError
from service.supervisor import supervised

POLL_SECONDS = 0.2
WAITING_MAX = 5_000  # requests


class ChangePoller:
    def __init__(self, database: Database, *, distributed: bool) -> None:
        self._database, self._distributed = database, distributed
        self._looking: set[int | None] = set()  # buckets; None: all in one pipeline
        self._waiting: dict[asyncio.Future[None], tuple[str, str]] = {}  # organisation, the client's cursor
        self._has_waiters = asyncio.Event()
        self._seconds_max = inf

    async def wait(self, organisation: str, after: str, seconds: float, disconnected: Awaitable[None]) -> None:
        """Returns when `after` is not the cursor of the last change, the time is up, the client has disconnected, or
        `end_waits` is called. Raises ProblemError if there is no room, or the database does not answer."""
        if len(self._waiting) >= WAITING_MAX:
            raise ProblemError("OVERLOADED", "Too many requests are waiting for changes.")
        changed = asyncio.get_running_loop().create_future()
        gone = asyncio.ensure_future(disconnected)
        self._waiting[changed] = organisation, after
        self._has_waiters.set()
        CHANGES_WAITING.inc()
        try:
            seconds = min(seconds, self._seconds_max)
            await asyncio.wait({changed, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if changed.done():
                await changed
        finally:
            gone.cancel()
            del self._waiting[changed]
            CHANGES_WAITING.dec()

    def end_waits(self) -> None:
        """For a shutdown. Later requests wait only as long as one look takes, so that their clients do not spin."""
        self._seconds_max = POLL_SECONDS
        for changed in self._waiting:
            if not changed.done():
                changed.set_result(None)

    async def poll(self) -> None:
        """Runs until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._has_waiters.clear()
                if not self._waiting:
                    await self._has_waiters.wait()
                await asyncio.sleep(POLL_SECONDS)
                calls = by_bucket({organisation for organisation, _ in self._waiting.values()})
                looks = {bucket: [(bucket, names)] for bucket, names in calls} if self._distributed else {None: calls}
                for bucket, look in looks.items():
                    if look and bucket not in self._looking:
                        self._looking.add(bucket)
                        tasks.create_task(self._look(bucket, look))

    async def _look(self, bucket: int | None, calls: list[tuple[int, list[str]]]) -> None:
        asked = {name for _, names in calls for name in names}
        # Requests that come later may know more than the rows.
        waiting = {changed: wait for changed, wait in self._waiting.items() if wait[0] in asked}
        try:
            async with self._database.connection(bucket) as connection:
                rows = await connection.fetch_many(LIST_LAST_CHANGES, calls)
            last_changes = {row["org_id"]: row["last_change"] for row in rows}
            for changed, (organisation, after) in waiting.items():
                if last_changes[organisation] != after and not changed.done():
                    changed.set_result(None)
        except Exception as error:  # the waiting requests report it
            for changed in waiting.keys() & self._waiting.keys():
                if not changed.done():
                    changed.set_exception(error)
        finally:
            self._looking.discard(bucket)


@asynccontextmanager
async def open_change_poller(database: Database, *, distributed: bool) -> AsyncIterator[ChangePoller]:
    poller = ChangePoller(database, distributed=distributed)
    async with supervised(change_poller=poller.poll):
        yield poller
