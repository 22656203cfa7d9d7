"""The checker accepts linearizable histories and finds planted violations."""

from datetime import UTC, datetime, timedelta
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.body import Appointment
from tests.histories.checker import Answer, Call, Reading, State, find_violation
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
A_CANCELLED = appointment("a", 1, 1, cancelled=True)
B, B_AFTER_A, B_OVER_A = appointment("b", 5), appointment("b", 2), appointment("b", 1)

LINEARIZABLE: dict[str, list[Call]] = {
    "no calls": [],
    "sequential calls": [Call(A, "ok", 0, 1), Call(A, "ignored-stale", 2, 3), Call(B_AFTER_A, "ok", 4, 5)],
    "two overlapping appointments, the first accepted": [Call(A, "ok", 0, 9), Call(B_OVER_A, "conflict", 1, 2)],
    "two overlapping appointments, the second accepted": [Call(A, "conflict", 0, 9), Call(B_OVER_A, "ok", 1, 2)],
    "the later updatedAt takes effect first": [Call(A, "ignored-stale", 0, 9), Call(A_LATER, "ok", 1, 2)],
    "one request twice in flight": [Call(A, "ignored-stale", 0, 9), Call(A, "ok", 1, 8)],
    "a move frees the time": [Call(A, "ok", 0, 1), Call(A_MOVED, "ok", 2, 9), Call(B_OVER_A, "ok", 3, 4)],
    "a cancellation frees the time": [Call(A, "ok", 0, 1), Call(A_CANCELLED, "ok", 2, 3), Call(B_OVER_A, "ok", 4, 5)],
    "an unanswered write that took effect": [Call(A, None, 0), Call("list", (Accepted(A, 1),), 5, 6)],
    "an unanswered write that did not take effect": [Call(A, None, 0), Call("list", (), 5, 6)],
    "an unanswered write that took effect late": [
        Call(A, None, 0),
        Call("list", (), 5, 6),
        Call("list", (Accepted(A, 1),), 7, 8),
    ],
    "lists during a write": [Call(A, "ok", 0, 9), Call("list", (), 1, 2), Call("list", (Accepted(A, 1),), 3, 4)],
    "changes in commit order": [
        Call(A, "ok", 0, 9),
        Call(B, "ok", 1, 8),
        Call("changes", (Accepted(B, 1), Accepted(A, 1)), 10, 11),
    ],
}

VIOLATIONS: dict[str, list[Call]] = {
    "a lost write": [Call(A, "ok", 0, 1), Call("list", (), 2, 3)],
    "a write lost from the changes": [
        Call(A, "ok", 0, 1),
        Call(B, "ok", 0, 1),
        Call("changes", (Accepted(B, 1),), 2, 3),
    ],
    "two overlapping appointments accepted": [Call(A, "ok", 0, 9), Call(B_OVER_A, "ok", 1, 2)],
    "an equal updatedAt accepted": [Call(A, "ok", 0, 9), Call(A, "ok", 1, 8)],
    "an earlier updatedAt accepted": [Call(A_LATER, "ok", 0, 1), Call(A, "ok", 2, 3)],
    "a later updatedAt ignored": [Call(A, "ok", 0, 1), Call(A_LATER, "ignored-stale", 2, 3)],
    "a conflict without an overlap": [Call(A, "ok", 0, 1), Call(B_AFTER_A, "conflict", 2, 3)],
    "a conflict with a cancelled appointment": [
        Call(A, "ok", 0, 1),
        Call(A_CANCELLED, "ok", 2, 3),
        Call(B_OVER_A, "conflict", 4, 5),
    ],
    "a list older than an answered write": [Call(A, "ok", 0, 1), Call("list", (), 2, 3)],
    "a list older than the previous list": [
        Call(A, "ok", 0, 9),
        Call("list", (Accepted(A, 1),), 1, 2),
        Call("list", (), 3, 4),
    ],
    "an appointment listed before it was sent": [Call("list", (Accepted(A, 1),), 0, 1), Call(A, "ok", 2, 3)],
    "an appointment listed that was never sent": [Call("list", (Accepted(A, 1),), 0, 1)],
    "a new version with the old times": [
        Call(A, "ok", 0, 1),
        Call(A_MOVED, "ok", 2, 3),
        Call("list", (Accepted(A, 2),), 4, 5),
    ],
    "a skipped version number": [
        Call(A, "ok", 0, 1),
        Call(A_LATER, "ok", 2, 3),
        Call("list", (Accepted(A_LATER, 3),), 4, 5),
    ],
    "changes out of order": [
        Call(A, "ok", 0, 1),
        Call(B, "ok", 2, 3),
        Call("changes", (Accepted(B, 1), Accepted(A, 1)), 4, 5),
    ],
    "changes in two different orders": [
        Call(A, "ok", 0, 9),
        Call(B, "ok", 0, 9),
        Call("changes", (Accepted(B, 1), Accepted(A, 1)), 10, 11),
        Call("changes", (Accepted(A, 1), Accepted(B, 1)), 10, 11),
    ],
    "a change that appears late in the feed": [
        Call(A, "ok", 0, 1),
        Call(B, "ok", 0, 9),
        Call("changes", (Accepted(B, 1),), 2, 3),
        Call("changes", (Accepted(B, 1), Accepted(A, 1)), 10, 11),
    ],
    "an unanswered write that took effect twice": [Call(A, None, 0), Call("list", (Accepted(A, 2),), 5, 6)],
}


@pytest.mark.parametrize("calls", LINEARIZABLE.values(), ids=LINEARIZABLE)
def test_linearizable_history_is_accepted(calls: list[Call]) -> None:
    assert find_violation(calls) == []
    assert find_violation(reversed(calls)) == []


@pytest.mark.parametrize("calls", VIOLATIONS.values(), ids=VIOLATIONS)
def test_planted_violation_is_found(calls: list[Call]) -> None:
    assert set(find_violation(calls)) & set(calls)


requests = st.one_of(
    st.builds(appointment, st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 6), hours=st.integers(1, 2)),
    st.builds(appointment, st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 6), cancelled=st.just(value=True)),
    st.sampled_from(["list", "changes"]),
)
answered = st.tuples(requests, st.floats(0, 3), st.floats(0, 3), st.sampled_from([True, True, True, False]))


def recorded(sent: list[tuple[Appointment | Reading, float, float, bool]]) -> tuple[list[Call], State]:
    """A possible record of requests that take effect one second after another. Each call begins before its effect and
    ends after it; some answers are lost. Also returns the final state."""
    calls, state = [], State()
    for second, (request, before, after, arrived) in enumerate(sent):
        answer, state = state.apply(request)
        calls.append(Call(request, answer if arrived else None, second - before, second + after if arrived else inf))
    return calls, state


@given(st.lists(answered, max_size=30))
def test_every_record_of_a_sequential_execution_is_accepted(
    sent: list[tuple[Appointment | Reading, float, float, bool]],
) -> None:
    calls, _ = recorded(sent)
    assert find_violation(calls) == []


@given(st.lists(answered, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_lost_acknowledged_change_is_found(
    sent: list[tuple[Appointment | Reading, float, float, bool]], random: Random
) -> None:
    calls, state = recorded(sent)
    acknowledged = [call.request for call in calls if call.answer == "ok"]
    kept: Answer = tuple(change for change in state.changes if change.appointment not in acknowledged)
    lost = random.choice([*acknowledged, None])
    if lost is None:
        kept = state.changes
    end = len(sent) + 10.0
    assert (find_violation([*calls, Call("changes", kept, end, end + 1)]) == []) == (kept == state.changes)


def test_long_history_with_many_lost_answers_is_decided_quickly() -> None:
    """Each of about 400 unanswered writes may have taken effect or not."""
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
    assert find_violation([*calls, listed, Call("changes", state.changes, 2002, 2003)]) == []
    assert find_violation([*calls, listed, Call("changes", state.changes[:-1], 2002, 2003)]) != []
