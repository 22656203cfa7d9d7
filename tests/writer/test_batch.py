"""How a batch is divided into runs, each of which is one call of the statement."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.body import Appointment
from service.writing.batch import Write, arrange, settle

DAY = datetime(2020, 10, 10, tzinfo=UTC)
LOOP = asyncio.new_event_loop()  # the futures of these tests are never awaited
LOOP.close()


def write(
    org_id: str, external_id: str, start: int, hours: int, cancelled: bool = False, sequence: int | None = None
) -> Write:
    starts = DAY + timedelta(hours=start)
    ends = starts + timedelta(hours=hours)
    appointment = Appointment(
        id=external_id, start=starts, end=ends, created_at=DAY, updated_at=DAY, org_id=org_id, cancelled=cancelled
    )
    return Write(appointment, LOOP, sequence)


def depend_on_order(one: Write, other: Write) -> bool:
    """Whether they have the same id, overlap, or belong to one sequence, within an organisation."""
    a, b = one.appointment, other.appointment
    overlap = a.start < b.end and b.start < a.end and not (a.cancelled or b.cancelled)
    return a.org_id == b.org_id and (a.id == b.id or overlap or (one.sequence == other.sequence is not None))


WRITES = st.tuples(
    st.sampled_from("op"),
    st.sampled_from("abcdef"),
    st.integers(0, 12),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([None, None, 1, 2]),
)


@given(st.lists(WRITES, max_size=24))
def test_dependent_writes_are_in_different_runs_and_keep_their_order(
    drawn: list[tuple[str, str, int, int, bool, int | None]],
) -> None:
    batch = [write(*arguments) for arguments in drawn]
    runs = arrange(batch)
    run_numbers = {id(member): number for number, run in enumerate(runs) for member in run.writes}
    assert len(run_numbers) == len(batch) == sum(len(run.writes) for run in runs)
    for earlier, later in combinations(batch, 2):
        if depend_on_order(earlier, later):
            assert run_numbers[id(earlier)] < run_numbers[id(later)]


def test_independent_writes_are_one_run_with_one_array_per_column() -> None:
    batch = [write("o", "a", 1, 1), write("o", "b", 2, 1), write("o", "c", 0, 1), write("p", "a", 1, 1)]
    [run] = arrange(batch)
    organisations, external_ids, *_ = run.arguments()
    assert (organisations, external_ids) == (("o", "o", "o", "p"), ("a", "b", "c", "a"))


def test_verdicts_settle_the_writes_at_their_place_and_busy_writes_are_returned() -> None:
    batch = [write("o", "a", 1, 1), write("o", "b", 2, 1), write("o", "a", 3, 1)]
    rows = [{"place": 2, "verdict": "ok"}, {"place": 1, "verdict": "busy"}, {"place": 1, "verdict": "stale"}]
    assert settle(arrange(batch), rows) == [batch[0]]
    assert [member.future.done() for member in batch] == [False, True, True]
    assert (batch[1].future.result().outcome, batch[2].future.result().outcome) == ("ok", "stale")


def test_missing_row_is_an_error_and_leaves_no_write_waiting_silently() -> None:
    with pytest.raises(ValueError, match="shorter"):
        settle(arrange([write("o", "a", 1, 1), write("o", "b", 2, 1)]), [{"place": 1, "verdict": "ok"}])
