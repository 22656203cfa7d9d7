"""Between Starlette's routes and the handlers."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Lifespan, Receive, Scope, Send

from service.access import EVERYTHING, Need

Handler = Callable[[Request], Awaitable[Response]]


class Endpoint:
    """The handlers of one path, by method; `guarded`: for those who may use them. HEAD is GET without the
    body, which the server leaves out.

    An ASGI application of its own: a plain function would get an exception handler around each
    request, and there is one around the whole application already (observe.py).
    """

    def __init__(self, get: Handler | None = None, post: Handler | None = None, *, guarded: bool = True) -> None:
        handlers = {"GET": get, "HEAD": get, "POST": post}
        self._handlers = {method: handler for method, handler in handlers.items() if handler}
        self._guarded = guarded
        self._allow = {"Allow": ", ".join(self._handlers)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise HTTPException(405, headers=self._allow)
        need: Need = "write" if scope["method"] == "POST" else "read"
        scope["access"] = await scope["state"]["guard"].admit(scope, need) if self._guarded else EVERYTHING
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)


class StaticRouter(Router):
    """Every path is static, so it is looked up; only what is not there goes through Starlette's search."""

    def __init__(self, routes: Sequence[Route], lifespan: Lifespan[Any]) -> None:
        super().__init__(routes, redirect_slashes=False, lifespan=lifespan)
        self._apps = {route.path: route.app for route in routes}

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._apps.get(scope.get("path", ""))
        await (app or super().app)(scope, receive, send)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that name, which is in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None
