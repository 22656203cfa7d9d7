"""The pool of connections: first come, first served, with limits on the wait."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import asyncpg
import structlog

from service.database.connection import Connection, connect_options, limits, set_up
from service.database.failures import BROKEN, NO_ANSWER, Action, action_for
from service.database.hosts import connecting
from service.database.statements import Statement
from service.database_url import place_of
from service.problems import ProblemError, StartError
from service.settings import Settings

log = structlog.get_logger()

POOL_WAIT_MS_MAX = 2_000  # of a request for a connection
POOL_WAITING_MAX = 1_000  # requests
CLOSE_SECONDS_MAX = 1


class Database:
    """Raises ProblemError, a 503, when the database cannot answer; defects pass as they are."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self._pool = pool
        self._place = place_of(settings.database_url)
        self.terminate: Callable[[], None] = pool.terminate  # statements in progress fail at once
        self._turns = asyncio.Semaphore(pool.get_max_size())
        self._waiting = 0
        self.idle: Callable[[], int] = pool.get_idle_size
        self._slow_seconds = settings.statement_slow_ms / 1e3

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        try:
            connection = await self._acquire()
            try:
                yield Connection(connection, self._slow_seconds)
            except (*BROKEN, asyncpg.ReadOnlySQLTransactionError):
                # Or the pool would hand out a connection that the server has ended, or one that stays read-only.
                connection.terminate()
                raise
            finally:
                try:
                    await self._pool.release(connection)
                finally:
                    self._turns.release()
        except (*BROKEN, asyncpg.PostgresError) as error:
            if action_for(error) is Action.DEFECT:
                raise
            log.warning("database unavailable", database=self._place, cause=type(error).__name__)
            raise ProblemError("DATABASE_UNAVAILABLE", NO_ANSWER) from error

    async def fetch(self, statement: Statement, *arguments: object) -> list[asyncpg.Record]:
        async with self.connection() as connection:
            return await connection.fetch(statement, *arguments)

    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return self._waiting

    def busy(self) -> int:
        return int(self._pool.get_size() - self.idle())

    async def _acquire(self) -> Any:
        """Takes turns, as asyncpg's pool alone would serve whichever request asks just as a connection is released."""
        if self._waiting >= POOL_WAITING_MAX:
            raise ProblemError("OVERLOADED", "Too many requests are waiting for a database connection.")
        self._waiting += 1
        try:
            async with asyncio.timeout(POOL_WAIT_MS_MAX / 1e3):
                await self._turns.acquire()
                try:
                    return await self._pool.acquire()
                except BaseException:
                    self._turns.release()
                    raise
        except TimeoutError:
            if self._pool.get_size() < self._pool.get_max_size():
                raise  # no new connection could be opened either
            detail = "No database connection became free in time."
            raise ProblemError("OVERLOADED", detail) from None
        finally:
            self._waiting -= 1


@asynccontextmanager
async def open_database(
    settings: Settings, *, connections_max: int = 0, lock_ms_max: int = 0, transaction_ms_max: int = 0
) -> AsyncIterator[Database]:
    """A pool of at most `connections_max` connections (0: the setting's number). `lock_ms_max` limits the wait for a
    lock; 0 leaves only the statement's limit, which is also a transaction's unless one is given."""
    options = connect_options(settings)
    async with connecting(options) as connect:
        pool = await asyncpg.create_pool(
            min_size=1,
            max_size=connections_max or settings.pool_connections_max,
            max_inactive_connection_lifetime=0,
            init=partial(set_up, limits=limits(settings, lock_ms_max, transaction_ms_max)),
            reset=keep_session,
            connect=connect,
            **options,
        )
        try:
            yield Database(pool, settings)
        finally:
            # A database that does not answer must not delay the end; a cancelled close() terminates the connections.
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS_MAX):
                    await pool.close()


async def keep_session(connection: Any) -> None:
    """No statement changes the session, and the default reset doubles the cost of a small read."""


async def check_database(settings: Settings) -> None:
    """Raises StartError if no connection can be opened; within the server that would be a traceback."""
    try:
        async with open_database(settings):
            pass
    except (*BROKEN, asyncpg.PostgresError, ValueError) as error:
        raise StartError(f"The database refuses: {' '.join(str(error).split())}") from error
