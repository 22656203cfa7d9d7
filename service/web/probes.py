"""Probes and metrics for operators, and the drain period of a shutdown, which /readyz announces."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context
from types import FrameType
from typing import Any

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from service.access.grants import Grant
from service.access.tokens import Tokens
from service.contract.answers import Accepted
from service.database import schema
from service.metrics import exposition
from service.problems import ProblemError

log = structlog.get_logger()

OK = Response(msgspec.json.encode(Accepted("ok")), media_type="application/json")


async def livez(_: Request, __: Grant) -> Response:
    return OK


async def readyz(request: Request, _: Grant) -> Response:
    if reason := await why_not_ready(request.scope["state"]):
        raise ProblemError("NOT_READY", reason)
    return OK


async def metrics(_: Request, grant: Grant) -> Response:
    grant.check_all()
    return Response(exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def why_not_ready(state: dict[str, Any]) -> str | None:
    """The reason as a sentence, or None."""
    tokens: Tokens | None = state["tokens"]
    if tokens and (reason := tokens.why_not_ready()):
        return reason
    if state["shutdown"].begun:
        return "The service is shutting down."
    try:
        pending = await schema.pending(state["probe_database"])
    except ProblemError as error:
        return error.problem.detail
    return f"The schema lacks {', '.join(pending)}; run the migrations." if pending else None


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
