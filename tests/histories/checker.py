"""Whether some order of the calls of many clients explains all their answers (linearizability).

A call takes effect at one instant between its begin and its end; one without an answer may have taken
effect at any time since it began, or never. The search is that of Wing and Gong ("Testing and verifying
concurrent objects", 1993) with Lowe's memory of what was tried ("Testing for linearizability", 2017), for
one organisation at a time, since organisations do not touch each other. What an order must agree with is
the model of tests/model.
"""

from collections.abc import Iterable, Mapping
from math import inf
from typing import Literal, NamedTuple

from service.contract.body import Appointment
from tests.model.model import Accepted, accepted, decide

Reading = Literal["list", "changes"]
# A verdict; the active appointments in the order of the list; all changes in theirs.
Answer = str | tuple[Accepted, ...]


class Call(NamedTuple):
    """`began` and `ended` are seconds of one clock; a call without an answer never ended."""

    request: Appointment | Reading
    answer: Answer | None
    began: float
    ended: float = inf


class State(NamedTuple):
    """What an organisation has accepted, in order, and what it holds thereby."""

    changes: tuple[Accepted, ...] = ()
    held: Mapping[str, Accepted] = {}

    def apply(self, request: Appointment | Reading) -> tuple[Answer, "State"]:
        if request == "changes":
            return self.changes, self
        if request == "list":
            active = (each for each in self.held.values() if not each.appointment.cancelled)
            return tuple(sorted(active, key=lambda each: (each.appointment.start, each.appointment.id))), self
        verdict = decide(self.held, request)
        if verdict != "ok":
            return verdict, self
        new = accepted(self.held, request)
        return verdict, State((*self.changes, new), {**self.held, request.id: new})


def unexplained(calls: Iterable[Call]) -> list[Call]:
    """Where the order that comes furthest fails: calls of which one had to be next, and none can. Empty if
    an order explains all of them."""
    return Search(calls).run()


class Search:
    """`done` is a set of calls, a bit each: those with an answer come first, then writes without."""

    def __init__(self, calls: Iterable[Call]) -> None:
        ordered = sorted(calls, key=lambda call: call.began)
        self._answered = [call for call in ordered if call.answer is not None]
        doubtful = [call for call in ordered if call.answer is None and isinstance(call.request, Appointment)]
        self._calls = self._answered + doubtful
        self._all_answered = (1 << len(self._answered)) - 1
        self._doubtful = range(len(self._answered), len(self._calls))
        self._feeds = [place for place, call in enumerate(self._answered) if call.request == "changes"]

    def run(self) -> list[Call]:
        stack: list[tuple[int, State]] = [(0, State())]
        seen: set[tuple[int, int]] = set()
        logs: dict[tuple[Accepted, ...], int] = {}
        furthest, stuck = -1, list[Call]()
        while stack:
            done, state = stack.pop()
            done = self._settle(done, state)
            if done & self._all_answered == self._all_answered:
                return []
            key = done, logs.setdefault(state.changes, len(logs))
            if key in seen:
                continue
            seen.add(key)
            if done.bit_count() > furthest:
                furthest, stuck = done.bit_count(), [self._calls[place] for place in self._next(done)]
            stack += self._accept(done, state)
        return stuck

    def _next(self, done: int) -> list[int]:
        """The calls with an answer that may come next: none that is not done ended before they began."""
        places, horizon = [], inf
        place = (~done & (done + 1)).bit_length() - 1
        while place < len(self._answered) and self._answered[place].began <= horizon:
            if not done >> place & 1:
                places.append(place)
                horizon = min(horizon, self._answered[place].ended)
            place += 1
        return places

    def _settle(self, done: int, state: State) -> int:
        """Does what changes nothing and has the right answer: if it can come later, it can come now."""
        before = -1
        while done != before:
            before = done
            for place in self._next(done):
                answer, after = state.apply(self._calls[place].request)
                if after is state and answer == self._calls[place].answer:
                    done |= 1 << place
        return done

    def _accept(self, done: int, state: State) -> list[tuple[int, State]]:
        """Every way to go on with a write that is accepted."""
        ways = []
        horizon = min((self._calls[place].ended for place in self._next(done)), default=inf)
        doubtful = [place for place in self._doubtful if not done >> place & 1 and self._calls[place].began <= horizon]
        wanted = self._wanted(done, len(state.changes))
        for place in doubtful + self._next(done):
            call = self._calls[place]
            if wanted is None or call.request in wanted:
                answer, after = state.apply(call.request)
                if after is not state and call.answer in (None, answer):
                    ways.append((done | 1 << place, after))
        return ways

    def _wanted(self, done: int, accepted_so_far: int) -> list[Appointment] | None:
        """What readers of changes will have seen as the next one; None if any will do."""
        rest = [self._answered[place].answer for place in self._feeds if not done >> place & 1]
        feeds = [feed for feed in rest if isinstance(feed, tuple)]
        if not feeds:
            return None
        seen = {feed[accepted_so_far].appointment for feed in feeds if accepted_so_far < len(feed)}
        agreed = len(seen) == 1 and all(accepted_so_far < len(feed) for feed in feeds)
        return list(seen) if agreed else []
