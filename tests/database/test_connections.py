"""Connections of the pool that are lost at an awkward moment."""

import asyncio
import time
from contextlib import AsyncExitStack

import asyncpg
import pytest

from service.database.pool import Database
from service.database.statements import LIST_LAST_CHANGES
from service.problems import ProblemError
from service.settings import Settings
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


async def test_who_waits_for_a_connection_is_served_before_who_comes_later(database: Database) -> None:
    """asyncpg gives a connection that has just come back to whoever asks first, also if others wait for it."""
    served: list[int] = []

    async def read(number: int) -> None:
        async with database.connection() as connection:
            served.append(number)
            await connection.fetch(LIST_LAST_CHANGES, ["o"])

    async with asyncio.TaskGroup() as group, AsyncExitStack() as held:
        for _ in range(Settings().pool_connections_max):
            await held.enter_async_context(database.connection())
        for number in range(20):
            group.create_task(read(number))
        await asyncio.sleep(0)
        await held.aclose()
        await read(20)
    assert served == list(range(21))
