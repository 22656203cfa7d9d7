"""Probes and metrics for operators, and the drain period of a shutdown, which /readyz announces."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from types import FrameType
from typing import Any

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from service import interruption
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
        if pending := await schema.pending(state["probe_database"]):
            return f"The schema lacks {', '.join(pending)}; run the migrations."
        distributed = await schema.are_distributed(state["probe_database"])
    except ProblemError as error:
        return error.problem.detail
    if distributed != state["distributed"]:
        return f"The tables are {'now' if distributed else 'no longer'} distributed by Citus; restart the service."
    return None


class Shutdown:
    """`begun` becomes true at SIGINT, SIGTERM or SIGHUP."""

    begun = False


@contextmanager
def draining(shutdown: Shutdown, drain_ms: int, on_begin: Callable[[], None]) -> Iterator[None]:
    """Announces a shutdown: /readyz turns 503, and `on_begin` is called. SIGTERM is delayed by the drain period, so
    that load balancers notice first; the others stop the server at once, also during that period.

    uvicorn installs its handlers before the lifespan starts and stops accepting connections as soon as one runs.
    """
    loop = asyncio.get_running_loop()
    stops = {number: signal.getsignal(number) for number in interruption.SIGNALS}

    def drain(number: int, *, repeated: bool) -> None:
        drains = number == signal.SIGTERM
        if drains and not repeated:
            log.info("shutdown begun", drain_ms=drain_ms)
        on_begin()
        if callable(stop_accepting := stops[signal.Signals(number)]):
            loop.call_later(drain_ms / 1e3 if drains else 0, stop_accepting, number, None)

    def begin(number: int, _: FrameType | None) -> None:
        """Does little, since it may interrupt anything, even a log line that holds a lock."""
        repeated, shutdown.begun = shutdown.begun, True
        loop.call_soon_threadsafe(partial(drain, number, repeated=repeated), context=Context())

    for number in stops:
        signal.signal(number, begin)
    try:
        yield
    finally:
        for number, stop_accepting in stops.items():
            signal.signal(number, stop_accepting)
