"""The writer without HTTP: batches, contention, limits, and failures in the middle of a batch."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from msgspec.structs import asdict
from structlog.testing import capture_logs

from service import metrics
from service.contract.body import Appointment
from service.database.buckets import BUCKETS
from service.problems import ProblemError
from service.settings import Settings
from service.writing.batch import Verdict, Write
from service.writing.lane import BUSY_ROUNDS_MAX
from service.writing.writer import Writer, open_writer
from tests.cluster import not_on_citus
from tests.databases import LOCK_ORGANISATION, assert_invariants, neighbours, query, wait_until_blocked, with_name
from tests.processes import wait_until, writes_by_bucket

pytestmark = not_on_citus

DAY = datetime(2020, 10, 10, tzinfo=UTC)
OTHER_SESSIONS = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
TERMINATE_OTHER_SESSIONS = f"select pg_terminate_backend(pid, 5000) {OTHER_SESSIONS}"
# An advisory lock's key of 64 bits is in two columns of pg_locks.
LOCK_WAITS = """select count(*) from pg_locks
    where locktype = 'advisory' and not granted and database = (select oid from pg_database
        where datname = current_database())
        and classid::int8 << 32 | objid::int8 = hashtextextended(%s, 0)"""
FAIL_ON_A_7 = """
    create function fail() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
    create trigger fail before insert on appointments for each row when (new.external_id = 'a-7')
    execute function fail()"""
FAIL_AT_FIRST = """
    create sequence attempts;
    create function fail_at_first() returns trigger language plpgsql as $$ begin
        if nextval('attempts') <= 3 then
            raise exception 'duplicate key value violates unique constraint' using errcode = '{}';
        end if;
        return new;
    end $$;
    create trigger fail_at_first before insert on appointment_versions for each row execute function fail_at_first()"""

FULL_DISK = """
    create function full_disk() returns trigger language plpgsql as $$
        begin raise exception 'could not extend file' using errcode = 'disk_full'; end $$;
    create trigger full_disk before insert on appointments for each row execute function full_disk()"""


lane_only = pytest.mark.skipif(writes_by_bucket(), reason="about the rounds of the lane, which takes no part here")


def appointment(number: int, org_id: str = "o") -> Appointment:
    """An appointment in the hour of that number; different numbers do not overlap."""
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
def lock_held_elsewhere(database_url: str, org_id: str = "o") -> Iterator[None]:
    """The organisation's lock is held by a session that stands for another process."""
    with psycopg.connect(database_url) as session:
        session.execute(LOCK_ORGANISATION, (org_id,))
        yield


async def outcomes(writes: list[asyncio.Task[Verdict]]) -> list[str]:
    """For each write its outcome, or the code of its problem, or the name of its exception."""
    results: list[Any] = await asyncio.gather(*writes, return_exceptions=True)
    return [
        result.problem.code if isinstance(result, ProblemError) else getattr(result, "outcome", type(result).__name__)
        for result in results
    ]


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)


async def until_blocked(database_url: str) -> None:
    await asyncio.to_thread(wait_until_blocked, database_url)


def batches() -> tuple[float, float]:
    """The number of batches so far, and of the writes in them."""
    [family] = metrics.BATCH_WRITES.collect()
    values = {sample.name: sample.value for sample in family.samples}
    return values["writer_batch_writes_count"], values["writer_batch_writes_sum"]


def waits_for_locks() -> float:
    """The number of batches so far that waited for locks; where writes go by bucket, each does."""
    return batches()[0] if writes_by_bucket() else metrics.CONTENDED_BATCHES._value.get()


def write_concurrently(writer: Writer, *appointments: Appointment) -> list[asyncio.Task[Verdict]]:
    return [asyncio.create_task(writer.write(each)) for each in appointments]


async def test_concurrent_writes_are_one_batch_and_one_commit(writer: Writer, database_url: str) -> None:
    await writer.write(appointment(0))
    before = batches()
    names = neighbours("o", 3)
    writes = write_concurrently(writer, *(appointment(number, names[number % 3]) for number in range(1, 101)))
    assert set(await outcomes(writes)) == {"ok"}
    count, sum_ = batches()
    assert (count - before[0], sum_ - before[1]) == (1, 100)
    assert query(database_url, "select count(distinct xmin::text) from appointments") == [(2,)]
    assert_invariants(database_url)


async def test_writes_see_earlier_writes_of_the_same_batch(writer: Writer) -> None:
    overlapping = Appointment(**asdict(appointment(1)) | {"id": "b"})
    writes = write_concurrently(writer, appointment(1), appointment(1), overlapping, appointment(2))
    assert await outcomes(writes) == ["ok", "stale", "conflict", "ok"]
    blocker = (await writes[2]).blocker
    assert blocker is not None
    assert (blocker.external_id, blocker.start) == ("a-1", "2020-10-10T01:00:00.000Z")


async def test_failing_row_does_not_affect_the_rest_of_its_batch(writer: Writer, database_url: str) -> None:
    query(database_url, FAIL_ON_A_7)
    expected = ["RaiseError" if number == 7 else "ok" for number in range(10)]
    assert await outcomes(write_concurrently(writer, *map(appointment, range(10)))) == expected
    assert query(database_url, "select count(*) from appointment_versions") == [(9,)]
    assert_invariants(database_url)


@pytest.mark.parametrize("state", ["23505", "40001", "40P01", "XX000"])
@pytest.mark.parametrize("in_order", [False, True])
async def test_write_undone_because_of_other_sessions_is_tried_until_it_succeeds(
    writer: Writer, database_url: str, state: str, in_order: bool
) -> None:
    """XX000 is how Citus reports a duplicate key at times, while it moves a shard."""
    query(database_url, FAIL_AT_FIRST.format(state))
    if in_order:
        assert await writer.write_in_order([appointment(1), appointment(2)]) == [Verdict("ok")] * 2
    else:
        assert await outcomes(write_concurrently(writer, appointment(1))) == ["ok"]
    assert query(database_url, "select last_value > 3 from attempts") == [(True,)]
    assert_invariants(database_url)


async def test_write_that_always_fails_because_of_other_sessions_is_reported_in_the_log(
    writer: Writer, database_url: str
) -> None:
    """It is tried until its time is up, and the refusal does not say why."""
    query(database_url, FAIL_AT_FIRST.format("23505").replace("<= 3", "> 0"))
    with capture_logs() as logs:
        [write] = write_concurrently(writer, appointment(1))
        await until(lambda: any(each["event"] == "write fails again and again" for each in logs))
    assert "UniqueViolationError" in [each.get("cause") for each in logs]
    assert not write.done()
    write.cancel()


async def test_cancelled_writes_do_not_shift_the_verdicts_of_others(writer: Writer, database_url: str) -> None:
    with lock_held_elsewhere(database_url):
        writes = write_concurrently(writer, *map(appointment, range(4)))
        await until_blocked(database_url)
        late = write_concurrently(writer, appointment(4), appointment(4), appointment(5))
        await asyncio.sleep(0)  # the tasks start
        writes[1].cancel()
        late[0].cancel()
    assert await outcomes(writes) == ["ok", "CancelledError", "ok", "ok"]
    assert await outcomes(late) == ["CancelledError", "ok", "ok"]
    assert_invariants(database_url)


async def test_locked_organisation_does_not_block_others(writer: Writer, database_url: str) -> None:
    with lock_held_elsewhere(database_url):
        held = asyncio.create_task(writer.write(appointment(1)))
        await until_blocked(database_url)
        for number in range(5):
            assert (await asyncio.wait_for(writer.write(appointment(number, "other")), 5)).outcome == "ok"
        assert not held.done()
    assert (await held).outcome == "ok"


async def test_write_that_waits_too_long_for_its_organisation_is_refused(database_url: str) -> None:
    settings = Settings(database_url=database_url, write_wait_ms_max=300)
    async with open_writer(settings) as writer:
        with lock_held_elsewhere(database_url):
            first = asyncio.create_task(writer.write(appointment(1)))
            await until_blocked(database_url)
            later = asyncio.create_task(writer.write(appointment(2)))
            assert await outcomes([first, later]) == ["OVERLOADED", "OVERLOADED"]
            assert query(database_url, "select external_id from appointments") == []
        assert await outcomes(write_concurrently(writer, appointment(1))) == ["ok"]


async def test_organisation_locked_for_long_blocks_no_other_in_either_of_two_writers(database_url: str) -> None:
    settings = Settings(database_url=database_url)
    async with open_writer(settings) as writer, open_writer(settings) as other:
        with lock_held_elsewhere(database_url, "held"):
            held = write_concurrently(writer, appointment(1, "held"), appointment(2, "held"))
            await until_blocked(database_url)
            for number in range(50):
                pair = [
                    *write_concurrently(writer, appointment(2 * number)),
                    *write_concurrently(other, appointment(2 * number + 1)),
                ]
                assert await asyncio.wait_for(outcomes(pair), 3) == ["ok", "ok"]
            assert not any(write.done() for write in held)
        assert await outcomes(held) == ["ok", "ok"]


async def test_row_locked_by_a_foreign_session_does_not_block_other_organisations(
    writer: Writer, database_url: str
) -> None:
    """The session takes no advisory lock, as in psql."""
    await writer.write(appointment(1, "held"))
    with psycopg.connect(database_url) as session:
        session.execute("update appointments set version = version where org_id = 'held'")
        moved = Appointment(**asdict(appointment(1, "held")) | {"updated_at": DAY + timedelta(hours=1)})
        held = write_concurrently(writer, moved)
        others = write_concurrently(writer, *(appointment(1, f"o-{number}") for number in range(50)))
        assert set(await asyncio.wait_for(outcomes(others), 3)) == {"ok"}
        assert not held[0].done()
    assert await outcomes(held) == ["ok"]
    assert_invariants(database_url)


async def test_many_locked_organisations_do_not_delay_one_whose_lock_is_released(
    writer: Writer, database_url: str
) -> None:
    """There are more of them than connections that wait for locks."""
    released_name, *names = neighbours("held", 25)
    before = waits_for_locks()
    with psycopg.connect(database_url) as session:
        for name in names:
            session.execute(LOCK_ORGANISATION, (name,))
        held = write_concurrently(writer, *(appointment(1, name) for name in names for _ in range(2)))
        # Two batches of many organisations have failed, and at least one of three batches of a single organisation:
        # from now on each of these organisations is waited for separately.
        await until(lambda: waits_for_locks() - before > 2 + 3)
        for number in range(5):
            with lock_held_elsewhere(database_url, released_name):
                released = write_concurrently(writer, *(appointment(2 * number + n, released_name) for n in range(2)))
                await until(lambda: query(database_url, LOCK_WAITS, released_name) == [(1,)])
            # Less than one attempt to get a lock that is held takes.
            assert await asyncio.wait_for(outcomes(released), 0.5) == ["ok", "ok"]
        assert not any(write.done() for write in held)
    assert set(await outcomes(held)) == {"ok", "stale"}


async def test_splitting_a_failed_batch_respects_the_time_limit_of_a_write(database_url: str) -> None:
    query(database_url, FAIL_ON_A_7)
    async with open_writer(Settings(database_url=database_url, write_wait_ms_max=1000)) as writer:
        with psycopg.connect(database_url) as session:
            for number in range(30):
                session.execute(LOCK_ORGANISATION, (f"o-{number}",))
            # Two writes of a locked organisation wait for its lock at once, without being carried over first.
            names = [f"o-{number}" for number in range(30) for _ in range(2)]
            writes = write_concurrently(writer, appointment(7), *(appointment(1, name) for name in names))
            async with asyncio.timeout(3):
                found = await outcomes(writes)
        assert found[0] in ("RaiseError", "OVERLOADED")  # its turn comes before or after the time limit
        assert found[1:] == ["OVERLOADED"] * 60


async def test_write_queued_too_long_in_its_lane_is_refused(database_url: str) -> None:
    settings = Settings(database_url=database_url, write_wait_ms_max=200)
    async with open_writer(settings) as writer:
        with psycopg.connect(database_url) as session:
            session.execute("lock table appointments in access exclusive mode")
            under_way = write_concurrently(writer, appointment(1))
            await until_blocked(database_url)
            queued = write_concurrently(writer, appointment(2))
            assert await outcomes(queued) == ["OVERLOADED"]
            assert not under_way[0].done()  # so the queue was expired while its lane was still busy
        # The lane stops waiting after half a second; by then the time limit of the write is over.
        assert await outcomes(under_way) in (["ok"], ["OVERLOADED"])


@lane_only
async def test_busy_write_is_carried_over_a_few_times_before_it_waits_for_the_lock(
    writer: Writer, database_url: str
) -> None:
    before = metrics.BUSY_CARRIES._value.get(), metrics.CONTENDED_BATCHES._value.get()
    with lock_held_elsewhere(database_url):
        held = write_concurrently(writer, appointment(1))
        await until_blocked(database_url)
    assert await outcomes(held) == ["ok"]
    after = metrics.BUSY_CARRIES._value.get(), metrics.CONTENDED_BATCHES._value.get()
    assert (after[0] - before[0], after[1] > before[1]) == (BUSY_ROUNDS_MAX, True)


@lane_only
async def test_busy_write_is_carried_over_ahead_of_later_writes(writer: Writer) -> None:
    lane = writer._lane
    assert lane
    first, second = (Write(appointment(number, f"o-{number}"), asyncio.get_running_loop()) for number in range(2))
    lane.put(second)
    lane._carry([first])
    assert lane._take() == [first, second]


async def test_writes_over_the_limit_are_refused(database_url: str) -> None:
    async with open_writer(Settings(database_url=database_url, writes_waiting_max=3)) as writer:
        found = await outcomes(write_concurrently(writer, *map(appointment, range(5))))
        assert found == ["ok", "ok", "ok", "OVERLOADED", "OVERLOADED"]
        assert await outcomes(write_concurrently(writer, appointment(4))) == ["ok"]


async def test_lost_connection_is_replaced_before_a_write_needs_it(writer: Writer, database_url: str) -> None:
    await writer.write(appointment(1))
    lost = query(database_url, TERMINATE_OTHER_SESSIONS)
    assert set(lost) == {(True,)}
    await until(lambda: len(query(database_url, f"select pid {OTHER_SESSIONS}")) == len(lost))
    assert await outcomes(write_concurrently(writer, appointment(2))) == ["ok"]
    assert_invariants(database_url)


async def test_at_most_one_batch_fails_on_a_lost_connection(writer: Writer, database_url: str) -> None:
    await writer.write(appointment(1))
    query(database_url, TERMINATE_OTHER_SESSIONS)
    assert await outcomes(write_concurrently(writer, appointment(2))) in (["ok"], ["DATABASE_UNAVAILABLE"])
    assert await outcomes(write_concurrently(writer, appointment(2))) in (["ok"], ["stale"])
    assert_invariants(database_url)


async def test_writes_of_a_batch_are_refused_when_its_connection_is_lost(writer: Writer, database_url: str) -> None:
    await writer.write(appointment(0))
    with psycopg.connect(database_url) as session:
        session.execute("lock table appointment_versions in access exclusive mode")
        writes = write_concurrently(writer, *map(appointment, range(1, 20)))
        await until_blocked(database_url)
        query(database_url, f"{TERMINATE_OTHER_SESSIONS} and wait_event_type = 'Lock'")
        assert set(await outcomes(writes)) == {"DATABASE_UNAVAILABLE"}
    again = write_concurrently(writer, *map(appointment, range(1, 20)))
    assert set(await outcomes(again)) == {"ok"}
    assert_invariants(database_url)


async def test_writes_are_refused_while_the_database_is_unavailable_and_accepted_afterwards(database_url: str) -> None:
    name = urlsplit(database_url).path.removeprefix("/")
    server = with_name(database_url, "postgres")
    async with open_writer(Settings(database_url=database_url)) as writer:
        await writer.write(appointment(0))
        query(server, f"alter database {name} with allow_connections false")
        try:
            query(server, f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{name}'")
            found = [await outcomes(write_concurrently(writer, *map(appointment, range(1, 4)))) for _ in range(3)]
            assert found == [["DATABASE_UNAVAILABLE"] * 3] * 3
        finally:
            query(server, f"alter database {name} with allow_connections true")
        async with asyncio.timeout(5):
            while (first := await outcomes(write_concurrently(writer, appointment(1)))) == ["DATABASE_UNAVAILABLE"]:
                await asyncio.sleep(0.05)
        assert first == ["ok"]
        assert await outcomes(write_concurrently(writer, appointment(1))) == ["stale"]


async def writes_until_refused(writer: Writer, count: int) -> list[str]:
    """The outcomes of 10 clients at once, each of which pauses after a refusal, until there are `count` refusals."""
    found: list[str] = []

    async def client(number: int) -> None:
        while len(found) - found.count("ok") < count:
            [outcome] = await outcomes(write_concurrently(writer, appointment(number, f"o-{number}")))
            found.append("ok" if outcome == "stale" else outcome)
            await asyncio.sleep(0.01)

    await asyncio.gather(*map(client, range(10)))
    return [outcome for outcome in found if outcome != "ok"]


@pytest.mark.parametrize(
    ("fault", "cure"),
    [
        ("alter database {} set default_transaction_read_only = on", "alter database {} reset all"),
        ("alter table appointments rename to gone", "alter table gone rename to appointments"),
        (FULL_DISK, "drop trigger full_disk on appointments"),
    ],
    ids=["read-only", "missing table", "full disk"],
)
async def test_writer_backs_off_while_its_statement_fails_on_a_sound_connection(
    database_url: str, fault: str, cure: str
) -> None:
    name = urlsplit(database_url).path.removeprefix("/")
    async with open_writer(Settings(database_url=database_url)) as writer:
        assert (await writer.write_in_order([appointment(0)]))[0] == Verdict("ok")
        query(database_url, fault.format(name))
        query(database_url, TERMINATE_OTHER_SESSIONS)
        before = batches()[0]
        refusals = await writes_until_refused(writer, 1000)
        assert set(refusals) == {"DATABASE_UNAVAILABLE"}
        assert batches()[0] - before < (20 * len(BUCKETS) if writes_by_bucket() else 20)
        [in_order] = await writer.write_in_order([appointment(1)])
        assert isinstance(in_order, ProblemError)
        assert in_order.problem.code == "DATABASE_UNAVAILABLE"
        query(database_url, f"begin read write; {cure.format(name)}; commit")
        async with asyncio.timeout(2):
            while await outcomes(write_concurrently(writer, appointment(2))) == ["DATABASE_UNAVAILABLE"]:
                await asyncio.sleep(0.01)
            while isinstance((await writer.write_in_order([appointment(1)]))[0], ProblemError):
                await asyncio.sleep(0.01)
        assert await outcomes(write_concurrently(writer, appointment(1), appointment(3))) == ["stale", "ok"]
    assert_invariants(database_url)


async def test_two_writers_share_hot_organisations_without_starvation(database_url: str) -> None:
    settings = Settings(database_url=database_url)
    async with open_writer(settings) as one, open_writer(settings) as two:
        writes = [
            asyncio.create_task((one if number % 2 else two).write(appointment(number, f"o-{number % 3}")))
            for number in range(600)
        ]
        assert set(await outcomes(writes)) == {"ok"}
    assert query(database_url, "select count(*) from appointment_versions") == [(600,)]
    assert_invariants(database_url)


async def test_writes_get_an_error_if_arranging_their_batch_fails(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    for module in ("lane", "contended", "distributed"):
        monkeypatch.setattr(f"service.writing.{module}.arrange", fail)
    with pytest.raises(RuntimeError if writes_by_bucket() else ProblemError):
        await asyncio.wait_for(writer.write(appointment(1)), 30)
    [outcome] = await asyncio.wait_for(writer.write_in_order([appointment(1)]), 30)
    assert isinstance(outcome, RuntimeError)
    monkeypatch.undo()
    [outcome] = await asyncio.wait_for(writer.write_in_order([appointment(1)]), 30)
    assert outcome == Verdict("ok")
