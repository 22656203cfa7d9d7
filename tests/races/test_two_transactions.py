"""Two writers, the second held at every place where the first can still change its answer."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
import pytest

from service.contract.body import Appointment
from service.database.connection import set_instant_codec
from service.database.statements import UPSERT_APPOINTMENT
from service.problems import ProblemError
from service.settings import Settings
from service.writing.batch import uuid7
from service.writing.writer import Writer, open_writer
from tests.databases import assert_invariants, query, wait_until_blocked

DAY = datetime(2020, 10, 10, tzinfo=UTC)


def appointment(external_id: str, start: float, updated: float = 0) -> Appointment:
    """An hour long."""
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
    """A foreign writer with a transaction of its own. It takes the lock only if it is told to."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.transaction = connection.transaction()

    async def write(self, external_id: str, start: float, updated: float = 0, *, lock: bool) -> str:
        row = appointment(external_id, start, updated)
        text = UPSERT_APPOINTMENT.text
        if not lock:
            text = re.sub(r"pg_(try_)?advisory_xact_lock\(.*?, 0\)\)", "$1::text is not null", text)
            assert "advisory_xact" not in text
        arguments = (row.org_id, row.id, row.start, row.end, row.created_at, row.updated_at, row.cancelled, uuid7())
        result = await self.connection.fetchrow(text, *([argument] for argument in arguments))
        verdict: str = result["verdict"]
        return verdict


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
async def test_overlap_the_second_waits_for_the_first(
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
async def test_same_key_the_latest_wins_and_an_equal_one_does_not(
    writer: Writer, rival: Rival, database_url: str, lock: bool, updated: float, outcome: str
) -> None:
    await rival.write("a", 10, updated=1, lock=lock)
    second = asyncio.create_task(writer.write(appointment("a", 12, updated=updated)))
    await asyncio.to_thread(wait_until_blocked, database_url)
    await rival.transaction.commit()
    assert (await second).outcome == outcome
    start = 12 if outcome == "ok" else 10
    assert query(database_url, "select lower(during) from appointments") == [(DAY + timedelta(hours=start),)]
    assert_invariants(database_url)


@pytest.mark.parametrize("lock", [True, False])
async def test_a_stale_update_is_stale_even_into_an_interval_just_taken(
    writer: Writer, rival: Rival, database_url: str, lock: bool
) -> None:
    await writer.write(appointment("a", 10, updated=5))
    await rival.write("b", 12, lock=lock)
    second = asyncio.create_task(writer.write(appointment("a", 12, updated=5)))
    if lock:
        await asyncio.to_thread(wait_until_blocked, database_url)
    await rival.transaction.commit()
    assert (await second).outcome == "stale"


async def test_an_interval_just_freed_may_be_taken(writer: Writer, rival: Rival, database_url: str) -> None:
    await writer.write(appointment("a", 10))
    await rival.write("a", 20, updated=1, lock=True)
    second = asyncio.create_task(writer.write(appointment("b", 10)))
    await asyncio.to_thread(wait_until_blocked, database_url)
    await rival.transaction.commit()
    assert (await second).outcome == "ok"


async def test_another_organisation_waits_for_nobody(writer: Writer, rival: Rival) -> None:
    await rival.write("a", 10, lock=True)
    other = msgspec.structs.replace(appointment("a", 10), org_id="other")
    assert (await asyncio.wait_for(writer.write(other), 10)).outcome == "ok"


async def test_a_lock_that_does_not_come_free_ends_in_a_503(database_url: str, rival: Rival) -> None:
    await rival.write("a", 10, lock=True)
    settings = Settings(database_url=database_url, statement_ms_max=200)
    async with open_writer(settings) as writer:
        with pytest.raises(ProblemError, match="DATABASE_UNAVAILABLE"):
            await writer.write(appointment("b", 12))
    await rival.transaction.rollback()
    assert query(database_url, "select * from appointments") == []
