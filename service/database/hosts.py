"""Several hosts in DATABASE_URL: the service finds the one that accepts writes, and finds it again after a fail-over.

Each host is asked, over a connection of its own, whether it accepts writes. As long as it does, the host in use stays
in use. Once it does not, or is silent, and another one accepts writes, or once one does that was promoted later, that
one is used, and all connections to others are ended, whatever they wait for: a host that has halted, or whose machine
is gone, would keep them waiting, and one that has become read-only would go on answering reads.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import asyncpg
import structlog

from service.database.statements import ACCEPTS_WRITES
from service.supervisor import supervised

log = structlog.get_logger()

ASK_SECONDS = 0.25
SILENCE_SECONDS_MAX = 0.75  # then a host that accepted writes may be replaced

Connect = Callable[..., Coroutine[Any, Any, asyncpg.Connection]]


class Host:
    def __init__(self, name: str, port: str) -> None:
        self.place = {"host": [name], "port": [port]}
        self.name = f"{name}:{port}"
        self.asked = False
        self.accepts_writes: bool | None = None  # None: it does not answer
        self.cause = ""  # of not accepting them
        self.timeline = 0
        self._opening: set[asyncio.Timeout] = set()
        self._open: WeakSet[asyncpg.Connection] = WeakSet()

    async def connect(self, options: dict[str, Any]) -> asyncpg.Connection:
        async with asyncio.timeout(None) as limit:
            self._opening.add(limit)
            try:
                connection = await asyncpg.connect(**options | self.place)
            finally:
                self._opening.discard(limit)
        self._open.add(connection)
        if limit.when() is not None:  # the connections were ended at the moment when this one was opened
            connection.terminate()
        return connection

    def end_connections(self) -> None:
        for limit in self._opening:
            limit.reschedule(0)
        for connection in list(self._open):
            connection.terminate()


class Hosts:
    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._hosts = [Host(*place) for place in zip(options["host"], options["port"], strict=True)]
        self._in_use: Host | None = None
        self._known = asyncio.Event()  # which host to use, or that all of them were asked in vain
        self._warned = False  # of two primaries

    async def connect(self, dsn: str, **options: Any) -> asyncpg.Connection:
        """An error at once if the host in use is read-only: an outage must not flood the standbys with connections."""
        await self._known.wait()
        if not self._in_use or self._in_use.accepts_writes is False:
            causes = ", ".join(f"{host.name}: {host.cause}" for host in self._hosts)
            raise asyncpg.TargetServerAttributeNotMatched(f"No host of DATABASE_URL accepts writes ({causes}).")
        return await self._in_use.connect(options | {"dsn": dsn})

    def watches(self) -> dict[str, Callable[[], Coroutine[None, None, None]]]:
        return {f"database_host_{number}": partial(self._watch, host) for number, host in enumerate(self._hosts, 1)}

    async def _watch(self, host: Host) -> None:
        """Runs until it is cancelled."""
        while True:
            try:
                await self._ask(host)
            except Exception as error:  # whatever it is, the host cannot be used
                self._learn(host, None, type(error).__name__)
                await asyncio.sleep(ASK_SECONDS)

    async def _ask(self, host: Host) -> None:
        """Returns if a connection is lost over which the host has answered; another one will tell more."""
        limit = {"timeout": SILENCE_SECONDS_MAX} if host.accepts_writes else {}
        answered = False
        connection = await asyncpg.connect(**self._options | host.place | limit, target_session_attrs="any")
        try:
            while True:
                row = await connection.fetchrow(ACCEPTS_WRITES.text, timeout=SILENCE_SECONDS_MAX)
                answered, host.timeline = True, row["timeline"]
                self._learn(host, row["accepts_writes"], "read-only")
                await asyncio.sleep(ASK_SECONDS)
        except Exception as error:
            if not answered or isinstance(error, TimeoutError):
                raise
        finally:
            connection.terminate()

    def _learn(self, host: Host, accepts_writes: bool | None, otherwise: str) -> None:
        if host.accepts_writes and not accepts_writes:
            log.warning("database host accepts no writes", host=host.name, cause=otherwise)
        host.asked, host.accepts_writes, host.cause = True, accepts_writes, otherwise
        if self._known.is_set() or all(host.asked for host in self._hosts):
            self._choose()
        elif accepts_writes:  # one that has not answered yet may have been promoted later
            asyncio.get_running_loop().call_later(SILENCE_SECONDS_MAX, self._choose)

    def _choose(self) -> None:
        self._known.set()
        primaries = [host for host in self._hosts if host.accepts_writes]
        if not primaries:
            return
        newest, current = max(primaries, key=lambda host: host.timeline), self._in_use
        if not (current and current.accepts_writes and current.timeline >= newest.timeline):
            if newest is not current:
                log.info("database host in use", host=newest.name)
            self._in_use = newest
            for other in self._hosts:
                if other is not newest:
                    other.end_connections()
        older = [host.name for host in primaries if host.timeline < newest.timeline]
        if older and not self._warned:
            log.warning("an old primary accepts writes; end it", hosts=older)
        self._warned = bool(older)


SHARED: dict[tuple[str, ...], Hosts] = {}  # by hosts and ports; among all pools and the lane of a process


@asynccontextmanager
async def connecting(options: dict[str, Any]) -> AsyncIterator[Connect]:
    """Yields a function that opens connections with these arguments of asyncpg.connect. The first to enter watches the
    hosts, and must be the last to leave."""
    names = options.get("host", [])
    key = *names, *options.get("port", [])
    if len(names) < 2:
        yield asyncpg.connect
    elif key in SHARED:
        yield SHARED[key].connect
    else:
        hosts = SHARED[key] = Hosts(options)
        try:
            async with supervised(**hosts.watches()):
                yield hosts.connect
        finally:
            del SHARED[key]
