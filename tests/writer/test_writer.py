"""The writer by itself: batches, and what happens to those in them when something fails."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from msgspec.structs import asdict

from service import metrics
from service.contract.body import Appointment
from service.problems import ProblemError
from service.settings import Settings
from service.writing.batch import Verdict, Write
from service.writing.lane import BUSY_ROUNDS_MAX
from service.writing.writer import Writer, open_writer
from tests.databases import LOCK_ORGANISATION, assert_invariants, query, wait_until_blocked, with_name

DAY = datetime(2020, 10, 10, tzinfo=UTC)
OTHERS = """select pg_terminate_backend(pid, 5000) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()"""


def appointment(number: int, org_id: str = "o") -> Appointment:
    """The hour of that number; all of them are disjoint."""
    start = DAY + timedelta(hours=number)
    end = start + timedelta(hours=1)
    return Appointment(
        id=f"a-{number}", start=start, end=end, created_at=DAY, updated_at=DAY, org_id=org_id, cancelled=False
    )


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Writer]:
    async with open_writer(Settings(database_url=database_url)) as opened:
        yield opened


@contextmanager
def foreign_lock(database_url: str, org_id: str = "o") -> Iterator[None]:
    """As another process at the organisation."""
    with psycopg.connect(database_url) as session:
        session.execute(LOCK_ORGANISATION, (org_id,))
        yield


async def outcomes(writes: list[asyncio.Task[Verdict]]) -> list[str]:
    """The outcome of each, or the code of its problem, or the name of its error."""
    results: list[Any] = await asyncio.gather(*writes, return_exceptions=True)
    return [
        result.problem.code if isinstance(result, ProblemError) else getattr(result, "outcome", type(result).__name__)
        for result in results
    ]


def batches() -> tuple[float, float]:
    """How many there were, and how many writes in them."""
    [family] = metrics.BATCH_WRITES.collect()
    values = {sample.name: sample.value for sample in family.samples}
    return values["writer_batch_writes_count"], values["writer_batch_writes_sum"]


def all_at_once(writer: Writer, *appointments: Appointment) -> list[asyncio.Task[Verdict]]:
    return [asyncio.create_task(writer.write(each)) for each in appointments]


async def test_what_comes_together_is_one_batch(writer: Writer, database_url: str) -> None:
    await writer.write(appointment(0))
    before = batches()
    writes = all_at_once(writer, *(appointment(number, f"o-{number % 3}") for number in range(1, 101)))
    assert set(await outcomes(writes)) == {"ok"}
    count, sum_ = batches()
    assert (count - before[0], sum_ - before[1]) == (1, 100)
    assert query(database_url, "select count(distinct xmin::text) from appointments") == [(2,)]
    assert_invariants(database_url)


async def test_the_writes_of_a_batch_see_each_other(writer: Writer) -> None:
    same, longer = appointment(1), appointment(1)
    other = Appointment(**{field: getattr(longer, field) for field in longer.__struct_fields__} | {"id": "b"})
    writes = all_at_once(writer, appointment(1), same, other, appointment(2))
    assert await outcomes(writes) == ["ok", "stale", "conflict", "ok"]
    blocker = (await writes[2]).blocker
    assert blocker is not None
    assert (blocker.external_id, blocker.start) == ("a-1", "2020-10-10T01:00:00.000Z")


async def test_a_row_that_fails_harms_no_other(writer: Writer, database_url: str) -> None:
    query(
        database_url,
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;"
        "create trigger refuse before insert on appointments for each row when (new.external_id = 'a-7')"
        " execute function refuse()",
    )
    expected = ["RaiseError" if number == 7 else "ok" for number in range(10)]
    assert await outcomes(all_at_once(writer, *map(appointment, range(10)))) == expected
    assert query(database_url, "select count(*) from appointment_versions") == [(9,)]
    assert_invariants(database_url)


async def test_a_cancelled_write_gets_nobody_elses_verdict(writer: Writer, database_url: str) -> None:
    with foreign_lock(database_url):
        writes = all_at_once(writer, *map(appointment, range(4)))
        await asyncio.to_thread(wait_until_blocked, database_url)
        late = all_at_once(writer, appointment(4), appointment(4), appointment(5))
        await asyncio.sleep(0)
        writes[1].cancel()
        late[0].cancel()
    assert await outcomes(writes) == ["ok", "CancelledError", "ok", "ok"]
    assert await outcomes(late) == ["CancelledError", "ok", "ok"]
    assert_invariants(database_url)


async def test_an_organisation_held_elsewhere_keeps_nobody_else_waiting(writer: Writer, database_url: str) -> None:
    with foreign_lock(database_url):
        held = asyncio.create_task(writer.write(appointment(1)))
        await asyncio.to_thread(wait_until_blocked, database_url)
        for number in range(5):
            assert (await asyncio.wait_for(writer.write(appointment(number, "other")), 5)).outcome == "ok"
        assert not held.done()
    assert (await held).outcome == "ok"


async def test_who_waits_too_long_for_an_organisation_gets_a_503(database_url: str) -> None:
    settings = Settings(database_url=database_url, write_wait_ms_max=300)
    async with open_writer(settings) as writer:
        with foreign_lock(database_url):
            first = asyncio.create_task(writer.write(appointment(1)))
            await asyncio.to_thread(wait_until_blocked, database_url)
            later = asyncio.create_task(writer.write(appointment(2)))
            assert await outcomes([first, later]) == ["OVERLOADED", "OVERLOADED"]
            assert query(database_url, "select external_id from appointments") == []
        assert await outcomes(all_at_once(writer, appointment(1))) == ["ok"]


async def test_who_holds_one_lock_for_long_keeps_only_those_waiting_who_want_it(database_url: str) -> None:
    settings = Settings(database_url=database_url)
    async with open_writer(settings) as writer, open_writer(settings) as other:
        with foreign_lock(database_url, "held"):
            held = all_at_once(writer, appointment(1, "held"), appointment(2, "held"))
            await asyncio.to_thread(wait_until_blocked, database_url)
            for number in range(50):
                pair = [*all_at_once(writer, appointment(2 * number)), *all_at_once(other, appointment(2 * number + 1))]
                assert await asyncio.wait_for(outcomes(pair), 3) == ["ok", "ok"]
            assert not any(write.done() for write in held)
        assert await outcomes(held) == ["ok", "ok"]


async def test_a_row_that_a_foreign_session_holds_keeps_no_other_organisation_waiting(
    writer: Writer, database_url: str
) -> None:
    """A session that takes no lock of ours, as of somebody at a terminal."""
    await writer.write(appointment(1, "held"))
    with psycopg.connect(database_url) as session:
        session.execute("update appointments set version = version where org_id = 'held'")
        moved = Appointment(**asdict(appointment(1, "held")) | {"updated_at": DAY + timedelta(hours=1)})
        held = all_at_once(writer, moved)
        others = all_at_once(writer, *(appointment(1, f"o-{number}") for number in range(50)))
        assert set(await asyncio.wait_for(outcomes(others), 3)) == {"ok"}
        assert not held[0].done()
    assert await outcomes(held) == ["ok"]
    assert_invariants(database_url)


async def test_many_organisations_held_elsewhere_keep_nobody_else_waiting(writer: Writer, database_url: str) -> None:
    """More of them than there are patient connections; and the one that is free again has been waited for."""
    names = [f"held-{number}" for number in range(24)]
    with psycopg.connect(database_url) as session:
        for name in names:
            session.execute(LOCK_ORGANISATION, (name,))
        held = all_at_once(writer, *(appointment(1, name) for name in names for _ in range(2)))
        await asyncio.sleep(1)  # so that each is waited for by itself
        for number in range(5):
            with foreign_lock(database_url, "free again"):
                again = all_at_once(writer, *(appointment(2 * number + each, "free again") for each in range(2)))
                await asyncio.sleep(0.05)
            assert await asyncio.wait_for(outcomes(again), 0.5) == ["ok", "ok"]
        assert not any(write.done() for write in held)
    assert set(await outcomes(held)) == {"ok", "stale"}


async def test_narrowing_a_batch_down_takes_no_longer_than_a_write_may_wait(database_url: str) -> None:
    query(
        database_url,
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;"
        "create trigger refuse before insert on appointments for each row when (new.external_id = 'a-7')"
        " execute function refuse()",
    )
    async with open_writer(Settings(database_url=database_url, write_wait_ms_max=1000)) as writer:
        with psycopg.connect(database_url) as session:
            for number in range(30):
                session.execute(LOCK_ORGANISATION, (f"o-{number}",))
            names = [f"o-{number}" for number in range(30) for _ in range(2)]  # two, so that they come here at once
            writes = all_at_once(writer, appointment(7), *(appointment(1, name) for name in names))
            async with asyncio.timeout(3):
                found = await outcomes(writes)
        assert found[0] in ("RaiseError", "OVERLOADED")  # as its turn came before or after the limit
        assert found[1:] == ["OVERLOADED"] * 60


async def test_who_waits_too_long_in_the_queue_of_a_lane_gets_a_503(database_url: str) -> None:
    settings = Settings(database_url=database_url, write_wait_ms_max=200)
    async with open_writer(settings) as writer:
        with psycopg.connect(database_url) as session:
            session.execute("lock table appointments in access exclusive mode")
            under_way = all_at_once(writer, appointment(1))
            await asyncio.to_thread(wait_until_blocked, database_url)
            queued = all_at_once(writer, appointment(2))
            assert await asyncio.wait_for(outcomes(queued), 0.45) == ["OVERLOADED"]
            assert not under_way[0].done()
        assert await outcomes(under_way) in (["ok"], ["OVERLOADED"])  # as the limit of its wait came before or after


async def test_a_busy_write_goes_into_the_next_batches_before_it_learns_patience(
    writer: Writer, database_url: str
) -> None:
    before = metrics.BUSY_CARRIES._value.get(), metrics.CONTENDED_BATCHES._value.get()
    with foreign_lock(database_url):
        held = all_at_once(writer, appointment(1))
        await asyncio.to_thread(wait_until_blocked, database_url)
    assert await outcomes(held) == ["ok"]
    after = metrics.BUSY_CARRIES._value.get(), metrics.CONTENDED_BATCHES._value.get()
    assert (after[0] - before[0], after[1] > before[1]) == (BUSY_ROUNDS_MAX, True)


async def test_a_busy_write_comes_before_those_that_came_after_it(writer: Writer) -> None:
    lane = writer.lane
    first, second = (Write(appointment(number, f"o-{number}"), asyncio.get_running_loop()) for number in range(2))
    lane.put(second)
    lane._carry([first])
    assert lane._take() == [first, second]


async def test_over_the_limit_is_a_503_at_once(database_url: str) -> None:
    async with open_writer(Settings(database_url=database_url, writes_waiting_max=3)) as writer:
        found = await outcomes(all_at_once(writer, *map(appointment, range(5))))
        assert found == ["ok", "ok", "ok", "OVERLOADED", "OVERLOADED"]
        assert await outcomes(all_at_once(writer, appointment(4))) == ["ok"]


async def test_a_lost_connection_is_replaced_before_anybody_needs_it(writer: Writer, database_url: str) -> None:
    await writer.write(appointment(1))
    query(database_url, OTHERS)
    assert await outcomes(all_at_once(writer, appointment(2))) in (["ok"], ["DATABASE_UNAVAILABLE"])
    assert await outcomes(all_at_once(writer, appointment(2))) in (["ok"], ["stale"])
    assert_invariants(database_url)


async def test_a_connection_lost_in_the_middle_of_a_batch_leaves_nobody_waiting(
    writer: Writer, database_url: str
) -> None:
    await writer.write(appointment(0))
    with psycopg.connect(database_url) as session:
        session.execute("lock table appointment_versions in access exclusive mode")
        writes = all_at_once(writer, *map(appointment, range(1, 20)))
        await asyncio.to_thread(wait_until_blocked, database_url)
        query(
            database_url,
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where wait_event_type = 'Lock'"
            " and datname = current_database()",
        )
        assert set(await outcomes(writes)) == {"DATABASE_UNAVAILABLE"}
    again = all_at_once(writer, *map(appointment, range(1, 20)))
    assert set(await outcomes(again)) == {"ok"}
    assert_invariants(database_url)


async def test_while_there_is_no_database_writes_are_refused_and_afterwards_not(database_url: str) -> None:
    name = urlsplit(database_url).path.removeprefix("/")
    server = with_name(database_url, "postgres")
    async with open_writer(Settings(database_url=database_url)) as writer:
        await writer.write(appointment(0))
        query(server, f"alter database {name} with allow_connections false")
        try:
            query(server, f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{name}'")
            found = [await outcomes(all_at_once(writer, *map(appointment, range(1, 4)))) for _ in range(3)]
            assert {outcome for each in found for outcome in each} == {"DATABASE_UNAVAILABLE"}
        finally:
            query(server, f"alter database {name} with allow_connections true")
        async with asyncio.timeout(5):
            while await outcomes(all_at_once(writer, appointment(1))) == ["DATABASE_UNAVAILABLE"]:
                await asyncio.sleep(0.05)
        assert await outcomes(all_at_once(writer, appointment(1))) == ["stale"]


async def test_two_processes_worth_of_writers_share_hot_organisations_without_starving(database_url: str) -> None:
    settings = Settings(database_url=database_url)
    async with open_writer(settings) as one, open_writer(settings) as two:
        writes = [
            asyncio.create_task((one if number % 2 else two).write(appointment(number, f"o-{number % 3}")))
            for number in range(600)
        ]
        assert set(await outcomes(writes)) == {"ok"}
    assert query(database_url, "select count(*) from appointment_versions") == [(600,)]
    assert_invariants(database_url)
