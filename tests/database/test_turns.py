"""Calls of one bucket that hang, as on a cluster whose server has halted, do not delay those of other buckets."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest

from service.database.buckets import bucket_of
from service.database.pool import LATE_PER_TURN_MAX, open_database
from service.database.statements import Statement
from service.reading.change_poller import open_change_poller
from service.settings import Settings
from service.writing.writer import open_writer
from tests.databases import query
from tests.writer.test_writer import appointment, outcomes, until, write_concurrently

pytestmark = pytest.mark.usefixtures("held")

CONNECTIONS = 6
LOCK = "select pg_advisory_lock(77)"
HELD = "exists (select from pg_locks where locktype = 'advisory' and objid = 77 and granted)"
WAITING = "select count(*) from pg_locks where locktype = 'advisory' and objid = 77 and not granted"
SESSIONS = "select count(*) from pg_stat_activity where datname = current_database() and application_name <> ''"
HANGS = Statement("hangs", "select $1::int4 as bucket, pg_advisory_xact_lock_shared(77)")
ANSWERS = Statement("answers", "select $1::int4 as bucket")
LAST_CHANGES = Statement(
    "last_changes",
    f"""select asked.org_id, '1' as last_change from unnest($2::text[]) as asked (org_id)
    where $1::int4 <> {bucket_of("hanging")} or pg_advisory_xact_lock_shared(77) is not null""",
)
HANG_IN_TRIGGER = f"""
    create function hang() returns trigger language plpgsql as $$
        begin while {HELD} loop perform pg_sleep(0.01); end loop; return new; end $$;
    create trigger hang before insert on appointments for each row when (new.org_id like 'hanging%')
    execute function hang()"""
NAMES = [f"hanging-{number}" for number in range(100)]
HANGING = list({bucket_of(name): name for name in NAMES if bucket_of(name) != bucket_of("other")}.values())[:8]


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url, pool_connections_max=CONNECTIONS, write_connections_max=1)


@pytest.fixture
def held(database_url: str) -> Iterator[None]:
    """Until the end of the test, every call that asks for the lock hangs."""
    with psycopg.connect(database_url) as session:
        session.execute(LOCK)
        yield


async def test_reads_of_other_buckets_go_on_while_those_of_half_the_buckets_hang(
    settings: Settings, database_url: str
) -> None:
    async with open_database(settings, distributed=True) as database:
        hanging = [asyncio.create_task(database.fetch(HANGS, bucket)) for bucket in range(8) for _ in range(2)]
        await until(lambda: query(database_url, WAITING) >= [(LATE_PER_TURN_MAX * CONNECTIONS,)])
        for _ in range(20):
            assert await database.fetch(ANSWERS, 8) == [(8,)]
        await end(hanging)
        await until(lambda: query(database_url, SESSIONS) <= [(CONNECTIONS + 1,)])


async def test_reads_of_a_bucket_leave_turns_to_others_before_they_are_late(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.database.turns.LATE_SECONDS", 60)
    async with open_database(settings, distributed=True) as database:
        hanging = [asyncio.create_task(database.fetch(HANGS, 1)) for _ in range(2 * CONNECTIONS)]
        await until(lambda: query(database_url, WAITING) == [(CONNECTIONS // 3,)])
        assert await database.fetch(ANSWERS, 2) == [(2,)]
        await end(hanging)


async def test_writes_of_other_buckets_go_on_while_those_of_half_the_buckets_hang(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.writing.writer.ALWAYS_BY_BUCKET", True)
    query(database_url, HANG_IN_TRIGGER)
    async with open_writer(settings) as writer:
        hanging = write_concurrently(writer, *(appointment(1, name) for name in HANGING))
        sleeping = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
        await until(lambda: query(database_url, sleeping) == [(len(HANGING),)])
        assert await outcomes(write_concurrently(writer, appointment(1, "other"))) == ["ok"]
        assert not any(write.done() for write in hanging)
        await end(hanging)


async def test_long_polls_of_other_buckets_go_on_while_those_of_one_hang(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.reading.change_poller.LIST_LAST_CHANGES", LAST_CHANGES)
    async with (
        open_database(settings, distributed=True) as database,
        open_change_poller(database, distributed=True) as poller,
    ):
        hanging = asyncio.create_task(poller.wait("hanging", "0", 60, never()))
        for _ in range(3):
            await asyncio.wait_for(poller.wait("other", "0", 60, never()), 10)
        assert not hanging.done()
        await end([hanging])


async def never() -> None:
    await asyncio.Event().wait()


async def end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
