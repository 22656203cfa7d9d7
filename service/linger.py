"""Answers that come before the end of a body, on a connection that will close."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.endpoint import header


class Linger:
    """Reads on, for a while, what a refused client still sends, and throws it away.

    Closing with unread data resets the connection, and the client may lose the answer (RFC 9112,
    section 9.6). On a connection that stays open uvicorn does as much.
    """

    def __init__(self, app: ASGIApp, linger_ms_max: int) -> None:
        self._app = app
        self._seconds = linger_ms_max / 1e3

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not closes(scope):
            await self._app(scope, receive, send)
            return
        unread = True

        async def receive_noting() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def send_lingering(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False) and unread:
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds):
                        while unread:
                            await receive_noting()
                message = {"type": "http.response.body"}
            await send(message)

        await self._app(scope, receive_noting, send_lingering)


def closes(scope: Scope) -> bool:
    options = (header(scope, b"connection") or "").lower()
    return "close" in options or (scope["http_version"] == "1.0" and "keep-alive" not in options)
