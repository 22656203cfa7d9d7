"""Around every request: its id, its log line, its figures, and the last resort for an exception."""

import asyncio
import re
from time import perf_counter
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from service.metrics import REQUEST_SECONDS
from service.problems import ProblemError, problem_response

log = structlog.get_logger()

SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
CUT_SHORT = "The service is shutting down. A write may have happened; sending it again is safe."
CLIENT_GONE = 499  # as nginx logs it; nobody gets to see it


class Observe:
    """Wraps the whole application, so that no answer leaves without an id and no request unlogged."""

    def __init__(self, app: ASGIApp, routes: frozenset[str]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if SANE_ID.fullmatch(asked) else uuid4().hex
        clear_contextvars()
        bind_contextvars(request_id=request_id)
        status = CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_GONE
        except asyncio.CancelledError:  # the grace time of a shutdown is over
            if status == CLIENT_GONE:
                response = await problem_response(Request(scope), ProblemError("OVERLOADED", CUT_SHORT))
                await response(scope, receive, send_with_id)
        except Exception:  # Starlette has answered with problem_response and raises it again
            log.exception("request failed")
        finally:
            self._record(scope, status, perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        method, path = scope["method"], scope["path"]
        route = path if path in self._routes else "unknown"
        REQUEST_SECONDS.labels(method, route, status).observe(seconds)
        log.info("request", method=method, route=route, status=status, ms=round(seconds * 1e3, 2))
