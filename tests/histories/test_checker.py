"""The checker says yes to every history that an order explains, and no to planted faults."""

from datetime import UTC, datetime, timedelta
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.body import Appointment
from tests.histories.checker import Answer, Call, Reading, State, unexplained
from tests.model.model import Accepted

DAY = datetime(2020, 10, 10, tzinfo=UTC)


def appointment(name: str, hour: int, updated: int = 0, *, hours: int = 1, cancelled: bool = False) -> Appointment:
    start = DAY + timedelta(hours=hour)
    return Appointment(
        id=name,
        org_id="o",
        start=start,
        end=start + timedelta(hours=hours),
        created_at=DAY,
        updated_at=DAY + timedelta(seconds=updated),
        cancelled=cancelled,
    )


A, A_LATER, A_MOVED = appointment("a", 1), appointment("a", 1, 1), appointment("a", 3, 1)
A_GONE = appointment("a", 1, 1, cancelled=True)
B, B_BESIDE, B_ON_A = appointment("b", 5), appointment("b", 2), appointment("b", 1)

EXPLAINED: dict[str, list[Call]] = {
    "nothing": [],
    "one after another": [Call(A, "ok", 0, 1), Call(A, "ignored-stale", 2, 3), Call(B_BESIDE, "ok", 4, 5)],
    "one of two that overlap, the first": [Call(A, "ok", 0, 9), Call(B_ON_A, "conflict", 1, 2)],
    "one of two that overlap, the second": [Call(A, "conflict", 0, 9), Call(B_ON_A, "ok", 1, 2)],
    "the later one first": [Call(A, "ignored-stale", 0, 9), Call(A_LATER, "ok", 1, 2)],
    "one that was twice in flight": [Call(A, "ignored-stale", 0, 9), Call(A, "ok", 1, 8)],
    "a place that becomes free": [Call(A, "ok", 0, 1), Call(A_MOVED, "ok", 2, 9), Call(B_ON_A, "ok", 3, 4)],
    "a cancelled one is in nobody's way": [Call(A, "ok", 0, 1), Call(A_GONE, "ok", 2, 3), Call(B_ON_A, "ok", 4, 5)],
    "no answer, and it happened": [Call(A, None, 0), Call("list", (Accepted(A, 1),), 5, 6)],
    "no answer, and it did not happen": [Call(A, None, 0), Call("list", (), 5, 6)],
    "no answer, and it happened late": [
        Call(A, None, 0),
        Call("list", (), 5, 6),
        Call("list", (Accepted(A, 1),), 7, 8),
    ],
    "a list in the middle of a write": [
        Call(A, "ok", 0, 9),
        Call("list", (), 1, 2),
        Call("list", (Accepted(A, 1),), 3, 4),
    ],
    "changes in the order of their commits": [
        Call(A, "ok", 0, 9),
        Call(B, "ok", 1, 8),
        Call("changes", (Accepted(B, 1), Accepted(A, 1)), 10, 11),
    ],
}

PLANTED: dict[str, list[Call]] = {
    "a lost write": [Call(A, "ok", 0, 1), Call("list", (), 2, 3)],
    "a write lost from the changes": [
        Call(A, "ok", 0, 1),
        Call(B, "ok", 0, 1),
        Call("changes", (Accepted(B, 1),), 2, 3),
    ],
    "two that overlap": [Call(A, "ok", 0, 9), Call(B_ON_A, "ok", 1, 2)],
    "an equal one accepted": [Call(A, "ok", 0, 9), Call(A, "ok", 1, 8)],
    "an earlier one accepted": [Call(A_LATER, "ok", 0, 1), Call(A, "ok", 2, 3)],
    "a later one refused": [Call(A, "ok", 0, 1), Call(A_LATER, "ignored-stale", 2, 3)],
    "a conflict with nobody": [Call(A, "ok", 0, 1), Call(B_BESIDE, "conflict", 2, 3)],
    "a conflict with a cancelled one": [Call(A, "ok", 0, 1), Call(A_GONE, "ok", 2, 3), Call(B_ON_A, "conflict", 4, 5)],
    "a list from before an answer": [Call(A, "ok", 0, 1), Call("list", (), 2, 3)],
    "a list that goes back": [Call(A, "ok", 0, 9), Call("list", (Accepted(A, 1),), 1, 2), Call("list", (), 3, 4)],
    "a list of what was not yet sent": [Call("list", (Accepted(A, 1),), 0, 1), Call(A, "ok", 2, 3)],
    "a list of what nobody sent": [Call("list", (Accepted(A, 1),), 0, 1)],
    "half of a move": [Call(A, "ok", 0, 1), Call(A_MOVED, "ok", 2, 3), Call("list", (Accepted(A, 2),), 4, 5)],
    "a version left out": [Call(A, "ok", 0, 1), Call(A_LATER, "ok", 2, 3), Call("list", (Accepted(A_LATER, 3),), 4, 5)],
    "changes against the order of time": [
        Call(A, "ok", 0, 1),
        Call(B, "ok", 2, 3),
        Call("changes", (Accepted(B, 1), Accepted(A, 1)), 4, 5),
    ],
    "changes that disagree": [
        Call(A, "ok", 0, 9),
        Call(B, "ok", 0, 9),
        Call("changes", (Accepted(B, 1), Accepted(A, 1)), 10, 11),
        Call("changes", (Accepted(A, 1), Accepted(B, 1)), 10, 11),
    ],
    "changes that skip one for a while": [
        Call(A, "ok", 0, 1),
        Call(B, "ok", 0, 9),
        Call("changes", (Accepted(B, 1),), 2, 3),
        Call("changes", (Accepted(B, 1), Accepted(A, 1)), 10, 11),
    ],
    "no answer, and it happened twice": [Call(A, None, 0), Call("list", (Accepted(A, 2),), 5, 6)],
}


@pytest.mark.parametrize("calls", EXPLAINED.values(), ids=EXPLAINED)
def test_what_an_order_explains_is_explained(calls: list[Call]) -> None:
    assert unexplained(calls) == []
    assert unexplained(reversed(calls)) == []


@pytest.mark.parametrize("calls", PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_found(calls: list[Call]) -> None:
    assert set(unexplained(calls)) & set(calls)


requests = st.one_of(
    st.builds(appointment, st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 6), hours=st.integers(1, 2)),
    st.builds(appointment, st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 6), cancelled=st.just(value=True)),
    st.sampled_from(["list", "changes"]),
)
answered = st.tuples(requests, st.floats(0, 3), st.floats(0, 3), st.sampled_from([True, True, True, False]))


def recorded(sent: list[tuple[Appointment | Reading, float, float, bool]]) -> tuple[list[Call], State]:
    """What clients may record of requests that take effect one after another, a second each: calls that
    began before and ended after, some of whose answers were lost."""
    calls, state = [], State()
    for second, (request, before, after, arrived) in enumerate(sent):
        answer, state = state.apply(request)
        calls.append(Call(request, answer if arrived else None, second - before, second + after if arrived else inf))
    return calls, state


@given(st.lists(answered, max_size=30))
def test_whatever_took_effect_in_some_order_is_explained(
    sent: list[tuple[Appointment | Reading, float, float, bool]],
) -> None:
    calls, _ = recorded(sent)
    assert unexplained(calls) == []


@given(st.lists(answered, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_a_change_that_is_lost_in_the_end_is_found(
    sent: list[tuple[Appointment | Reading, float, float, bool]], random: Random
) -> None:
    calls, state = recorded(sent)
    acknowledged = [call.request for call in calls if call.answer == "ok"]
    kept: Answer = tuple(change for change in state.changes if change.appointment not in acknowledged)
    lost = random.choice([*acknowledged, None])
    if lost is None:
        kept = state.changes
    end = len(sent) + 10.0
    assert (unexplained([*calls, Call("changes", kept, end, end + 1)]) == []) == (kept == state.changes)


def test_a_long_history_with_many_lost_answers_is_decided_quickly() -> None:
    """Without an order in sight: each of 400 writes may have happened or not."""
    random = Random(1)
    sent: list[tuple[Appointment | Reading, float, float, bool]] = [
        (
            appointment(f"a-{random.randrange(8)}", random.randrange(12), number + random.randrange(-5, 5)),
            random.random() * 5,
            random.random() * 5,
            random.random() < 0.6,
        )
        for number in range(1000)
    ]
    calls, state = recorded(sent)
    listed = Call("list", state.apply("list")[0], 2000, 2001)
    assert unexplained([*calls, listed, Call("changes", state.changes, 2002, 2003)]) == []
    assert unexplained([*calls, listed, Call("changes", state.changes[:-1], 2002, 2003)]) != []
