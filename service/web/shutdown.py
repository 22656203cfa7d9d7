"""The first part of a shutdown: /readyz turns 503 while the service still accepts requests."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context
from types import FrameType

import structlog

log = structlog.get_logger()


class Shutdown:
    """`begun` becomes true at SIGTERM, for the drain period before the server stops accepting connections."""

    begun = False


@contextmanager
def draining(shutdown: Shutdown, drain_ms: int) -> Iterator[None]:
    """Delays SIGTERM by the drain period, so that load balancers notice first.

    uvicorn installs its handler before the lifespan starts and stops accepting connections as soon as it runs.
    """
    loop = asyncio.get_running_loop()
    stop_accepting = signal.getsignal(signal.SIGTERM)

    def drain(number: int, frame: FrameType | None) -> None:
        log.info("shutdown begun", drain_ms=drain_ms)
        if callable(stop_accepting):
            loop.call_later(drain_ms / 1e3, stop_accepting, number, frame)

    def begin(number: int, frame: FrameType | None) -> None:
        """Does little, since it may interrupt anything, even a log line that holds a lock."""
        shutdown.begun = True
        loop.call_soon_threadsafe(drain, number, frame, context=Context())

    signal.signal(signal.SIGTERM, begin)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, stop_accepting)
