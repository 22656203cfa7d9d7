"""Hot standbys that answer reads, as long as they are at most READ_LAG_MS_MAX behind the primary.

    positions (primary) ─┬─ Standby: polled ten times a second; pools while it answers
                         └─ Standby …                Replicas.choose: the fresh ones take turns

No request fails because of a standby: whatever is wrong with it, the primary is asked (reading/source.py).
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import inf
from time import monotonic
from typing import NamedTuple

import structlog
from msgspec.structs import replace

from service import metrics
from service.database import schema
from service.database.connection import open_connection
from service.database.pool import Database
from service.database.positions import PrimaryPositions, Row, keep_trying, poll
from service.database.statements import REPLAY_POSITION
from service.database_url import each_host, place_of
from service.settings import Settings
from service.supervisor import supervised

log = structlog.get_logger()

USED = ""  # no reason against it
LOG_SECONDS = 1  # between two lines on a standby, whose lag may be about the limit; `_judge` is called again and again


class Server(NamedTuple):
    """A server that reads go to: its pools."""

    database: Database
    stream_database: Database


OpenServer = Callable[[Settings], AbstractAsyncContextManager[Server]]


class Standby:
    def __init__(self, settings: Settings, open_server: OpenServer, positions: PrimaryPositions) -> None:
        """`settings` are those of the service, with the URL of the standby."""
        self.name = place_of(settings.database_url)
        self.server: Server | None = None  # while it is connected
        self.as_of = -inf  # it has every change that was visible at this moment; -inf while it is not connected
        self._settings, self._open_server, self._positions = settings, open_server, positions
        self._lag_seconds_max = settings.read_lag_ms_max / 1e3
        self._reason, self._logged_at = "not connected yet", -inf
        self._seen: tuple[Row, float] | None = None  # on this connection: its last position, when it was seen
        self._has_other_history = False

    async def follow(self) -> None:
        """Runs until it is cancelled."""
        await keep_trying(self._connected, self._judge)

    def lag_seconds(self) -> float:
        return monotonic() - self.as_of

    async def _connected(self) -> None:
        """If the connection that is polled fails, the others are ended too: reads in progress go to the primary at
        once, and a server that has been restarted, hence may have gone back, is judged anew."""
        async with (
            open_connection(self._settings, lock_ms_max=0, on_close=self._drop) as connection,
            self._open_server(self._settings) as server,
        ):
            if pending := await schema.pending(server.database):
                self._judge(f"it lacks {', '.join(pending)}")
                return
            self.server, self._seen, self._has_other_history = server, None, False
            try:
                await poll(connection, REPLAY_POSITION, self._see)
            finally:
                self._drop()

    def _drop(self) -> None:
        server, self.server, self.as_of = self.server, None, -inf
        if server:
            server.database.terminate()
            server.stream_database.terminate()

    def _see(self, row: Row, _: float) -> None:
        self.as_of, reason = self._positions.moment_of(row)
        if self._has_other_history or (self._seen and self._positions.lacks(*self._seen)):
            self._has_other_history = True  # even when the primary gets as far
            self.as_of, reason = -inf, "it is ahead of the primary"
        self._seen = row, monotonic()
        self._judge(USED if self.lag_seconds() < self._lag_seconds_max else reason)

    def _judge(self, reason: str) -> None:
        if reason != self._reason and monotonic() - self._logged_at > LOG_SECONDS:
            self._reason, self._logged_at = reason, monotonic()
            if reason == USED:
                log.info("standby used", standby=self.name)
            else:
                log.warning("standby not used", standby=self.name, reason=reason)


class Replicas:
    def __init__(self, standbys: list[Standby]) -> None:
        self._standbys = standbys
        self._turn = 0

    def choose(self, lag_seconds_max: float) -> Server | None:
        """A standby that is less than this behind; they take turns. None: the primary."""
        oldest = monotonic() - lag_seconds_max
        fresh = [standby.server for standby in self._standbys if standby.as_of > oldest]
        self._turn += 1
        return fresh[self._turn % len(fresh)] if fresh else None


@asynccontextmanager
async def open_replicas(settings: Settings, open_server: OpenServer) -> AsyncIterator[Replicas | None]:
    """None without a READ_DATABASE_URL. Standbys are connected to in the background."""
    if not settings.read_database_url:
        yield None
        return
    positions = PrimaryPositions(settings)
    urls = each_host(settings.read_database_url)
    standbys = [Standby(replace(settings, database_url=url), open_server, positions) for url in urls]
    works = {f"standby_{number}": standby.follow for number, standby in enumerate(standbys, start=1)}
    lags = {metrics.STANDBY_LAG_SECONDS.labels(standby.name): standby.lag_seconds for standby in standbys}
    async with supervised(primary_positions=positions.sample, lags=lambda: metrics.sample(lags), **works):
        yield Replicas(standbys)
