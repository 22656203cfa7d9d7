"""The pool of connections, and how its failures become answers."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import Any

import asyncpg
import structlog

from service import metrics
from service.problems import ProblemError
from service.settings import Settings
from service.statements import LIMIT_TRANSACTIONS, Statement

log = structlog.get_logger()

# SQLSTATE classes that say "not now" and nothing of the request: connection, read only, authorization,
# no database, rollback, no right or no table (grants or migrations were taken back), resources, not in the
# state for it (a lock not available, a database that takes no connections), operator intervention (timeouts
# too), system.
UNAVAILABLE = ("08", "25006", "28", "3D000", "40", "42501", "42P01", "53", "55", "57", "58")
BROKEN = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)  # OSError: timeouts too
UNKNOWN = "The database does not answer. A write may have happened; sending it again is safe."
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL's timestamptz
CLOSE_SECONDS_MAX = 1
TRANSACTION_TIMEOUT_SINCE = 17  # the version of PostgreSQL
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
    """A connection, held by one task at a time. Statements are timed and, if slow, logged."""

    def __init__(self, connection: Any, slow_seconds: float) -> None:
        self._connection = connection
        self._slow_seconds = slow_seconds

    async def fetch(self, statement: Statement, *arguments: object) -> list[asyncpg.Record]:
        """Runs a statement as a prepared one; asyncpg keeps it prepared for the connection's life."""
        with timed(statement, self._slow_seconds):
            rows: list[asyncpg.Record] = await self._connection.fetch(statement.text, *arguments)
            return rows

    async def fetch_many(self, statement: Statement, calls: Sequence[tuple[object, ...]]) -> list[asyncpg.Record]:
        """Runs a statement several times in one round trip; the rows come in the order of the calls.
        Outside a transaction all are committed together, and one error undoes them all."""
        if len(calls) == 1:  # a pipeline of one takes longer
            return await self.fetch(statement, *calls[0])
        with timed(statement, self._slow_seconds):
            rows: list[asyncpg.Record] = await self._connection.fetchmany(statement.text, calls)
            return rows

    @asynccontextmanager
    async def cursor(self, statement: Statement, *arguments: object) -> AsyncIterator[Any]:
        """Opens a statement whose rows are fetched as they are wanted, all of one snapshot."""
        async with self._connection.transaction():
            with timed(statement, self._slow_seconds):
                cursor = await self._connection.cursor(statement.text, *arguments)
            yield cursor

    def transaction(self) -> Any:
        return self._connection.transaction()

    def is_closed(self) -> bool:
        return bool(self._connection.is_closed())


@contextmanager
def timed(statement: Statement, slow_seconds: float) -> Iterator[None]:
    """The way to the database and back is in it; for a pipeline it is the time of all."""
    started = perf_counter()
    try:
        yield
    finally:
        seconds = perf_counter() - started
        metrics.statement_seconds(statement.name).observe(seconds)
        if seconds > slow_seconds:
            log.warning("slow statement", statement=statement.name, ms=round(seconds * 1e3, 1))


class Database:
    """Raises ProblemError, a 503, when the database cannot answer; other errors of it pass."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self.pool = pool
        self._turns = asyncio.Semaphore(pool.get_max_size())
        self._waiting = 0
        self._waiting_max = settings.pool_waiting_max
        self._wait_seconds = settings.pool_wait_ms_max / 1e3
        self._slow_seconds = settings.statement_slow_ms / 1e3

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        try:
            connection = await self._acquire()
            try:
                yield Connection(connection, self._slow_seconds)
            except BROKEN:
                connection.terminate()  # or the pool would hand out again what the server has ended
                raise
            finally:
                await self._release(connection)
        except (*BROKEN, asyncpg.PostgresError) as error:
            if not unavailable(error):
                raise
            log.warning("database unavailable", cause=type(error).__name__)
            raise ProblemError("DATABASE_UNAVAILABLE", UNKNOWN) from error

    def waiting(self) -> int:
        """Requests without a connection yet."""
        return self._waiting

    async def _acquire(self) -> Any:
        """First come, first served; the pool alone would serve whoever asks as a connection comes back."""
        if self._waiting >= self._waiting_max:
            raise ProblemError("OVERLOADED", "Too many requests wait for a connection to the database.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._turns.acquire()
                try:
                    return await self.pool.acquire()
                except BaseException:
                    self._turns.release()
                    raise
        except TimeoutError:
            if self.pool.get_size() < self.pool.get_max_size():
                raise  # a new one was not to be had either
            detail = "No connection to the database came free in time; nothing was written."
            raise ProblemError("OVERLOADED", detail) from None
        finally:
            self._waiting -= 1

    async def _release(self, connection: Any) -> None:
        try:
            await self.pool.release(connection)
        finally:
            self._turns.release()

    async def fetch(self, statement: Statement, *arguments: object) -> list[asyncpg.Record]:
        async with self.connection() as connection:
            return await connection.fetch(statement, *arguments)


def unavailable(error: Exception) -> bool:
    """Whether the database is to blame; asyncpg's DataError would be a wrong argument of ours."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "08").startswith(UNAVAILABLE)
    return not isinstance(error, ValueError)


def undecided(error: Exception) -> bool:
    """Whether the database took everything back for a reason that lies in what was sent, to break a tie,
    or because another session holds a row of it; then it may be tried otherwise."""
    state = error.sqlstate or "" if isinstance(error, asyncpg.PostgresError) else ""
    return state.startswith(("40", "55P03")) or not unavailable(error)


@asynccontextmanager
async def open_database(
    settings: Settings, lock_ms_max: int = 0, transaction_ms_max: int | None = None
) -> AsyncIterator[Database]:
    """`lock_ms_max` limits the wait for a lock; 0: only the statement's time is limited. A transaction may take
    as long as a statement, unless it is given more."""
    pool = await asyncpg.create_pool(
        min_size=1,
        max_size=settings.pool_connections_max,
        max_inactive_connection_lifetime=0,
        init=partial(set_up, transaction_ms_max=transaction_ms_max or settings.statement_ms_max),
        reset=keep_session,
        **connect_options(settings, lock_ms_max),
    )
    try:
        yield Database(pool, settings)
    finally:
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await pool.close()
        except TimeoutError:  # a database that does not answer holds nobody back
            pool.terminate()


@asynccontextmanager
async def open_connection(
    settings: Settings, lock_ms_max: int, on_close: Callable[[], None]
) -> AsyncIterator[Connection]:
    """A connection outside the pool, for one owner, who is told when it is lost."""
    connection = await asyncpg.connect(**connect_options(settings, lock_ms_max))
    try:
        connection.add_termination_listener(lambda _: on_close())
        await set_up(connection, settings.statement_ms_max)
        yield Connection(connection, settings.statement_slow_ms / 1e3)
    finally:
        connection.terminate()


def connect_options(settings: Settings, lock_ms_max: int) -> dict[str, Any]:
    limits = {"statement_timeout": str(settings.statement_ms_max), "lock_timeout": str(lock_ms_max)}
    return {
        "dsn": settings.database_url,
        "max_cached_statement_lifetime": 0,
        "timeout": settings.connect_ms_max / 1e3,
        # The server's own timeout comes first: then it is known that nothing was written.
        "command_timeout": settings.statement_ms_max / 1e3 + 1,
        "server_settings": SESSION | limits,
    }


async def set_up(connection: asyncpg.Connection, transaction_ms_max: int) -> None:
    await set_instant_codec(connection)
    if connection.get_server_version().major >= TRANSACTION_TIMEOUT_SINCE:
        await connection.fetchval(LIMIT_TRANSACTIONS.text, f"{transaction_ms_max} ms")


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
