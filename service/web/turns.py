"""Turns: connections that rest until each of them is read again, a few in each round of the event loop."""

from asyncio import get_running_loop
from collections import OrderedDict
from typing import Protocol

TURNS_PER_ROUND = 32  # connections; O2 was 0.93 with 32, 1.02 with 16 (but half the refusals), 0.83 with 64


class Resting(Protocol):
    """A connection, as far as its turn is concerned."""

    def take_turn(self) -> None: ...


class Turns:
    def __init__(self) -> None:
        self.resting: OrderedDict[Resting, None] = OrderedDict()
        self._scheduled = False

    def wait(self, connection: Resting) -> None:
        """Has `take_turn` called once, after those of all connections that are resting already."""
        self.resting[connection] = None
        self._schedule()

    def forget(self, connection: Resting) -> None:
        self.resting.pop(connection, None)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        self._scheduled = False
        turns = min(TURNS_PER_ROUND, len(self.resting))
        if len(self.resting) > turns:
            self._schedule()
        for _ in range(turns):
            connection, _none = self.resting.popitem(last=False)
            connection.take_turn()
