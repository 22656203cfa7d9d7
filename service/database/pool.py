"""The pool of connections: first come, first served, with limits on the wait."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import asyncpg
import structlog

from service.database.connection import Connection, connect_options, session_parameters, set_up
from service.database.failures import BROKEN, NO_ANSWER, Action, action_for, cause_of
from service.database.hosts import connecting
from service.database.statements import Statement
from service.database.turns import Turn, Turns
from service.database_url import place_of
from service.problems import ProblemError, StartError
from service.settings import Settings

log = structlog.get_logger()

POOL_WAIT_MS_MAX = 2_000  # of a request for a connection
POOL_WAITING_MAX = 1_000  # requests
LATE_PER_TURN_MAX = 2  # late calls, where the tables are distributed
CLOSE_SECONDS_MAX = 1


class Database:
    """Raises ProblemError, a 503, when the database cannot answer; defects pass as they are."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings, turns: Turns) -> None:
        self._pool, self._turns = pool, turns
        self._place = place_of(settings.database_url)
        self.terminate: Callable[[], None] = pool.terminate  # statements in progress fail at once
        self._waiting = 0
        self.idle: Callable[[], int] = pool.get_idle_size
        self._slow_seconds = settings.statement_slow_ms / 1e3

    @asynccontextmanager
    async def connection(self, bucket: object = None) -> AsyncIterator[Connection]:
        """`bucket` is that of all the rows that are used, if there is one."""
        try:
            turn, connection = await self._acquire(bucket)
            with turn:
                try:
                    yield Connection(connection, self._slow_seconds)
                except (*BROKEN, asyncpg.ReadOnlySQLTransactionError):
                    # Or the pool would hand out a connection that the server has ended, or one that stays read-only.
                    connection.terminate()
                    raise
                finally:
                    if turn.is_late and self._pool.get_size() > self._turns.count:  # it was one more
                        connection.terminate()
                    await self._pool.release(connection)
        except (*BROKEN, asyncpg.PostgresError) as error:
            if action_for(error) is Action.DEFECT:
                raise
            log.warning("database unavailable", database=self._place, cause=cause_of(error))
            raise ProblemError("DATABASE_UNAVAILABLE", NO_ANSWER) from error

    async def fetch(self, statement: Statement, *arguments: object) -> list[asyncpg.Record]:
        """Runs a statement whose first argument, if it has any, is the bucket."""
        async with self.connection(*arguments[:1]) as connection:
            return await connection.fetch(statement, *arguments)

    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return self._waiting

    def busy(self) -> int:
        return int(self._pool.get_size() - self.idle())

    async def _acquire(self, bucket: object) -> tuple[Turn, Any]:
        """Takes turns, as asyncpg's pool alone would serve whichever request asks just as a connection is released."""
        if self._waiting >= POOL_WAITING_MAX:
            raise ProblemError("OVERLOADED", "Too many requests are waiting for a database connection.")
        self._waiting += 1
        try:
            async with asyncio.timeout(POOL_WAIT_MS_MAX / 1e3):
                turn = await self._turns.take(bucket)
                try:
                    return turn, await self._pool.acquire()
                except BaseException:
                    turn.end()
                    raise
        except TimeoutError:
            if self._pool.get_size() < self._turns.count:
                raise  # no new connection could be opened either
            detail = "No database connection became free in time."
            raise ProblemError("OVERLOADED", detail) from None
        finally:
            self._waiting -= 1


@asynccontextmanager
async def open_database(
    settings: Settings,
    *,
    distributed: bool = False,
    connections_max: int = 0,
    lock_ms_max: int = 0,
    transaction_ms_max: int = 0,
) -> AsyncIterator[Database]:
    """A pool of at most `connections_max` connections (0: the setting's number), and where the tables are distributed
    more for late calls. `lock_ms_max` limits the wait for a lock; 0 leaves only the statement's limit, which is also a
    transaction's unless one is given."""
    options = connect_options(settings)
    parameters = session_parameters(settings, lock_ms_max, transaction_ms_max, distributed=distributed)
    turns_max = connections_max or settings.pool_connections_max
    late_max = LATE_PER_TURN_MAX * turns_max if distributed else 0
    async with connecting(options) as connect:
        pool = await asyncpg.create_pool(
            min_size=1,
            max_size=turns_max + late_max,
            max_inactive_connection_lifetime=0,
            init=partial(set_up, parameters=parameters),
            reset=keep_session,
            connect=connect,
            **options,
        )
        try:
            yield Database(pool, settings, Turns(turns_max, late_max))
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
