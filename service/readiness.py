"""Whether the service should get requests now, and the turn of it when a shutdown begins."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context
from types import FrameType

import structlog

from service import schema
from service.database import Database
from service.problems import ProblemError

log = structlog.get_logger()


class Shutdown:
    """`begun` turns true at SIGTERM, a while before the server stops accepting."""

    begun = False


@contextmanager
def draining(shutdown: Shutdown, drain_ms: int) -> Iterator[None]:
    """Hands SIGTERM on to the server only after the drain time, so that balancers notice first.

    uvicorn installs its handler before the lifespan starts and stops accepting as soon as it runs.
    """
    loop = asyncio.get_running_loop()
    stop_accepting = signal.getsignal(signal.SIGTERM)

    def drain(number: int, frame: FrameType | None) -> None:
        log.info("shutdown begun", drain_ms=drain_ms)
        if callable(stop_accepting):
            loop.call_later(drain_ms / 1e3, stop_accepting, number, frame)

    def begin(number: int, frame: FrameType | None) -> None:
        """Does little: it may have interrupted anything, a log line with its lock included."""
        shutdown.begun = True
        loop.call_soon_threadsafe(drain, number, frame, context=Context())

    signal.signal(signal.SIGTERM, begin)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, stop_accepting)


async def why_not_ready(database: Database, shutdown: Shutdown) -> str | None:
    """The reason as a sentence, or None."""
    if shutdown.begun:
        return "The service is shutting down."
    try:
        pending = await schema.pending(database)
    except ProblemError as error:
        return error.problem.detail
    return f"The schema lacks {', '.join(pending)}; run the migrations." if pending else None
