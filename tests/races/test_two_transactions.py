"""Two concurrent writers: the second waits while the outcome of the first is still open."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
import pytest

from service.contract.body import Appointment
from service.database.connection import set_instant_codec
from service.database.statements import PUT_APPOINTMENTS, UPSERT_APPOINTMENT
from service.problems import ProblemError
from service.settings import Settings
from service.writing.batch import Write
from service.writing.writer import Writer, open_writer
from tests.cluster import not_on_citus
from tests.databases import assert_invariants, query, wait_until_blocked
from tests.processes import writes_by_bucket

pytestmark = not_on_citus

DAY = datetime(2020, 10, 10, tzinfo=UTC)


def appointment(external_id: str, start: float, updated: float = 0) -> Appointment:
    """One hour long; `start` and `updated` are hours after the beginning of DAY."""
    begin = DAY + timedelta(hours=start)
    updated_at = DAY + timedelta(hours=updated)
    return Appointment(
        id=external_id,
        start=begin,
        end=begin + timedelta(hours=1),
        created_at=DAY,
        updated_at=max(updated_at, DAY),
        org_id="o",
        cancelled=False,
    )


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Writer]:
    async with open_writer(Settings(database_url=database_url)) as opened:
        yield opened


class Rival:
    """Another writer, of the same kind, with a transaction of its own. It takes the organisation's lock only if `lock`
    is set."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.transaction = connection.transaction()

    async def write(self, external_id: str, start: float, updated: float = 0, *, lock: bool) -> str:
        row = appointment(external_id, start, updated)
        *arguments, bucket = Write(row, asyncio.get_running_loop()).arguments
        arrays = [[argument] for argument in arguments]
        if writes_by_bucket():
            text = PUT_APPOINTMENTS.text
            if not lock:
                await self.connection.execute(function_without_lock(await self.connection.fetchval(PUT_FUNCTION)))
                text = text.replace("put_appointments(", "pg_temp.put_appointments(")
            result = await self.connection.fetchrow(text, bucket, *arrays, False)
        else:
            text = UPSERT_APPOINTMENT.text if lock else without_lock(UPSERT_APPOINTMENT.text)
            result = await self.connection.fetchrow(text, *arrays, [bucket])
        verdict: str = result["verdict"]
        return verdict


PUT_FUNCTION = "select pg_get_functiondef('put_appointments'::regproc)"


def function_without_lock(definition: str) -> str:
    """The function in the schema of the session's temporary objects."""
    assert definition.count("FUNCTION public.put_appointments(") == 1
    return without_lock(definition.replace("FUNCTION public.put_appointments(", "FUNCTION pg_temp.put_appointments("))


def without_lock(text: str) -> str:
    text = re.sub(r"pg_(try_)?advisory_xact_lock\(hashtextextended\((.*?), 0\)\)", r"\2 is not null", text)
    assert "advisory_xact" not in text
    return text


@pytest.fixture
async def rival(database_url: str) -> AsyncIterator[Rival]:
    connection = await asyncpg.connect(database_url)
    await set_instant_codec(connection)
    held = Rival(connection)
    await held.transaction.start()
    yield held
    await connection.close()


@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_an_overlapping_write_waits_for_the_first_to_commit_or_roll_back(
    writer: Writer, rival: Rival, database_url: str, lock: bool, end: str
) -> None:
    assert await rival.write("a", 10, lock=lock) == "ok"
    second = asyncio.create_task(writer.write(appointment("b", 10.5)))
    await asyncio.to_thread(wait_until_blocked, database_url)
    assert not second.done()
    await getattr(rival.transaction, end)()
    verdict = await second
    if end == "rollback":
        assert verdict.outcome == "ok"
    else:
        assert verdict.outcome == "conflict"
        assert verdict.blocker is not None
        assert verdict.blocker.external_id == "a"
    assert_invariants(database_url)


@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize(("updated", "outcome"), [(2, "ok"), (1, "stale"), (0, "stale")])
async def test_of_two_writes_of_one_appointment_the_later_wins_and_an_equal_one_is_stale(
    writer: Writer, rival: Rival, database_url: str, lock: bool, updated: float, outcome: str
) -> None:
    assert await rival.write("a", 10, updated=1, lock=lock) == "ok"
    second = asyncio.create_task(writer.write(appointment("a", 12, updated=updated)))
    await asyncio.to_thread(wait_until_blocked, database_url)
    await rival.transaction.commit()
    assert (await second).outcome == outcome
    start = 12 if outcome == "ok" else 10
    assert query(database_url, "select lower(during) from appointments") == [(DAY + timedelta(hours=start),)]
    assert_invariants(database_url)


@pytest.mark.parametrize("lock", [True, False])
async def test_a_stale_update_is_stale_even_if_its_time_range_was_just_taken(
    writer: Writer, rival: Rival, database_url: str, lock: bool
) -> None:
    assert (await writer.write(appointment("a", 10, updated=5))).outcome == "ok"
    assert await rival.write("b", 12, lock=lock) == "ok"
    second = asyncio.create_task(writer.write(appointment("a", 12, updated=5)))
    if lock:
        await asyncio.to_thread(wait_until_blocked, database_url)
    await rival.transaction.commit()
    assert (await second).outcome == "stale"


async def test_a_time_range_just_freed_can_be_taken(writer: Writer, rival: Rival, database_url: str) -> None:
    assert (await writer.write(appointment("a", 10))).outcome == "ok"
    assert await rival.write("a", 20, updated=1, lock=True) == "ok"
    second = asyncio.create_task(writer.write(appointment("b", 10)))
    await asyncio.to_thread(wait_until_blocked, database_url)
    await rival.transaction.commit()
    assert (await second).outcome == "ok"


async def test_a_write_to_another_organisation_does_not_wait(writer: Writer, rival: Rival) -> None:
    assert await rival.write("a", 10, lock=True) == "ok"
    other = msgspec.structs.replace(appointment("a", 10), org_id="other")
    assert (await asyncio.wait_for(writer.write(other), 10)).outcome == "ok"


async def test_a_write_is_a_503_if_the_lock_is_not_released_in_time(database_url: str, rival: Rival) -> None:
    assert await rival.write("a", 10, lock=True) == "ok"
    settings = Settings(database_url=database_url, statement_ms_max=200)
    async with open_writer(settings) as writer:
        with pytest.raises(ProblemError, match="DATABASE_UNAVAILABLE"):
            await writer.write(appointment("b", 12))
    await rival.transaction.rollback()
    assert query(database_url, "select * from appointments") == []
