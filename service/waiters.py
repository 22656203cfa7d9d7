"""Requests that wait for a change of their organisation: one look at the database for all of them.

A `notify` in the write would serialise the commits of the whole server, and a look of its own for each request
would be a load that grows with them. So while anybody waits, a process looks every POLL_SECONDS at the
organisations that are waited for: one statement, in which each is one step into an index.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress

from service.database import Database
from service.problems import ProblemError
from service.readiness import Shutdown
from service.settings import Settings
from service.statements import LIST_LAST_CHANGES

POLL_SECONDS = 0.2


class Waiters:
    """`_waiting`: of each who waits, the organisation and the last change it knows."""

    def __init__(self, database: Database, shutdown: Shutdown, waiting_max: int) -> None:
        self._database = database
        self._shutdown = shutdown
        self._waiting_max = waiting_max
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}
        self._somebody = asyncio.Event()

    async def wait(self, organisation: str, after: int, seconds: float, client_gone: Awaitable[None]) -> None:
        """Until there is a change after that one, the time is up, the client is gone, or the service
        ends. Raises ProblemError if there is no room, or the database does not answer."""
        if len(self._waiting) >= self._waiting_max:
            raise ProblemError("OVERLOADED", "Too many requests wait for changes.")
        changed = asyncio.get_running_loop().create_future()
        gone = asyncio.ensure_future(client_gone)
        self._waiting[changed] = organisation, after
        self._somebody.set()
        try:
            await asyncio.wait({changed, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if changed.done():
                await changed
        finally:
            gone.cancel()
            del self._waiting[changed]

    async def poll(self) -> None:
        """Until it is cancelled."""
        while True:
            self._somebody.clear()
            if not self._waiting:
                await self._somebody.wait()
            await asyncio.sleep(POLL_SECONDS)
            try:
                last_changes = await self._last_changes()
            except Exception as error:  # who waits is told of it
                self._wake_all(error)
            else:
                self._wake(last_changes)

    async def _last_changes(self) -> Mapping[str, int]:
        organisations = list({organisation for organisation, _ in self._waiting.values()})
        rows = await self._database.fetch(LIST_LAST_CHANGES, organisations)
        return {row["org_id"]: row["last_change"] for row in rows}

    def _wake(self, last_changes: Mapping[str, int]) -> None:
        for changed, (organisation, after) in self._waiting.items():
            news = last_changes.get(organisation, 0) > after
            if (news or self._shutdown.begun) and not changed.done():
                changed.set_result(None)

    def _wake_all(self, error: Exception) -> None:
        for changed in self._waiting:
            if not changed.done():
                changed.set_exception(error)


@asynccontextmanager
async def open_waiters(database: Database, shutdown: Shutdown, settings: Settings) -> AsyncIterator[Waiters]:
    waiters = Waiters(database, shutdown, settings.changes_waiting_max)
    polling = asyncio.create_task(waiters.poll())
    try:
        yield waiters
    finally:
        polling.cancel()
        with suppress(asyncio.CancelledError):
            await polling
