"""Storms: many concurrent writes over HTTP to two processes, and exactly the right ones succeed."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.databases import assert_invariants, query
from tests.http.requests import assert_accepted, assert_problem, payload
from tests.processes import ServiceProcess, running_service

ROUNDS = int(os.environ.get("STORM_ROUNDS", "1"))


@pytest.fixture
def processes(database_url: str, tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    """Two processes, so that consistency within one process is not enough."""
    with (
        running_service(tmp_path / "one", DATABASE_URL=database_url) as one,
        running_service(tmp_path / "two", DATABASE_URL=database_url) as two,
    ):
        yield [one, two]


async def storm(processes: list[ServiceProcess], bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """Sends all requests at once, alternating between the processes."""
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        requests = [
            client.post(f"{processes[number % len(processes)].url}/api/appointments", json=body)
            for number, body in enumerate(bodies)
        ]
        return await asyncio.gather(*requests)


def assert_one_succeeds(responses: list[httpx.Response]) -> None:
    [accepted] = [response for response in responses if response.status_code == 200]
    assert_accepted(accepted)
    for response in responses:
        if response is not accepted:
            problem = assert_problem(response, 409, "TIME_RANGE_UNAVAILABLE")
            assert problem["conflict"]["externalId"] == json.loads(accepted.request.content)["id"]


@pytest.mark.parametrize("round_", range(ROUNDS))
async def test_exactly_one_of_200_overlapping_writes_succeeds(
    processes: list[ServiceProcess], database_url: str, round_: int
) -> None:
    bodies = [payload(f"o-{round_}", id=f"a-{number}") for number in range(200)]
    responses = await storm(processes, bodies)
    assert_one_succeeds(responses)
    assert query(database_url, "select count(*) from appointment_versions") == [(1,)]
    assert_invariants(database_url)


async def test_exactly_one_of_5_writes_to_each_of_40_slots_succeeds(
    processes: list[ServiceProcess], database_url: str
) -> None:
    days = [f"2020-10-{day:02}" for day in range(1, 21)]
    slots = [{"start": f"{day} {hour}:00", "end": f"{day} {hour}:59"} for day in days for hour in (10, 11)]
    bodies = [payload("o", id=f"{slot['start']}, {number}", **slot) for number in range(5) for slot in slots]
    responses = await storm(processes, bodies)
    for slot in range(len(slots)):
        assert_one_succeeds(responses[slot :: len(slots)])
    assert query(database_url, "select count(distinct lower(during)) from appointments") == [(40,)]
    assert_invariants(database_url)


async def test_the_latest_of_200_concurrent_updates_remains(processes: list[ServiceProcess], database_url: str) -> None:
    bodies = [payload("o", updatedAt=f"2020-10-01 10:{number // 60:02}:{number % 60:02}") for number in range(100)]
    responses = await storm(processes, bodies + bodies)
    stale = [response for response in responses if "stale" in response.text]
    for response in responses:
        assert_accepted(response, "ignored-stale" if response in stale else "ok")
    accepted = len(responses) - len(stale)
    assert query(database_url, "select version, payload_updated_at::text from appointments") == [
        (accepted, "2020-10-01 10:01:39+00")
    ]
    assert query(database_url, "select count(*) from appointment_versions") == [(accepted,)]
    assert_invariants(database_url)


async def test_concurrent_writes_to_different_organisations_all_succeed(
    processes: list[ServiceProcess], database_url: str
) -> None:
    bodies = [payload(f"o-{number}") for number in range(200)]
    for response in await storm(processes, bodies):
        assert_accepted(response)
    assert query(database_url, "select count(*) from appointments") == [(200,)]
