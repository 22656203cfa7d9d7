"""Long polling: requests that wait for a change of their organisation share one query.

A `notify` in the write would serialise the commits of the whole server, and a query for each request would be a load
that grows with their number. So while any request waits, a process looks every POLL_SECONDS at all organisations that
are waited for: one call for each of their buckets, with one index lookup for
each of them.
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
    def __init__(self, database: Database) -> None:
        self._database = database
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
        while True:
            self._has_waiters.clear()
            if not self._waiting:
                await self._has_waiters.wait()
            await asyncio.sleep(POLL_SECONDS)
            try:
                waiting = dict(self._waiting)  # requests that come later may know more than the rows
                organisations = {organisation for organisation, _ in waiting.values()}
                async with self._database.connection() as connection:
                    rows = await connection.fetch_many(LIST_LAST_CHANGES, by_bucket(organisations))
                last_changes = {row["org_id"]: row["last_change"] for row in rows}
                for changed, (organisation, after) in waiting.items():
                    if last_changes[organisation] != after and not changed.done():
                        changed.set_result(None)
            except Exception as error:  # the waiting requests report it
                for changed in self._waiting:
                    if not changed.done():
                        changed.set_exception(error)


@asynccontextmanager
async def open_change_poller(database: Database) -> AsyncIterator[ChangePoller]:
    poller = ChangePoller(database)
    async with supervised(change_poller=poller.poll):
        yield poller
