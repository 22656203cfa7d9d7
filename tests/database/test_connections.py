"""Connections of the pool that are lost at an awkward moment."""

import asyncio
import time

import asyncpg
import pytest

from service.database import Database
from service.problems import ProblemError
from service.statements import LIST_LAST_CHANGES
from tests.databases import query

SESSIONS = """select pid from pg_stat_activity
    where application_name = 'appointments' and datname = current_database()"""


@pytest.mark.parametrize("turns", range(6))
async def test_between_the_last_word_of_the_server_and_the_end_of_the_line_it_is_a_503(
    database: Database, database_url: str, turns: int
) -> None:
    """asyncpg reads the two in turns of the loop that follow one another."""
    await database.fetch(LIST_LAST_CHANGES, ["o"])
    query(database_url, SESSIONS.replace("pid", "pg_terminate_backend(pid, 5000)", 1))
    time.sleep(0.05)  # noqa: ASYNC251 (the loop shall find both waiting)
    for _ in range(turns):
        await asyncio.sleep(0)
    try:
        await database.fetch(LIST_LAST_CHANGES, ["o"])
    except ProblemError as refused:
        assert refused.problem.code == "DATABASE_UNAVAILABLE"
    await database.fetch(LIST_LAST_CHANGES, ["o"])


async def test_a_connection_in_a_state_that_asyncpg_cannot_use_is_not_handed_out_again(
    database: Database, database_url: str
) -> None:
    await database.fetch(LIST_LAST_CHANGES, ["o"])
    broken = query(database_url, SESSIONS)
    with pytest.raises(ProblemError):
        async with database.connection():
            raise asyncpg.InternalClientError
    await database.fetch(LIST_LAST_CHANGES, ["o"])
    assert query(database_url, SESSIONS) != broken
