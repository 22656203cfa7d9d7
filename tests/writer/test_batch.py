"""Which writes of a batch one call of the statement may decide."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.body import Appointment
from service.writing.batch import Write, arrange, settle

DAY = datetime(2020, 10, 10, tzinfo=UTC)
LOOP = asyncio.new_event_loop()  # of futures that nobody waits for
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


def touch(one: Write, other: Write) -> bool:
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
def test_no_two_of_a_run_touch_and_those_that_touch_keep_their_order(
    drawn: list[tuple[str, str, int, int, bool, int | None]],
) -> None:
    batch = [write(*each) for each in drawn]
    runs = arrange(batch)
    place = {id(each): number for number, run in enumerate(runs) for each in run.writes}
    assert len(place) == len(batch) == sum(len(run.writes) for run in runs)
    for earlier, later in combinations(batch, 2):
        if touch(earlier, later):
            assert place[id(earlier)] < place[id(later)]


def test_writes_that_do_not_touch_are_one_run_with_an_array_for_each_column() -> None:
    batch = [write("o", "a", 1, 1), write("o", "b", 2, 1), write("o", "c", 0, 1), write("p", "a", 1, 1)]
    [run] = arrange(batch)
    organisations, external_ids, *_ = run.arguments()
    assert (organisations, external_ids) == (("o", "o", "o", "p"), ("a", "b", "c", "a"))


def test_a_verdict_goes_to_the_write_of_its_place_and_busy_ones_come_back() -> None:
    batch = [write("o", "a", 1, 1), write("o", "b", 2, 1), write("o", "a", 3, 1)]
    rows = [{"place": 2, "verdict": "ok"}, {"place": 1, "verdict": "busy"}, {"place": 1, "verdict": "stale"}]
    assert settle(arrange(batch), rows) == [batch[0]]
    assert [each.future.done() for each in batch] == [False, True, True]
    assert (batch[1].future.result().outcome, batch[2].future.result().outcome) == ("ok", "stale")


def test_a_row_too_few_is_an_error_and_not_a_write_that_waits_for_ever() -> None:
    with pytest.raises(ValueError, match="shorter"):
        settle(arrange([write("o", "a", 1, 1), write("o", "b", 2, 1)]), [{"place": 1, "verdict": "ok"}])
