"""Turns of database calls: a few at a time, first come, first served.

Where the tables are distributed, one server may not answer while the others do. The calls that wait for it would soon
hold every turn, each until STATEMENT_MS_MAX. So a late call gives up its turn, and the calls of one bucket have at
most a third of the turns, as none of them is late yet when its server halts.
"""

import asyncio
from collections import defaultdict

LATE_SECONDS = 0.5


class Turns:
    """`count` calls at a time, and beside them up to `late_max` late ones; 0: a late call keeps its turn."""

    def __init__(self, count: int, late_max: int = 0) -> None:
        self.count = count
        self.free = asyncio.Semaphore(count)
        self.late_max = late_max
        self.late = 0
        share = max(1, count // 3)
        self._of_bucket: defaultdict[object, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(share))

    async def take(self, bucket: object = None) -> "Turn":
        """`bucket` is that of all rows of the call, if there is one."""
        share = self._of_bucket[bucket] if self.late_max and bucket is not None else None
        if share:
            await share.acquire()
        try:
            await self.free.acquire()
        except BaseException:
            if share:
                share.release()
            raise
        return Turn(self, share)


class Turn:
    __slots__ = ("_share", "_timer", "_turns", "is_late")

    def __init__(self, turns: Turns, share: asyncio.Semaphore | None) -> None:
        self._turns, self._share, self.is_late = turns, share, False
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LATE_SECONDS, self._give_up) if turns.late_max else None

    def _give_up(self) -> None:
        if self._turns.late < self._turns.late_max:
            self._turns.late += 1
            self.is_late = True
            self._turns.free.release()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self.is_late:
            self._turns.late -= 1
        else:
            self._turns.free.release()
        if self._share:
            self._share.release()
