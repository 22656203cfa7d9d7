"""Connections to PostgreSQL: how they are opened, and how they run statements."""

import json
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any

import asyncpg
import structlog

from service import metrics
from service.database.hosts import connecting
from service.database.statements import SET_SESSION, Statement
from service.database_url import for_asyncpg
from service.settings import Settings

log = structlog.get_logger()

CONNECT_MS_MAX = 5_000
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL's timestamptz
MICROSECOND = timedelta(microseconds=1)

STARTUP = {"application_name": "appointments", "timezone": "UTC"}  # which PgBouncer accepts, too
# Every statement has one generic plan that is right for all parameters (tests/plans); planning each call anew would
# double the cost of a small read. JIT pays only for long statements.
SESSION = {"default_transaction_isolation": "read committed", "plan_cache_mode": "force_generic_plan", "jit": "off"}
# Where the tables are distributed, Citus fails on generic plans, and its own test of every type that asyncpg looks up
# takes seconds.
ON_CITUS = {"plan_cache_mode": "auto", "citus.override_table_visibility": "off"}


class Connection:
    """A connection, used by one task at a time. Statements are timed; slow ones are logged."""

    def __init__(self, connection: Any, slow_seconds: float) -> None:
        self._connection = connection
        self._slow_seconds = slow_seconds

    async def fetch(self, statement: Statement, *arguments: object) -> list[asyncpg.Record]:
        """Runs a prepared statement; asyncpg keeps it prepared for the life of the connection."""
        with self._timed(statement):
            rows: list[asyncpg.Record] = await self._connection.fetch(statement.text, *arguments)
            return rows

    async def fetch_many(self, statement: Statement, calls: Sequence[tuple[object, ...]]) -> list[asyncpg.Record]:
        """Runs several calls of a statement in one round trip; the rows come in the order of the calls.
        Outside a transaction they commit together, and one error undoes all of them."""
        if len(calls) == 1:  # a pipeline of one call is slower
            return await self.fetch(statement, *calls[0])
        with self._timed(statement):
            rows: list[asyncpg.Record] = await self._connection.fetchmany(statement.text, calls)
            return rows

    @asynccontextmanager
    async def cursor(self, statement: Statement, *arguments: object) -> AsyncIterator[Any]:
        """Opens a statement whose rows are fetched in portions, all from one snapshot."""
        async with self._connection.transaction():
            with self._timed(statement):
                cursor = await self._connection.cursor(statement.text, *arguments)
            yield cursor

    def transaction(self) -> Any:
        return self._connection.transaction()

    def is_closed(self) -> bool:
        return bool(self._connection.is_closed())

    @contextmanager
    def _timed(self, statement: Statement) -> Iterator[None]:
        """Includes the round trip; for a pipeline it is the time of all its calls."""
        started = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - started
            metrics.statement_seconds(statement.name).observe(seconds)
            if seconds > self._slow_seconds:
                log.warning("slow statement", statement=statement.name, ms=round(seconds * 1e3, 1))


@asynccontextmanager
async def open_connection(
    settings: Settings, lock_ms_max: int, on_close: Callable[[], None]
) -> AsyncIterator[Connection]:
    """A connection outside the pool; `on_close` is called when it is lost."""
    options = connect_options(settings)
    async with connecting(options) as connect:
        connection = await connect(**options)
        try:
            connection.add_termination_listener(lambda _: on_close())
            await set_up(connection, session_parameters(settings, lock_ms_max))
            yield Connection(connection, settings.statement_slow_ms / 1e3)
        finally:
            connection.terminate()


def connect_options(settings: Settings) -> dict[str, Any]:
    given = for_asyncpg(settings.database_url)
    return {
        "max_cached_statement_lifetime": 0,
        "timeout": CONNECT_MS_MAX / 1e3,
        # Later than the server's own timeout, whose error confirms that nothing was written.
        "command_timeout": settings.statement_ms_max / 1e3 + 1,
        **given,
        "server_settings": STARTUP | given["server_settings"],
    }


def session_parameters(
    settings: Settings, lock_ms_max: int, transaction_ms_max: int = 0, *, distributed: bool = False
) -> dict[str, str]:
    """The parameters of a session. A transaction's limit is a statement's unless one is given."""
    return (
        SESSION
        | (ON_CITUS if distributed else {})
        | {
            "statement_timeout": str(settings.statement_ms_max),
            "lock_timeout": str(lock_ms_max),
            "transaction_timeout": str(transaction_ms_max or settings.statement_ms_max),
        }
    )


async def set_up(connection: asyncpg.Connection, parameters: dict[str, str]) -> None:
    if connection.get_server_version().major < 17:  # the first with a transaction_timeout
        parameters = {name: value for name, value in parameters.items() if name != "transaction_timeout"}
    await connection.fetch(SET_SESSION.text, json.dumps(parameters))
    await set_instant_codec(connection)


async def set_instant_codec(connection: asyncpg.Connection) -> None:
    """asyncpg's own codec encodes the first and the last instant of datetime as infinities."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=lambda instant: struct.pack("!q", (instant - EPOCH) // MICROSECOND),
        decoder=lambda octets: EPOCH + timedelta(microseconds=struct.unpack("!q", octets)[0]),
        format="binary",
    )
