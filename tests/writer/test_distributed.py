"""The writer for distributed tables, on its own: calls by bucket, each a transaction settled by its own answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from random import Random
from typing import Any

import psycopg
import pytest
from msgspec.structs import asdict

from service import metrics
from service.contract.body import Appointment
from service.database.buckets import bucket_of
from service.database.statements import PUT_APPOINTMENTS
from service.problems import ProblemError
from service.settings import Settings
from service.writing.batch import WRITES_MAX, Verdict
from service.writing.writer import Writer, open_writer
from tests.databases import LOCK_ORGANISATION, assert_invariants, neighbours, new_database, query
from tests.statements.test_put import random_appointment
from tests.writer.test_writer import (
    DAY,
    FAIL_ON_A_7,
    appointment,
    batches,
    lock_held_elsewhere,
    outcomes,
    until,
    until_blocked,
    write_concurrently,
)

# The times of each call, which lasts 50 ms at least.
RECORD_CALLS = """
    create table calls (began timestamptz, ended timestamptz);
    create function record_call() returns trigger language plpgsql as $$
    declare began timestamptz := clock_timestamp();
    begin
        perform pg_sleep(0.05);
        insert into calls values (began, clock_timestamp());
        return null;
    end $$;
    create trigger record_call before insert on appointments for each statement execute function record_call()"""
LOSE_THE_SESSION_ON_A_7 = """
    create function lose() returns trigger language plpgsql as $$ begin
        perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(9); return new; end $$;
    create trigger lose before insert on appointments for each row when (new.external_id = 'a-7')
    execute function lose()"""
RELEASE_ON_A_7 = """
    create function release() returns trigger language plpgsql as $$ begin
        perform pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'holder';
        return new; end $$;
    create trigger release before insert on appointments for each row when (new.external_id = 'a-7')
    execute function release()"""
IN_ORDER = "select external_id from appointment_versions where org_id = 'o' order by sequence_number"
HISTORY = """
    select org_id, external_id, version, during, payload_updated_at, cancelled
    from appointment_versions order by org_id, sequence_number"""
CONNECTIONS_MAX = 2


@pytest.fixture(autouse=True)
def by_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.writing.writer.ALWAYS_BY_BUCKET", True)


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Writer]:
    async with open_writer(Settings(database_url=database_url, write_connections_max=CONNECTIONS_MAX)) as opened:
        yield opened


async def test_calls_of_buckets_are_under_way_at_once_up_to_the_limit(writer: Writer, database_url: str) -> None:
    query(database_url, RECORD_CALLS)
    names = [f"o-{number}" for number in range(40)]
    buckets = {bucket_of(name) for name in names}
    assert set(await outcomes(write_concurrently(writer, *(appointment(1, name) for name in names)))) == {"ok"}
    at_once = "select count(*) from calls as c join calls as o on o.began <= c.began and c.began < o.ended group by c"
    assert max(query(database_url, at_once)) == (CONNECTIONS_MAX,)
    assert query(database_url, "select count(*) from calls") == [(len(buckets),)]


async def test_what_gathers_for_a_bucket_during_a_call_is_the_next_call(writer: Writer, database_url: str) -> None:
    query(database_url, RECORD_CALLS)
    before = batches()
    first = write_concurrently(writer, appointment(0))
    await until(lambda: batches()[0] > before[0])  # it is under way
    names = neighbours("o", 3)
    rest = write_concurrently(writer, *(appointment(number, names[number % 3]) for number in range(1, 20)))
    assert set(await outcomes([*first, *rest])) == {"ok"}
    assert query(database_url, "select count(*) from calls") == [(2,)]
    assert query(database_url, "select count(distinct xmin::text) from appointments") == [(2,)]


async def test_each_call_of_a_batch_is_a_transaction_and_settled_by_its_own_answer(
    writer: Writer, database_url: str
) -> None:
    query(database_url, FAIL_ON_A_7)
    found = await writer.write_in_order([appointment(number) for number in (6, 7, 8)])
    assert [found[0], found[2]] == [Verdict("ok")] * 2
    assert isinstance(found[1], Exception)
    assert query(database_url, "select external_id, version from appointments order by 1") == [("a-6", 1), ("a-8", 1)]
    assert query(database_url, "select count(distinct xmin::text) from appointments") == [(2,)]
    assert_invariants(database_url)


async def test_connection_lost_during_a_later_call_does_not_hide_the_verdict_of_an_earlier_one(
    writer: Writer, database_url: str
) -> None:
    query(database_url, LOSE_THE_SESSION_ON_A_7)
    found = await writer.write_in_order([appointment(6), later(6, 1), appointment(7), appointment(8)])
    assert found[0] == Verdict("ok")
    for lost in found[1:]:
        assert isinstance(lost, ProblemError)
        assert lost.problem.code == "DATABASE_UNAVAILABLE"
        assert "may have happened" in str(lost.problem.detail)
    assert query(database_url, IN_ORDER) == [("a-6",)]


async def test_many_locked_organisations_leave_the_others_of_their_bucket_alone(
    writer: Writer, database_url: str
) -> None:
    """Singly, the locked ones would take longer than a write may."""
    names = neighbours("o", 120)
    locked, free = names[:60], names[60:]
    with psycopg.connect(database_url) as session:
        for name in locked:
            session.execute(LOCK_ORGANISATION, (name,))
        mixed = [name for pair in zip(locked, free, strict=True) for name in pair]
        writes = dict(zip(mixed, write_concurrently(writer, *(appointment(1, name) for name in mixed)), strict=True))
        found = await asyncio.wait_for(outcomes([writes[name] for name in free]), 2)
        assert set(found) == {"ok"}
        assert not any(writes[name].done() for name in locked)
    assert set(await outcomes(list(writes.values()))) == {"ok"}


async def test_writes_of_an_organisation_found_locked_do_not_overtake_one_another(
    writer: Writer, database_url: str
) -> None:
    """Its lock becomes free between the two calls of a batch."""
    query(database_url, RELEASE_ON_A_7)
    [other] = neighbours("o", 1)
    with suppress(psycopg.OperationalError), psycopg.connect(database_url, application_name="holder") as session:
        session.execute(LOCK_ORGANISATION, ("o",))
        found = await writer.write_in_order([appointment(1), appointment(7, other), appointment(2)])
    assert found == [Verdict("ok")] * 3
    assert query(database_url, IN_ORDER) == [("a-1",), ("a-2",)]


async def test_organisation_shares_batches_again_after_one_of_its_own(writer: Writer, database_url: str) -> None:
    """Otherwise one that is written to all the time would stay alone, and many of them wait for few connections."""
    query(database_url, RECORD_CALLS)  # so that each takes a while
    [other] = neighbours("o", 1)
    with lock_held_elsewhere(database_url):
        writes = write_concurrently(writer, appointment(0))
        await until_blocked(database_url)
        before = batches()[0]
        await until(lambda: batches()[0] > before)  # the organisation is alone now
        # One batch and a half.
        writes += write_concurrently(writer, *map(appointment, range(1, WRITES_MAX * 3 // 2)))
        await asyncio.sleep(0)
        assert writer._queues._groups[bucket_of("o")] == set()
    await until(lambda: "o" in writer._queues._groups[bucket_of("o")])
    writes += write_concurrently(writer, appointment(0, other))
    assert set(await outcomes(writes)) == {"ok"}


async def test_write_that_waits_too_long_behind_calls_of_its_own_batch_is_refused(database_url: str) -> None:
    query(database_url, RECORD_CALLS)
    settings = Settings(database_url=database_url, write_wait_ms_max=300)
    async with open_writer(settings) as writer:
        found: list[Any] = await writer.write_in_order([later(0, update) for update in range(30)])
    codes = [each.problem.code if isinstance(each, ProblemError) else each.outcome for each in found]
    ok = codes.count("ok")
    assert 0 < ok < 30
    assert codes == ["ok"] * ok + ["OVERLOADED"] * (30 - ok)
    assert query(database_url, "select version from appointments") == [(ok,)]


def later(number: int, update: int) -> Appointment:
    """An update that needs a call after that of the one before."""
    return Appointment(**asdict(appointment(number)) | {"updated_at": DAY + timedelta(minutes=update)})


async def in_order(writer: Writer, *appointments: Appointment) -> list[str]:
    return [getattr(verdict, "outcome", str(verdict)) for verdict in await writer.write_in_order(appointments)]


def calls() -> float:
    """The number of calls so far."""
    [family] = metrics.statements.collect()
    own = [sample for sample in family.samples if sample.labels["statement"] == PUT_APPOINTMENTS.name]
    return float(sum(sample.value for sample in own if sample.name.endswith("_count")))


def shift_of(number: int) -> Appointment:
    """Moves appointment `number` into the hour of the one before it."""
    fields = asdict(appointment(number - 1)) | {"id": f"a-{number}", "updated_at": DAY + timedelta(hours=1)}
    return Appointment(**fields)


async def test_batch_of_new_appointments_of_one_organisation_is_one_call(writer: Writer) -> None:
    before = calls()
    assert set(await in_order(writer, *map(appointment, range(200)))) == {"ok"}
    assert calls() - before == 1


async def test_batch_is_decided_in_its_order_within_a_call_and_over_several(writer: Writer, database_url: str) -> None:
    """Each of the first appointments moves into the hour that the one before it has left; the hour of the last one is
    free for a new one only after that."""
    await in_order(writer, *map(appointment, range(1, 6)))
    new = Appointment(**asdict(appointment(5)) | {"id": "new"})
    assert await in_order(writer, new, *map(shift_of, range(1, 6)), new) == ["conflict", *["ok"] * 6]
    ids = [external_id for [external_id] in query(database_url, IN_ORDER)]
    assert ids[5:] == [f"a-{number}" for number in range(1, 6)] + ["new"]


@pytest.mark.parametrize("seed", range(6))
async def test_both_writers_decide_batches_alike(
    server_url: str, template: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    random = Random(seed)
    with new_database(server_url, template) as one_url, new_database(server_url, template) as other_url:
        async with open_writer(Settings(database_url=one_url)) as by_bucket:
            monkeypatch.setattr("service.writing.writer.ALWAYS_BY_BUCKET", False)
            async with open_writer(Settings(database_url=other_url)) as plain:
                for _ in range(40):
                    batch = [random_appointment(random) for _ in range(random.randrange(1, 30))]
                    found, expected = await by_bucket.write_in_order(batch), await plain.write_in_order(batch)
                    assert found == expected
        assert query(one_url, HISTORY) == query(other_url, HISTORY)
        assert_invariants(one_url)
