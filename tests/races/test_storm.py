"""Many writers at once, over HTTP and several processes, with exactly the right winners."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.databases import assert_invariants, query
from tests.http.requests import payload
from tests.processes import ServiceProcess, running_service

ROUNDS = int(os.environ.get("STORM_ROUNDS", "1"))


@pytest.fixture
def processes(database_url: str, tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    """Two, so that nothing can be right only within one."""
    with (
        running_service(tmp_path / "one", DATABASE_URL=database_url) as one,
        running_service(tmp_path / "two", DATABASE_URL=database_url) as two,
    ):
        yield [one, two]


async def storm(processes: list[ServiceProcess], bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """All at once, every other one to every other process."""
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        requests = [
            client.post(f"{processes[place % len(processes)].url}/api/appointments", json=body)
            for place, body in enumerate(bodies)
        ]
        return await asyncio.gather(*requests)


@pytest.mark.parametrize("round_", range(ROUNDS))
async def test_of_200_overlapping_exactly_one_wins(
    processes: list[ServiceProcess], database_url: str, round_: int
) -> None:
    bodies = [payload(f"o-{round_}", id=f"a-{number}") for number in range(200)]
    answers = Counter(response.status_code for response in await storm(processes, bodies))
    assert answers == {200: 1, 409: 199}
    assert query(database_url, "select count(*) from appointment_versions") == [(1,)]
    assert_invariants(database_url)


async def test_each_of_40_slots_gets_exactly_one_of_5(processes: list[ServiceProcess], database_url: str) -> None:
    days = [f"2020-10-{day:02}" for day in range(1, 21)]
    slots = [{"start": f"{day} {hour}:00", "end": f"{day} {hour}:59"} for day in days for hour in (10, 11)]
    bodies = [payload("o", id=f"{slot['start']}, {number}", **slot) for number in range(5) for slot in slots]
    answers = Counter(response.status_code for response in await storm(processes, bodies))
    assert answers == {200: 40, 409: 160}
    assert query(database_url, "select count(distinct lower(during)) from appointments") == [(40,)]
    assert_invariants(database_url)


async def test_of_200_updates_of_one_appointment_the_latest_remains(
    processes: list[ServiceProcess], database_url: str
) -> None:
    bodies = [payload("o", updatedAt=f"2020-10-01 10:{number // 60:02}:{number % 60:02}") for number in range(100)]
    responses = await storm(processes, bodies + bodies)
    answers = Counter(response.text for response in responses)
    assert set(answers) <= {'{"status":"ok"}', '{"status":"ignored-stale"}'}
    accepted = answers['{"status":"ok"}']
    assert query(database_url, "select version, payload_updated_at::text from appointments") == [
        (accepted, "2020-10-01 10:01:39+00")
    ]
    assert query(database_url, "select count(*) from appointment_versions") == [(accepted,)]
    assert_invariants(database_url)


async def test_organisations_do_not_disturb_each_other(processes: list[ServiceProcess], database_url: str) -> None:
    bodies = [payload(f"o-{number}") for number in range(200)]
    assert {response.status_code for response in await storm(processes, bodies)} == {200}
    assert query(database_url, "select count(*) from appointments") == [(200,)]
