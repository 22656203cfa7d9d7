"""The pool of connections, and how its failures become answers."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any

import asyncpg
import structlog

from service import metrics
from service.problems import ProblemError
from service.settings import Settings
from service.statements import Statement

log = structlog.get_logger()

# SQLSTATE classes that say "not now" and nothing of the request: connection, read only, authorization,
# no database, rollback, no table (the migrations were taken back), resources, lock not available,
# operator intervention (timeouts too), system.
UNAVAILABLE = ("08", "25006", "28", "3D000", "40", "42P01", "53", "55P03", "57", "58")
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL's timestamptz
MICROSECOND = timedelta(microseconds=1)

# PostgreSQL plans a statement once for all parameters: each has one plan that is right for all of
# them (tests/plans), and planning anew costs a read as much again. JIT pays only for long statements.
SESSION = {
    "application_name": "appointments",
    "default_transaction_isolation": "read committed",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "timezone": "UTC",
}


class Connection:
    """A connection out of the pool, held by one request. Statements are timed and, if slow, logged."""

    def __init__(self, connection: Any, slow_seconds: float) -> None:
        self._connection = connection
        self._slow_seconds = slow_seconds

    async def fetch(self, statement: Statement, *arguments: object) -> list[asyncpg.Record]:
        """Runs a statement as a prepared one; asyncpg keeps it prepared for the connection's life."""
        started = perf_counter()
        try:
            rows: list[asyncpg.Record] = await self._connection.fetch(statement.text, *arguments)
            return rows
        finally:
            seconds = perf_counter() - started
            metrics.STATEMENT_SECONDS.labels(statement.name).observe(seconds)
            if seconds > self._slow_seconds:
                log.warning("slow statement", statement=statement.name, ms=round(seconds * 1e3, 1))

    def transaction(self) -> Any:
        return self._connection.transaction()


class Database:
    """Raises ProblemError, a 503, when the database cannot answer; other errors of it pass."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self.pool = pool
        self._wait_seconds = settings.pool_wait_ms_max / 1e3
        self._slow_seconds = settings.statement_slow_ms / 1e3

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        try:
            connection = await self._acquire()
            try:
                yield Connection(connection, self._slow_seconds)
            finally:
                await self.pool.release(connection)
        except (OSError, asyncpg.InterfaceError, asyncpg.PostgresError) as error:  # OSError: timeouts too
            if not unavailable(error):
                raise
            log.warning("database unavailable", cause=type(error).__name__)
            detail = "The database does not answer. A write may have happened; sending it again is safe."
            raise ProblemError("DATABASE_UNAVAILABLE", detail) from error

    async def _acquire(self) -> Any:
        try:
            return await self.pool.acquire(timeout=self._wait_seconds)
        except TimeoutError:
            if self.pool.get_size() < self.pool.get_max_size():
                raise  # a new one was not to be had either
            detail = "No connection to the database came free in time; nothing was written."
            raise ProblemError("OVERLOADED", detail) from None

    async def fetch(self, statement: Statement, *arguments: object) -> list[asyncpg.Record]:
        async with self.connection() as connection:
            return await connection.fetch(statement, *arguments)


def unavailable(error: Exception) -> bool:
    """Whether the database is to blame; asyncpg's DataError would be a wrong argument of ours."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "08").startswith(UNAVAILABLE)
    return not isinstance(error, ValueError)


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    async with asyncpg.create_pool(
        settings.database_url,
        min_size=1,
        max_size=settings.pool_connections_max,
        max_inactive_connection_lifetime=0,
        max_cached_statement_lifetime=0,
        timeout=settings.connect_ms_max / 1e3,
        # The server's own timeout comes first and leaves the connection usable.
        command_timeout=settings.statement_ms_max / 1e3 + 1,
        server_settings=SESSION | {"statement_timeout": str(settings.statement_ms_max)},
        init=set_instant_codec,
        reset=keep_session,
    ) as pool:
        yield Database(pool, settings)


async def keep_session(connection: Any) -> None:
    """No statement changes the session, and the default reset doubles the cost of a small read."""


async def set_instant_codec(connection: asyncpg.Connection) -> None:
    """asyncpg's own codec writes the first and the last instant of datetime as infinities."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=lambda instant: struct.pack("!q", (instant - EPOCH) // MICROSECOND),
        decoder=lambda octets: EPOCH + timedelta(microseconds=struct.unpack("!q", octets)[0]),
        format="binary",
    )
