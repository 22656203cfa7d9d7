"""The two statements that write, and the constraints of the schema, without the service."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import psycopg
import pytest

from service.database.buckets import bucket_of, key_of
from service.database.pool import Database
from service.database.statements import LIST_APPOINTMENTS, PUT_APPOINTMENTS, UPSERT_APPOINTMENT, Statement
from service.writing.batch import uuid7
from tests.cluster import not_on_citus
from tests.databases import assert_invariants, query

pytestmark = not_on_citus

DAY = datetime(2020, 10, 10, tzinfo=UTC)


def at(hours: float) -> datetime:
    return DAY + timedelta(hours=hours)


Decided = Mapping[int, dict[str, Any]]  # by position, without the columns that are null


async def decide(database: Database, statement: Statement, *writes: tuple[object, ...]) -> Decided:
    """The rows of one call; each write is the statement's arguments for it, the bucket last."""
    rows = await database.fetch(statement, *arguments_of(statement, *writes))
    return {
        row["place"]: {name: value for name, value in row.items() if value is not None and name != "place"}
        for row in rows
    }


def arguments_of(statement: Statement, *writes: tuple[object, ...]) -> list[object]:
    *columns, buckets = (list(column) for column in zip(*writes, strict=True))
    return [*columns, buckets] if statement is UPSERT_APPOINTMENT else [buckets[0], *columns, False]


@pytest.fixture(params=[UPSERT_APPOINTMENT, PUT_APPOINTMENTS], ids=lambda statement: statement.name)
def statement(request: pytest.FixtureRequest) -> Statement:
    found: Statement = request.param
    return found


class Upsert:
    def __init__(self, database: Database, statement: Statement) -> None:
        self._database, self._statement = database, statement

    async def __call__(
        self, external_id: str, start: float, end: float, updated: float = 0, org_id: str = "o", cancelled: bool = False
    ) -> dict[str, Any]:
        write = (org_id, external_id, at(start), at(end), DAY, at(updated), cancelled, uuid7(), bucket_of(org_id))
        return (await decide(self._database, self._statement, write))[1]


@pytest.fixture
def upsert(database: Database, statement: Statement) -> Upsert:
    return Upsert(database, statement)


async def test_verdicts_carry_their_version_or_blocker(upsert: Upsert, database_url: str) -> None:
    blocker = {
        "blocker_external_id": "a",
        "blocker_start": "2020-10-10T10:00:00.000Z",
        "blocker_end": "2020-10-10T11:00:00.000Z",
    }
    assert await upsert("a", 10, 11) == {"verdict": "ok", "version": 1}
    assert await upsert("a", 10, 11) == {"verdict": "stale"}
    assert await upsert("a", 10, 11, updated=-1) == {"verdict": "stale"}
    assert await upsert("b", 10.5, 12) == {"verdict": "conflict"} | blocker
    assert await upsert("b", 11, 12) == {"verdict": "ok", "version": 1}
    assert (await upsert("b", 10.5, 12))["verdict"] == "stale"
    assert await upsert("b", 10.5, 12, updated=1) == {"verdict": "conflict"} | blocker
    assert await upsert("a", 9, 10, updated=1) == {"verdict": "ok", "version": 2}
    assert await upsert("b", 10.5, 12, updated=1) == {"verdict": "ok", "version": 2}
    assert_invariants(database_url)


async def test_version_row_is_a_full_copy_of_the_appointment(upsert: Upsert, database_url: str) -> None:
    for version in range(3):
        await upsert("a", version, version + 1, updated=version)
        await upsert("b", version + 10, version + 11, updated=version)
    columns = "org_id, external_id, version, during, payload_created_at, payload_updated_at, cancelled, received_at"
    current = query(database_url, f"select id, {columns} from appointments order by external_id")
    last = query(
        database_url,
        f"select appointment_id, {columns} from appointment_versions where version = 3 order by external_id",
    )
    assert current == last
    assert query(database_url, "select external_id, version from appointment_versions order by sequence_number") == [
        ("a", 1),
        ("b", 1),
        ("a", 2),
        ("b", 2),
        ("a", 3),
        ("b", 3),
    ]
    assert_invariants(database_url)


async def test_stale_and_conflicting_payloads_record_no_version(upsert: Upsert, database_url: str) -> None:
    verdicts = [(await upsert(*payload))["verdict"] for payload in (("a", 10, 11), ("a", 10, 12), ("b", 10, 12))]
    assert verdicts == ["ok", "stale", "conflict"]
    assert query(database_url, "select external_id, version from appointment_versions") == [("a", 1)]


async def test_cancelled_appointment_blocks_nothing_and_is_not_listed(upsert: Upsert, database: Database) -> None:
    await upsert("a", 10, 11)
    assert await upsert("a", 10, 11, updated=1, cancelled=True) == {"verdict": "ok", "version": 2}
    assert (await upsert("b", 10, 11))["verdict"] == "ok"
    [row] = await database.fetch(LIST_APPOINTMENTS, *key_of("o"), *[None] * 6, False, None)
    assert '"b"' in row["appointment"]


async def test_later_payload_reactivates_a_cancelled_appointment(upsert: Upsert, database_url: str) -> None:
    await upsert("a", 10, 11, cancelled=True)
    await upsert("b", 10, 11)
    assert (await upsert("a", 10, 11, updated=1))["verdict"] == "conflict"
    assert await upsert("a", 11, 12, updated=1) == {"verdict": "ok", "version": 2}
    assert query(database_url, "select cancelled from appointments") == [(False,), (False,)]
    versions = query(database_url, "select cancelled from appointment_versions order by sequence_number")
    assert versions == [(True,), (False,), (False,)]
    assert_invariants(database_url)


async def test_cancelled_payload_never_conflicts(upsert: Upsert, database_url: str) -> None:
    await upsert("a", 10, 11)
    await upsert("b", 11, 12)
    assert await upsert("c", 10, 12, cancelled=True) == {"verdict": "ok", "version": 1}
    assert await upsert("b", 10, 12, updated=1, cancelled=True) == {"verdict": "ok", "version": 2}
    assert (await upsert("b", 10, 12, updated=1))["verdict"] == "stale"
    assert_invariants(database_url)


async def test_received_at_increases_even_if_the_clock_is_set_back(upsert: Upsert, database_url: str) -> None:
    await upsert("a", 10, 11)
    query(database_url, "update appointments set received_at = '2999-01-01'")
    await upsert("a", 10, 11, updated=1)
    assert query(database_url, "select received_at::text from appointments") == [("2999-01-01 00:00:00.000001+00",)]


async def test_upsert_is_busy_and_writes_nothing_while_the_lock_is_held(
    upsert: Upsert, database: Database, database_url: str
) -> None:
    async with database.connection() as holder, holder.transaction():
        locked = await holder.fetch(UPSERT_APPOINTMENT, ["o", "p"], *[[None, None]] * 8)
        assert [row["verdict"] for row in locked] == ["locked", "locked"]
        assert await upsert("a", 10, 11) == {"verdict": "busy"}
        assert (await upsert("a", 10, 11, org_id="other"))["verdict"] == "ok"
    assert query(database_url, "select org_id from appointments") == [("other",)]
    assert (await upsert("a", 10, 11))["verdict"] == "ok"


@pytest.mark.parametrize(
    "during", ["empty", "[2020-01-01,2020-01-01]", "(2020-01-01,2020-01-02)", "[2020-01-01,)", "(,2020-01-01)", "(,)"]
)
async def test_schema_rejects_intervals_other_than_start_inclusive_end_exclusive(
    database_url: str, during: str
) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(
                f"""insert into appointments
                (bucket, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version)
                values (organisation_bucket('o'), 'o', 'a', '{during}', now(), now(), now(), 1)"""
            )
    finally:
        await connection.close()


async def test_schema_rejects_overlapping_appointments(upsert: Upsert, database_url: str) -> None:
    await upsert("a", 10, 11)
    connection = await asyncpg.connect(database_url)
    try:
        with pytest.raises(asyncpg.ExclusionViolationError):
            await connection.execute(
                """insert into appointments
                (bucket, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version)
                select bucket, org_id, 'b', during, now(), now(), now(), 1 from appointments"""
            )
    finally:
        await connection.close()


async def test_schema_rejects_deleting_an_appointment_with_versions(upsert: Upsert, database_url: str) -> None:
    await upsert("a", 10, 11)
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        query(database_url, "delete from appointments")


async def test_overlap_is_refused_in_a_wrong_bucket_too(upsert: Upsert, database_url: str) -> None:
    """Here the constraint does without the bucket; on Citus a check guarantees the right one (tests/citus)."""
    await upsert("a", 10, 11)
    columns = "org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version"
    values = columns.replace("external_id", "'b'")
    with pytest.raises(psycopg.errors.ExclusionViolation):
        query(
            database_url, f"insert into appointments (bucket, {columns}) select bucket + 1, {values} from appointments"
        )
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        query(database_url, "update appointment_versions set bucket = bucket + 1")


async def test_a_change_number_given_twice_is_refused(upsert: Upsert, database_url: str) -> None:
    await upsert("a", 10, 11)
    await upsert("a", 10, 11, updated=1)
    with pytest.raises(psycopg.errors.UniqueViolation, match="appointment_versions_pkey"):
        query(database_url, "update appointment_versions set sequence_number = 1")


async def test_nothing_is_judged_in_a_read_only_transaction(
    upsert: Upsert, statement: Statement, database: Database
) -> None:
    """A standby may be late, so that even what it calls stale need not be."""
    await upsert("a", 10, 11)
    stale = ("o", "a", at(10), at(11), DAY, at(0), False, uuid7(), bucket_of("o"))
    async with database.connection() as connection:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with connection._connection.transaction(readonly=True):
                await connection.fetch(statement, *arguments_of(statement, stale))
