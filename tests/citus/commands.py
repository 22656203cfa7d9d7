"""The commands that a coordinator sends to its workers, counted in a session as the service opens it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg

from service.database.buckets import bucket_of, key_of
from service.database.connection import connect_options, session_parameters, set_up
from service.database.statements import (
    LIST_APPOINTMENTS,
    LIST_APPOINTMENTS_AS_OF,
    LIST_AVAILABILITY,
    LIST_CALENDAR,
    LIST_CHANGES,
    LIST_LAST_CHANGES,
    LIST_VERSIONS,
    Statement,
)
from service.settings import Settings

CALLS = 8  # after five, PostgreSQL may take a generic plan
ORGANISATION = "an organisation"
KEY = key_of(ORGANISATION)
START = datetime(2020, 10, 10, tzinfo=UTC)
END = START + timedelta(hours=1)
NO_FILTERS = (None,) * 6
PAGE = (None, None, None, None, START, "a")
READS: dict[str, tuple[Statement, tuple[object, ...]]] = {
    "list": (LIST_APPOINTMENTS, (*KEY, *NO_FILTERS, False, None)),
    "page": (LIST_APPOINTMENTS, (*KEY, *PAGE, False, 10)),
    "list at an instant": (LIST_APPOINTMENTS, (*KEY, START, *NO_FILTERS[1:], False, None)),
    "list in a range": (LIST_APPOINTMENTS, (*KEY, None, START, END, None, None, None, False, None)),
    "list of one": (LIST_APPOINTMENTS, (*KEY, None, None, None, "a-0", None, None, False, None)),
    "list with cancelled ones": (LIST_APPOINTMENTS, (*KEY, *NO_FILTERS, True, None)),
    "page with cancelled ones": (LIST_APPOINTMENTS, (*KEY, *PAGE, True, 10)),
    "list as of": (LIST_APPOINTMENTS_AS_OF, (*KEY, *NO_FILTERS, False, END, None)),
    "page as of": (LIST_APPOINTMENTS_AS_OF, (*KEY, *PAGE, True, END, 10)),
    "versions": (LIST_VERSIONS, (*KEY, "a-0", None, None)),
    "page of versions": (LIST_VERSIONS, (*KEY, "a-0", START, 10)),
    "changes": (LIST_CHANGES, (*KEY, 0, "", 100)),
    "changes after one": (LIST_CHANGES, (*KEY, 1, "1-0", 100)),
    "last changes": (LIST_LAST_CHANGES, (bucket_of(ORGANISATION), [ORGANISATION])),
    "last changes of several": (LIST_LAST_CHANGES, (bucket_of(ORGANISATION), [ORGANISATION, "another"])),
    "availability": (LIST_AVAILABILITY, (*KEY, START, END, 0, None)),
    "calendar": (LIST_CALENDAR, (*KEY, None)),
}


class Session:
    """A connection as the service opens it, which counts the commands that the coordinator sends."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.commands: list[str] = []

    def note(self, _: object, message: Any) -> None:
        if message.message.startswith("issuing "):
            self.commands.append(message.message)

    async def commands_of(self, statement: Statement, *arguments: object) -> tuple[list[asyncpg.Record], list[str]]:
        self.commands = []
        rows = await self.connection.fetch(statement.text, *arguments)
        await asyncio.sleep(0)  # listeners are called by the loop
        return rows, self.commands


@asynccontextmanager
async def counting_session(url: str) -> AsyncIterator[Session]:
    settings = Settings(database_url=url)
    connection = await asyncpg.connect(**connect_options(settings))
    await set_up(connection, session_parameters(settings, 0, distributed=True))
    opened = Session(connection)
    connection.add_log_listener(opened.note)
    await connection.execute("set citus.log_remote_commands = on; set client_min_messages = log")
    yield opened
    connection.remove_log_listener(opened.note)
    await connection.close()


def writes(first: int, count: int, *, updated: datetime = START, ids: str = "a") -> tuple[object, ...]:
    numbers = range(first, first + count)
    return (
        bucket_of(ORGANISATION),
        [ORGANISATION for _ in numbers],
        [f"{ids}-{n}" for n in numbers],
        [START + timedelta(days=n) for n in numbers],
        [START + timedelta(days=n, hours=1) for n in numbers],
        [START for _ in numbers],
        [updated for _ in numbers],
        [False for _ in numbers],
        [uuid4() for _ in numbers],
        False,
    )
