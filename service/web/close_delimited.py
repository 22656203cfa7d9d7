"""Answers to clients older than HTTP/1.1, which cannot read chunks: the end of the connection is the end of an answer
without a length (RFC 9112, section 6.3)."""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.joined_writes import JoinedWrites


def close_delimited(app: ASGIApp, cycle: Any, wire: JoinedWrites) -> ASGIApp:
    """`cycle` is uvicorn's for this request, which frames an answer without a length in chunks for any client."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        delimits = False

        async def send_without_chunks(message: Message) -> None:
            nonlocal delimits
            if message["type"] == "http.response.start":
                delimits = all(name.lower() != b"content-length" for name, _ in message["headers"])
                if delimits:
                    cycle.chunked_encoding = False
                    wire.delimit(complete=False)
            elif delimits:
                cycle.expected_content_length = len(message.get("body", b""))  # each piece is taken for the last one
                if not message.get("more_body", False):
                    wire.delimit(complete=True)
            await send(message)

        await app(scope, receive, send_without_chunks)

    return run
