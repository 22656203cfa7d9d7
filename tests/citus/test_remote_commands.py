"""Each statement is one command for the server that holds the bucket: Citus runs others over all of them, and without a
word as long as the answer is right."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from service.database.statements import PUT_APPOINTMENTS
from tests.citus.commands import CALLS, READS, START, Session, counting_session, writes
from tests.cluster import distributed_database, needs_citus

pytestmark = needs_citus


@pytest.fixture(scope="module")
def url() -> Any:
    with distributed_database() as created:
        yield created


@pytest.fixture
async def session(url: str) -> AsyncIterator[Session]:
    async with counting_session(url) as opened:
        yield opened


@pytest.mark.parametrize("rows", [1, 64])
async def test_call_that_writes_is_one_command(session: Session, rows: int) -> None:
    for call in range(CALLS):
        later = START + timedelta(hours=1 + call + rows)
        for verdict, arguments in {
            "ok": writes(0, rows, updated=later),
            "stale": writes(0, rows, updated=later),
            "conflict": writes(0, rows, updated=later, ids="b"),
        }.items():
            answers, commands = await session.commands_of(PUT_APPOINTMENTS, *arguments)
            assert [answer["verdict"] for answer in answers] == [verdict] * rows
            assert len(commands) == 1, commands


@pytest.mark.parametrize("name", READS)
async def test_read_is_one_command(session: Session, name: str) -> None:
    statement, arguments = READS[name]
    await session.connection.fetch(PUT_APPOINTMENTS.text, *writes(0, 5, updated=START + timedelta(days=2)))
    for _ in range(CALLS):
        _, commands = await session.commands_of(statement, *arguments)
        assert len(commands) == 1, commands
