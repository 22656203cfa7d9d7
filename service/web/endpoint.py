"""From an ASGI request to a handler and back: method, grant, decoded body, response."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.access.grants import EVERYTHING, Grant, Need
from service.contract.body import BodyKind
from service.contract.headers import header, sends_lines
from service.contract.parameters import NO_PARAMETERS, read_query
from service.problems import ProblemError

Get = Callable[[Request, Grant], Awaitable[Response]]
Post = tuple[Callable[[Request, Grant, Any], Awaitable[Response]], BodyKind]


class Endpoint:
    """The handlers of one path. HEAD is GET without the body, which the server leaves out. An ASGI application, not a
    function that Starlette would wrap into an exception handler of its own: that costs 2.5 µs of some 85 µs of CPU a
    request, and request_context.py handles exceptions already."""

    def __init__(self, get: Get | None = None, post: Post | None = None, *, guarded: bool = True) -> None:
        self._get, self._post, self._guarded = get, post, guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        method = scope["method"]
        if method == "POST" and self._post:
            handle, kind = self._post
            grant = await self._authorise(scope, "write")
            read_query(scope["query_string"], NO_PARAMETERS)
            lines = sends_lines(scope, accepted=kind.decode_lines is not None)
            decode = kind.decode_lines if lines and kind.decode_lines else kind.decode_json
            # Without a name the body is let go before the handler waits.
            response = await handle(request, grant, decode(await read_body(request, kind)))
        elif method in ("GET", "HEAD") and self._get:
            response = await self._get(request, await self._authorise(scope, "read"))
        else:
            allowed = ", ".join((["GET", "HEAD"] if self._get else []) + (["POST"] if self._post else []))
            raise ProblemError("METHOD_NOT_ALLOWED", f"This route supports {allowed}.", headers={"Allow": allowed})
        await response(scope, receive, send)

    async def _authorise(self, scope: Scope, need: Need) -> Grant:
        tokens = scope["state"]["tokens"]
        if tokens is None or not self._guarded:
            return EVERYTHING
        grant: Grant = await tokens.admit(scope, need)
        return grant


class BodyRoom:
    """Limits what all bodies that arrive in several pieces hold together; many clients could send more than fits."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_left = bytes_max

    def take(self, size: int) -> None:
        """Raises ProblemError, a 503, if there is no room."""
        if size > self.bytes_left:
            raise ProblemError("OVERLOADED", "Too many request bodies are incomplete; nothing was written.")
        self.bytes_left -= size


async def read_body(request: Request, kind: BodyKind) -> bytes:
    """Raises ProblemError as soon as the size is known to be over the limit. The server discards the rest, so that the
    client can read the answer."""
    declared = int((header(request.scope, b"content-length") or "").lstrip("0") or 0)  # int() limits digits
    room: BodyRoom = request.scope["state"]["body_room"]
    body, taken, more = bytearray(), 0, True
    try:
        while more and max(declared, len(body)) <= kind.bytes_max:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message["body"]
            more = message["more_body"]
            if more or taken:  # a body in one piece needs no room
                room.take(len(body) - taken)
                taken = len(body)
    finally:
        room.bytes_left += taken
    if max(declared, len(body)) > kind.bytes_max:
        raise ProblemError("PAYLOAD_TOO_LARGE", f"Expected a body of at most {kind.bytes_max} bytes.")
    return bytes(body)


async def not_found(_: Scope, __: Receive, ___: Send) -> None:
    """What the router does with a path that has no route."""
    raise ProblemError("NOT_FOUND", "There is no such route; /api/docs lists the routes.")
