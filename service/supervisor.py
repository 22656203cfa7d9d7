"""Background tasks that live as long as the service: logged and restarted if they fail, cancelled at the end."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from time import monotonic

import structlog

from service.metrics import BACKGROUND_FAILURES

log = structlog.get_logger()

BACK_OFF_SECONDS = (0.1, 0.5, 1, 5, 10)  # before a restart; the last one from then on
STEADY_SECONDS = 60  # a task that ran this long before it failed starts again with the shortest pause

Work = Callable[[], Coroutine[None, None, None]]


@asynccontextmanager
async def supervised(**works: Work) -> AsyncIterator[None]:
    """Runs each task function, named by its keyword, until the block ends; none of them should return."""
    tasks = [asyncio.create_task(keep_running(name, work), name=name) for name, work in works.items()]
    try:
        yield
    finally:
        await cancel(tasks)


async def keep_running(name: str, work: Work) -> None:
    failures = 0
    while True:
        started = monotonic()
        try:
            await work()
            log.error("background task ended", task=name)
        except (Exception, asyncio.CancelledError):  # a cancellation that is not ours leaked out of the work
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            log.exception("background task failed", task=name)
        BACKGROUND_FAILURES.labels(name).inc()
        failures = 1 if monotonic() - started > STEADY_SECONDS else failures + 1
        await asyncio.sleep(pause_after(failures, BACK_OFF_SECONDS))


def pause_after(failures: int, pauses: Sequence[float]) -> float:
    """The pause after that number of failures in a row, from 1; the last one from then on."""
    return pauses[min(failures, len(pauses)) - 1]


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
