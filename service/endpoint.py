"""Between Starlette's routes and the handlers."""

from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]


class Endpoint:
    """The handlers of one path, by method. HEAD is GET without the body, which the server leaves out.

    An ASGI application of its own: a plain function would get an exception handler around each
    request, and there is one around the whole application already (observe.py).
    """

    def __init__(self, get: Handler, post: Handler | None = None) -> None:
        self._handlers = {"GET": get, "HEAD": get} | ({"POST": post} if post else {})
        self._allow = {"Allow": ", ".join(self._handlers)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["method"])
        if handler is None:
            raise HTTPException(405, headers=self._allow)
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that name, which is in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None
