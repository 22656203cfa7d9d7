"""Background tasks that fail are logged, counted and started again."""

import asyncio

import pytest
from structlog.testing import capture_logs

from service import supervisor
from service.metrics import BACKGROUND_FAILURES
from service.supervisor import supervised


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACK_OFF_SECONDS", (0,))


def failures(task: str) -> float:
    value: float = BACKGROUND_FAILURES.labels(task)._value.get()
    return value


async def test_a_task_that_raises_is_logged_counted_and_started_again() -> None:
    runs = 0
    running = asyncio.Event()

    async def fail_twice() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError("broken")
        running.set()
        await asyncio.Event().wait()

    before = failures("twice")
    with capture_logs() as logs:
        async with supervised(twice=fail_twice):
            await asyncio.wait_for(running.wait(), 30)
    assert [(line["event"], line["log_level"], line["task"]) for line in logs] == [
        ("background task failed", "error", "twice")
    ] * 2
    assert failures("twice") == before + 2


async def test_a_task_that_returns_is_logged_and_started_again() -> None:
    started = asyncio.Semaphore(0)

    async def return_at_once() -> None:
        started.release()

    with capture_logs() as logs:
        async with supervised(brief=return_at_once):
            for _ in range(2):
                await asyncio.wait_for(started.acquire(), 30)
    assert logs[0]["event"] == "background task ended"


async def test_one_failing_task_does_not_affect_another() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    ticks = asyncio.Semaphore(0)

    async def tick() -> None:
        while True:
            ticks.release()
            await asyncio.sleep(0)

    with capture_logs():
        async with supervised(failing=fail, ticking=tick):
            for _ in range(20):
                await asyncio.wait_for(ticks.acquire(), 30)


async def test_tasks_are_cancelled_and_awaited_at_the_end() -> None:
    ended = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async with supervised(waiting=wait):
        await asyncio.sleep(0)
    assert ended == [True]


async def test_a_task_that_awaits_a_cancelled_future_is_started_again() -> None:
    started = asyncio.Semaphore(0)

    async def await_cancelled() -> None:
        started.release()
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with capture_logs() as logs:
        async with supervised(leaking=await_cancelled):
            for _ in range(2):
                await asyncio.wait_for(started.acquire(), 30)
    assert logs[0]["event"] == "background task failed"
