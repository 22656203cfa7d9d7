"""The statement for distributed tables, where it differs from the other one, and that it decides alike."""

import asyncio
from random import Random

import asyncpg
import psycopg
import pytest

from service.contract.body import Appointment
from service.database.buckets import bucket_of
from service.database.pool import Database, open_database
from service.database.statements import PUT_APPOINTMENTS, UPSERT_APPOINTMENT
from service.settings import Settings
from service.writing.batch import Write, arrange, uuid7
from tests.databases import LOCK_ORGANISATION, assert_invariants, neighbours, new_database, query
from tests.statements.test_upsert import DAY, at, decide

ROUNDS = 60
APPOINTMENTS = """
    select id, bucket, org_id, external_id, during, payload_created_at, payload_updated_at, version, cancelled
    from appointments order by org_id, external_id"""
VERSIONS = """
    select appointment_id, bucket, org_id, external_id, during, payload_created_at, payload_updated_at, version,
        cancelled
    from appointment_versions order by org_id, external_id, version"""
NUMBERS = "select array_agg(sequence_number order by sequence_number) from appointment_versions group by org_id"


ORGANISATIONS = ["o", *neighbours("o", 2)]


def write(org_id: str, external_id: str, start: float, end: float, updated: float = 0) -> tuple[object, ...]:
    return org_id, external_id, at(start), at(end), DAY, at(updated), False, uuid7(), bucket_of(org_id)


def random_appointment(random: Random) -> Appointment:
    start = random.randrange(12)
    return Appointment(
        id=random.choice("abcdef"),
        start=at(start),
        end=at(start + random.randrange(1, 4)),
        created_at=DAY,
        updated_at=at(random.randrange(8)),
        org_id=random.choice(ORGANISATIONS),
        cancelled=random.random() < 0.2,
    )


@pytest.mark.parametrize("seed", range(4))
async def test_both_statements_decide_alike(server_url: str, template: str, seed: int) -> None:
    random = Random(seed)
    verdicts: set[str] = set()
    with new_database(server_url, template) as one_url, new_database(server_url, template) as other_url:
        async with (
            open_database(Settings(database_url=one_url)) as one,
            open_database(Settings(database_url=other_url)) as other,
        ):
            for _ in range(ROUNDS):
                batch = [
                    Write(random_appointment(random), asyncio.get_running_loop())
                    for _ in range(random.randrange(1, 12))
                ]
                for run in arrange(batch):
                    writes = [each.arguments for each in run.writes]
                    found = await decide(one, UPSERT_APPOINTMENT, *writes)
                    assert await decide(other, PUT_APPOINTMENTS, *writes) == found
                    verdicts |= {row["verdict"] for row in found.values()}
        assert verdicts == {"ok", "stale", "conflict"}
        for rows in (APPOINTMENTS, VERSIONS):
            assert query(one_url, rows) == query(other_url, rows)
        for [numbers] in query(other_url, NUMBERS):
            assert isinstance(numbers, list)
            assert numbers == list(range(1, len(numbers) + 1))
        assert_invariants(other_url)


async def test_a_locked_organisation_is_busy_and_the_others_of_the_call_are_decided(
    database: Database, database_url: str
) -> None:
    first, locked, last = sorted(ORGANISATIONS)
    writes = [write(name, external_id, 0, 1) for external_id in "ab" for name in (last, locked, first)]
    with psycopg.connect(database_url) as session:
        session.execute(LOCK_ORGANISATION, (locked,))
        found = await decide(database, PUT_APPOINTMENTS, *writes[:3])
        ok = {"verdict": "ok", "version": 1}
        assert found == {1: ok, 2: {"verdict": "busy"}, 3: ok}
    assert query(database_url, "select org_id from appointments order by 1") == [(first,), (last,)]
    assert (await decide(database, PUT_APPOINTMENTS, *writes[1:2]))[1] == ok


async def test_lock_of_a_row_is_waited_for_only_as_long_as_the_function_says(
    database: Database, database_url: str
) -> None:
    """Of the session's time limits none reaches the server that holds the bucket; this one has no limit at all."""
    await decide(database, PUT_APPOINTMENTS, write("o", "a", 0, 1))
    with psycopg.connect(database_url) as session:
        session.execute("update appointments set version = version")
        async with database.connection() as connection:
            *arguments, bucket = write("o", "a", 0, 1, updated=1)
            with pytest.raises(asyncpg.LockNotAvailableError):
                await connection.fetch(PUT_APPOINTMENTS, bucket, *([argument] for argument in arguments), False)
