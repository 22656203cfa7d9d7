"""The number of commands that Citus sends to its workers for the calls of the service's statements."""

import asyncio

from service.database.statements import PUT_APPOINTMENTS
from tests.citus.commands import CALLS, READS, counting_session, writes

CALLS_IN_ALL = CALLS * (1 + len(READS))


def sent(database_url: str) -> int:
    """For CALLS_IN_ALL calls: each kind of read, and the statement that writes, CALLS times."""
    return asyncio.run(count(database_url))


async def count(database_url: str) -> int:
    found = 0
    async with counting_session(database_url) as session:
        for number in range(CALLS):
            found += len((await session.commands_of(PUT_APPOINTMENTS, *writes(64 * number, 64)))[1])
            for statement, arguments in READS.values():
                found += len((await session.commands_of(statement, *arguments))[1])
    return found
