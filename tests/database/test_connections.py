"""Pool connections that are lost or unusable, and the order in which requests get connections."""

import asyncio
from contextlib import AsyncExitStack

import asyncpg
import pytest

from service.database import schema
from service.database.pool import Database
from service.database.statements import LIST_LAST_CHANGES
from service.problems import ProblemError
from service.settings import Settings
from tests.cluster import not_on_citus
from tests.databases import query
from tests.processes import wait_until

pytestmark = not_on_citus

SESSIONS = """select pid from pg_stat_activity
    where application_name = 'appointments' and datname = current_database()"""
TERMINATE_SESSIONS = SESSIONS.replace("pid", "pg_terminate_backend(pid, 5000)", 1)


@pytest.mark.parametrize("iterations", range(6))
async def test_connection_lost_at_any_point_of_its_shutdown_is_a_503_at_most_once(
    database: Database, database_url: str, iterations: int
) -> None:
    """asyncpg reads the server's last message and the end of the stream in separate iterations of the loop."""
    await database.fetch(LIST_LAST_CHANGES, 0, ["o"])
    # Returns once the server's process has ended: the message and the end of the stream are there to be read.
    assert query(database_url, TERMINATE_SESSIONS) == [(True,)]
    for _ in range(iterations):
        await asyncio.sleep(0)
    outcome = "ok"
    try:
        await database.fetch(LIST_LAST_CHANGES, 0, ["o"])
    except ProblemError as refused:
        outcome = refused.problem.code
    assert outcome == "DATABASE_UNAVAILABLE" or (outcome == "ok" and iterations > 0)
    await database.fetch(LIST_LAST_CHANGES, 0, ["o"])


async def test_unusable_connection_is_not_returned_to_the_pool(database: Database, database_url: str) -> None:
    await database.fetch(LIST_LAST_CHANGES, 0, ["o"])
    [broken] = query(database_url, SESSIONS)
    with pytest.raises(ProblemError):
        async with database.connection():
            raise asyncpg.InternalClientError
    await database.fetch(LIST_LAST_CHANGES, 0, ["o"])
    await asyncio.to_thread(wait_until, lambda: broken not in query(database_url, SESSIONS))


async def test_reads_are_unavailable_while_migrations_are_rolled_back(database: Database, database_url: str) -> None:
    await database.fetch(LIST_LAST_CHANGES, 0, ["o"])
    for _ in schema.KNOWN:
        await asyncio.to_thread(schema.rollback, database_url)
    with pytest.raises(ProblemError) as refused:
        await database.fetch(LIST_LAST_CHANGES, 0, ["o"])
    assert refused.value.problem.code == "DATABASE_UNAVAILABLE"
    await asyncio.to_thread(schema.migrate, database_url)
    await database.fetch(LIST_LAST_CHANGES, 0, ["o"])


async def test_waiting_requests_get_connections_in_order_of_arrival(database: Database) -> None:
    """asyncpg's pool alone would give a returned connection to the next caller, even if others wait for it."""
    served: list[int] = []

    async def read(number: int) -> None:
        async with database.connection() as connection:
            served.append(number)
            await connection.fetch(LIST_LAST_CHANGES, 0, ["o"])

    async with asyncio.TaskGroup() as group, AsyncExitStack() as held:
        for _ in range(Settings().pool_connections_max):
            await held.enter_async_context(database.connection())
        for number in range(20):
            group.create_task(read(number))
        await asyncio.sleep(0)
        await held.aclose()
        await read(20)
    assert served == list(range(21))
