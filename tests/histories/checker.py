"""A linearizability checker: is there a sequential order of the clients' calls that explains every answer?

A call takes effect at one instant between its begin and its end. A call without an answer may have taken effect at any
time since it began, or never. The search is Wing and Gong's ("Testing and verifying concurrent objects", 1993) with
Lowe's memory of visited configurations ("Testing for linearizability", 2017). Each organisation is checked separately,
since organisations do not affect each other. The sequential specification is the model of tests/model.
"""

from collections.abc import Iterable, Mapping
from math import inf
from typing import Literal, NamedTuple

from service.contract.body import Appointment
from tests.model.model import Accepted, accepted, decide

Reading = Literal["list", "changes"]
# A verdict, the active appointments in list order, or all changes in commit order.
Answer = str | tuple[Accepted, ...]


class Call(NamedTuple):
    """`began` and `ended` are seconds on the same clock; `ended` is infinite for a call without an answer."""

    request: Appointment | Reading
    answer: Answer | None
    began: float
    ended: float = inf


class State(NamedTuple):
    """The accepted changes of an organisation, in order, and the current version of each of its appointments."""

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


def find_violation(calls: Iterable[Call]) -> list[Call]:
    """Empty if the calls are linearizable. Otherwise the calls at which the longest order that was found got stuck: one
    of them had to be next, and none could be."""
    return Search(calls).run()


class Search:
    """`done` is a set of calls as a bit mask. Calls with an answer come first, then writes without one."""

    def __init__(self, calls: Iterable[Call]) -> None:
        ordered = sorted(calls, key=lambda call: call.began)
        self._answered = [call for call in ordered if call.answer is not None]
        unanswered = [call for call in ordered if call.answer is None and isinstance(call.request, Appointment)]
        self._calls = self._answered + unanswered
        self._all_answered = (1 << len(self._answered)) - 1
        self._unanswered = range(len(self._answered), len(self._calls))
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
        """The answered calls that may come next: they began before any other remaining call had ended."""
        places, horizon = [], inf
        place = (~done & (done + 1)).bit_length() - 1
        while place < len(self._answered) and self._answered[place].began <= horizon:
            if not done >> place & 1:
                places.append(place)
                horizon = min(horizon, self._answered[place].ended)
            place += 1
        return places

    def _settle(self, done: int, state: State) -> int:
        """Adds calls that change nothing and have the right answer: a call that could come later can come now."""
        before = -1
        while done != before:
            before = done
            for place in self._next(done):
                answer, after = state.apply(self._calls[place].request)
                if after is state and answer == self._calls[place].answer:
                    done |= 1 << place
        return done

    def _accept(self, done: int, state: State) -> list[tuple[int, State]]:
        """Every continuation by an accepted write."""
        continuations = []
        horizon = min((self._calls[place].ended for place in self._next(done)), default=inf)
        unanswered = [
            place for place in self._unanswered if not done >> place & 1 and self._calls[place].began <= horizon
        ]
        candidates = self._candidates(done, len(state.changes))
        for place in unanswered + self._next(done):
            call = self._calls[place]
            if candidates is None or call.request in candidates:
                answer, after = state.apply(call.request)
                if after is not state and call.answer in (None, answer):
                    continuations.append((done | 1 << place, after))
        return continuations

    def _candidates(self, done: int, accepted_so_far: int) -> list[Appointment] | None:
        """The next change according to the remaining reads of the changes; None if there are no such reads."""
        answers = [self._answered[place].answer for place in self._feeds if not done >> place & 1]
        feeds = [feed for feed in answers if isinstance(feed, tuple)]
        if not feeds:
            return None
        seen = {feed[accepted_so_far].appointment for feed in feeds if accepted_so_far < len(feed)}
        agreed = len(seen) == 1 and all(accepted_so_far < len(feed) for feed in feeds)
        return list(seen) if agreed else []
