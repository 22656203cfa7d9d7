"""Places for streams, each of which holds a database connection: shared fairly between organisations.

A free place goes to the waiting organisation with the fewest streams, of several to the one whose turn is longest ago,
and the last one only to an organisation without any. While a request waits, a slow reader is cut: one that has not
taken a portion of its list for GRACE_SECONDS.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from service.database import pool
from service.problems import ProblemError

GRACE_SECONDS = 3  # to take a portion of 1,000 rows, while others wait for a place
CHECK_SECONDS = 0.5  # by each request that waits
WAITS_MAX = 3  # a place is waited for 3 times as long as a connection for other reads: longer than GRACE_SECONDS


class StreamPlace:
    def __init__(self, organisation: str) -> None:
        self.organisation = organisation
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sending_since: float | None = None  # of a portion that the client has not taken yet
        self.limit: asyncio.Timeout | None = None  # of the stream
        self.is_cut = False

    def cut(self) -> None:
        """Makes the stream raise TimeoutError."""
        if self.limit:
            self.is_cut = True
            self.limit.reschedule(asyncio.get_running_loop().time())

    def is_slow(self) -> bool:
        since = self.sending_since
        return not self.is_cut and since is not None and monotonic() - since > GRACE_SECONDS


class StreamPlaces:
    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: list[StreamPlace] = []
        self._waiting: list[StreamPlace] = []  # in order of arrival

    @asynccontextmanager
    async def place(self, organisation: str) -> AsyncIterator[StreamPlace]:
        """Raises ProblemError, a 503, if no place becomes free in time."""
        if len(self._waiting) >= pool.POOL_WAITING_MAX:
            raise ProblemError("OVERLOADED", "Too many requests are waiting to read a long list.")
        place = StreamPlace(organisation)
        self._waiting.append(place)
        try:
            self._grant()
            await self._wait(place)
            yield place
        finally:
            if place in self._taken:
                self._taken.remove(place)
                self._waiting.sort(key=lambda each: each.organisation == organisation)  # behind all others
            else:
                self._waiting.remove(place)
            self._grant()

    async def _wait(self, place: StreamPlace) -> None:
        deadline = monotonic() + WAITS_MAX * pool.POOL_WAIT_MS_MAX / 1e3
        while not place.granted.done():
            if monotonic() > deadline:
                raise ProblemError("OVERLOADED", "Too many long lists are being read.")
            self._cut_slowest_for(place.organisation)
            await asyncio.wait({place.granted}, timeout=CHECK_SECONDS)

    def _streams_of(self, organisation: str) -> int:
        return sum(place.organisation == organisation for place in self._taken)

    def _grant(self) -> None:
        while self._waiting and len(self._taken) < self._count:
            place = min(self._waiting, key=lambda each: self._streams_of(each.organisation))
            if len(self._taken) == self._count - 1 and self._streams_of(place.organisation):
                break
            self._waiting.remove(place)
            self._taken.append(place)
            place.granted.set_result(None)

    def _cut_slowest_for(self, organisation: str) -> None:
        """One stream for each request that waits, of an organisation that has more streams than the waiting one, or of
        the same; first of the one with most streams."""
        if sum(place.is_cut for place in self._taken) >= len(self._waiting):
            return
        own = self._streams_of(organisation)
        slow = [
            place
            for place in self._taken
            if place.is_slow() and (place.organisation == organisation or self._streams_of(place.organisation) > own)
        ]
        if slow:
            min(slow, key=lambda each: (-self._streams_of(each.organisation), each.sending_since)).cut()
