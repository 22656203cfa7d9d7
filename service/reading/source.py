"""Where a request reads: on a standby that is fresh enough for it, otherwise on the primary."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import structlog
from starlette.types import Scope

from service.contract.headers import seconds_old_max
from service.contract.parameters import ROWS_MAX
from service.database.replicas import Replicas, Server
from service.database.statements import Statement
from service.metrics import READS
from service.reading.formats import Rows

log = structlog.get_logger()

CLOCKS_SECONDS = 60  # by which the clocks of the service and the database differ at most

Answer = TypeVar("Answer")


class Source:
    """Of one request. It stays with one standby, which never goes back, until that fails or is too old for the client;
    from then on with the primary. So what a request reads later is never older than what it read before."""

    def __init__(self, scope: Scope, *, standby: bool = True) -> None:
        state = scope["state"]
        self._primary: Server = state["primary"]
        self._standby: Server | None = None
        replicas: Replicas | None = state["replicas"]
        if replicas:
            if standby:
                lag_seconds_max = min(state["settings"].read_lag_ms_max / 1e3, seconds_old_max(scope))
                self._standby = replicas.choose(lag_seconds_max)
            READS["standby" if self._standby else "primary"].inc()

    def ask_primary(self) -> bool:
        """From now on. Returns whether a standby was asked before."""
        if self._standby is None:
            return False
        self._standby = None
        READS["primary"].inc()
        return True

    async def fetch(self, statement: Statement, *arguments: object) -> Rows:
        return await self._ask(lambda server: server.database.fetch(statement, *arguments))

    @asynccontextmanager
    async def stream(self, statement: Statement, *arguments: object) -> AsyncIterator[tuple[Rows, Any]]:
        """The first rows, and a cursor for more of the same snapshot."""
        async with AsyncExitStack() as stack:
            yield await self._ask(lambda server: open_stream(stack, server, statement, arguments))

    async def _ask(self, call: Callable[[Server], Awaitable[Answer]]) -> Answer:
        """Whatever goes wrong on a standby, the primary is asked: nothing has been sent yet."""
        if self._standby:
            try:
                return await call(self._standby)
            except Exception as error:
                log.warning("standby failed, the primary is asked", cause=type(error).__name__)
                self.ask_primary()
        return await call(self._primary)


def may_lag(scope: Scope, cursor: object, as_of: datetime | None = None) -> bool:
    """Whether a standby may answer. The state as of an instant long ago is the same everywhere. A later page of any
    other list must not be older than the page before, or rows could be missing from both."""
    if as_of:
        settings = scope["state"]["settings"]
        longest_write = timedelta(milliseconds=settings.statement_ms_max)
        lag = timedelta(milliseconds=settings.read_lag_ms_max, seconds=CLOCKS_SECONDS)
        return as_of < datetime.now(UTC) - longest_write - lag
    return cursor is None


async def open_stream(
    stack: AsyncExitStack, server: Server, statement: Statement, arguments: tuple[object, ...]
) -> tuple[Rows, Any]:
    async with AsyncExitStack() as opened:
        connection = await opened.enter_async_context(server.stream_database.connection())
        cursor = await opened.enter_async_context(connection.cursor(statement, *arguments))
        rows = await cursor.fetch(ROWS_MAX)
        stack.push_async_exit(opened.pop_all())
    return rows, cursor
