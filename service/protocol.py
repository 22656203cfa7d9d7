"""uvicorn's HTTP protocol, with limits, made to write an answer in one piece and to ignore `Upgrade`.

Limits of time are kept from outside (service/expiry.py).
"""

import asyncio
from functools import partial
from typing import Any, Literal

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.metrics import REFUSALS
from service.observe import new_id
from service.problems import ProblemError, problem_response

Phase = Literal["head", "body", "busy", "writing", "idle", "refused"]
Progress = tuple[int, Phase]  # of which message
FRAMING = 8  # times as long as its content may a body be that comes in chunks of a byte


class Trailers:
    """Takes the fields that follow a body in chunks, and keeps nothing (RFC 9110, section 6.5.1)."""

    def append(self, field: object) -> None:
        """Forgets it."""


TRAILERS = Trailers()


class Joined:
    """A transport that writes head and body of an answer together: uvloop would make two system
    calls of them, a tenth of a small request's time."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []
        self._call_soon = asyncio.get_running_loop().call_soon

        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:  # the rest of an answer may be long in coming
            self._call_soon(self.flush)
        self._pieces.append(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        self.flush()
        if not self.is_closing():
            self._transport.write_eof()

    def flush(self) -> None:
        if self._pieces:
            if not self.is_closing():  # by a client that reset it, of which the protocol may not know yet
                self._transport.write(b"".join(self._pieces))
            self._pieces.clear()


class Protocol(HttpToolsProtocol):
    """A server may ignore `Upgrade` (RFC 9110, section 7.8), and clients in Java or curl --http2 offer
    one with every first request. httptools takes all that follows such a head for another protocol,
    and the body would be lost; so the head is parsed again without the offer.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(Joined(transport))  # type: ignore[arg-type]
        settings = self.app_state["settings"]
        self._head_bytes_max = settings.header_bytes_max
        self._message_bytes_max = FRAMING * settings.batch_body_bytes_max
        self._bytes = 0  # of the head, or of the body and its framing
        self._messages = 0
        self._reading: Phase | None = None  # the part of a message that is under way
        self._refused = False
        self.noted: Progress | None = None
        self.noted_at = 0.0
        if len(self.connections) > settings.connections_max:
            self._refuse(ProblemError("OVERLOADED", "There are too many connections; nothing was written."))

    def data_received(self, data: bytes) -> None:
        while data and not self._refused:
            piece = data[: self._head_bytes_max - (self._bytes if self._reading == "head" else 0)]
            data = data[len(piece) :]
            self._feed(piece)

    def _feed(self, piece: bytes) -> None:
        """A piece goes no further than a head may."""
        before, messages = self._reading, self._messages
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self._reading = None
                self.data_received(head + piece[upgrade.args[0] :])
            elif self.cycle:  # after CONNECT the parser takes nothing more
                self.cycle.keep_alive = False
            return
        except httptools.HttpParserError as error:
            ours = isinstance(error, httptools.HttpParserCallbackError)  # it reads the target
            fault = "the request target is none" if ours else str(error)
            self._refuse(ProblemError("INVALID_HTTP", f"Expected an HTTP/1.1 request (RFC 9112): {fault}."))
            return
        if self._reading is None:
            return
        # One that began within the piece, after another, is counted from the next piece on.
        whole = self._messages == messages + (before is None) and self._reading == (before or "head")
        self._bytes = self._bytes + len(piece) if whole else 0
        if self._reading == "head" and self._bytes >= self._head_bytes_max:
            detail = f"Expected a request line and headers of at most {self._head_bytes_max} bytes."
            self._refuse(ProblemError("HEADERS_TOO_LARGE", detail))
        elif self._bytes > self._message_bytes_max:
            self._refuse(ProblemError("PAYLOAD_TOO_LARGE", "The body with its framing is too large."))

    def on_message_begin(self) -> None:
        self._messages += 1
        self._bytes = 0
        self._reading = "head"
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.head_is_read()

    def head_is_read(self) -> None:
        self._bytes = 0
        self._reading = "body"
        if not self.parser.should_upgrade():
            self.headers = TRAILERS  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self._reading = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, but for its timer."""
        self.transport.flush()  # type: ignore[attr-defined]
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())

    def phase(self) -> Phase:
        if self._refused and not self._owes_answer():
            return "refused"
        if self.transport.get_write_buffer_size():
            return "writing"
        if self._reading == "body" and not self.pipeline:
            return "body"
        if self._owes_answer():
            return "busy"
        return "head" if self._reading == "head" or not self._messages else "idle"

    def progress(self) -> Progress:
        """Changes with the message and the phase."""
        return self._messages, self.phase()

    def expire(self, phase: Phase) -> None:
        """Ends what has been in a phase for too long."""
        if phase == "head" and self._messages:
            self._refuse(ProblemError("REQUEST_TIMEOUT", "The request line and headers took too long."))
        elif phase == "body" and self.is_unanswered():
            self._refuse(ProblemError("REQUEST_TIMEOUT", "The body took too long; nothing was written."))
        elif phase in ("head", "idle"):
            self.transport.close()
        else:
            self.transport.abort()

    def is_unanswered(self) -> bool:
        """Whether the message that is read may still be answered."""
        return not self.cycle.response_started

    def _owes_answer(self) -> bool:
        """Whether an answer is still to come, or its end; those of a connection come in order."""
        return bool(self.cycle and not (self.cycle.response_complete or self.cycle.disconnected))

    def _refuse(self, error: ProblemError) -> None:
        """Nothing is read any more; what is owed to requests before is answered, in their order."""
        self._refused = True
        REFUSALS.labels(error.problem.code).inc()
        if self._reading == "body" and self.is_unanswered():
            if self.pipeline:  # of which it is the last
                self.pipeline[0] = self.cycle, partial(self._refuse_in_turn, error)
            else:
                self._end(error)
        elif self._owes_answer():  # to another request, or the answer has begun
            self.cycle.keep_alive = False
        elif self._reading == "body":  # the answer came before its end
            self.transport.write_eof()
        else:
            self._end(error)

    async def _refuse_in_turn(self, error: ProblemError, _scope: Any, _receive: Any, _send: Any) -> None:
        """In place of the application."""
        self._end(error)

    def _end(self, error: ProblemError) -> None:
        """The last answer of the connection. What still comes is read for a while and thrown away, so that
        the client can read the answer (RFC 9112, section 9.6)."""
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.answer(problem_response(error), new_id(), closes=True)
        self.transport.write_eof()

    def answer(self, response: Response, request_id: str, *, closes: bool) -> None:
        """Without an application."""
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"x-request-id", request_id.encode())]
        if closes:
            headers.append((b"connection", b"close"))
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body))
        self.transport.flush()  # type: ignore[attr-defined]

    def _should_upgrade(self) -> bool:
        return self._get_upgrade() is not None  # makes uvicorn hold the request back

    def _head_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        headers = [b"%s: %s\r\n" % header for header in self.scope["headers"] if header[0] != b"upgrade"]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(headers))
