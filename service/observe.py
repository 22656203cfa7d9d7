"""Around every request: its id, its log line, its figures, and the last resort for an exception."""

import asyncio
import re
from http import HTTPStatus
from random import getrandbits
from time import perf_counter

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.endpoint import header
from service.logs import REQUEST
from service.metrics import request_seconds
from service.problems import ProblemError, problem_response

log = structlog.get_logger()

SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
CUT_SHORT = "The service is shutting down. A write may have happened; sending it again is safe."
CLIENT_GONE = 499  # as nginx logs it; nobody gets to see it


def new_id() -> str:
    return f"{getrandbits(128):032x}"


def id_of(scope: Scope) -> str:
    """The caller's, if it sent a sane one."""
    asked = header(scope, b"x-request-id")
    return asked if asked and SANE_ID.fullmatch(asked) else new_id()


class Observe:
    """Wraps all routes, so that no answer leaves without an id and no request unlogged."""

    def __init__(self, app: ASGIApp, routes: frozenset[str]) -> None:
        self._app = app
        self._routes = routes
        self._log = log.bind()  # by now it is known which levels do nothing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        request_id = id_of(scope)
        REQUEST.set({"request_id": request_id})
        scope["app"] = self  # so that the router raises its errors
        status = CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_GONE
        except asyncio.CancelledError:  # the grace time of a shutdown is over
            if status == CLIENT_GONE:
                response = problem_response(ProblemError("OVERLOADED", CUT_SHORT))
                await response(scope, receive, send_with_id)
        except Exception as error:
            if not isinstance(error, ProblemError | HTTPException):
                log.exception("request failed")
            if status == CLIENT_GONE:
                response = problem_response(error)
                await response(scope, receive, send_with_id)
        finally:
            self._record(scope, status, perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        method, path = scope["method"], scope["path"]
        route = path if path in self._routes else "unknown"
        request_seconds(method, route, status).observe(seconds)
        write = self._log.debug if status < HTTPStatus.INTERNAL_SERVER_ERROR else self._log.warning
        write("request", method=method, route=route, status=status, ms=seconds * 1e3)
