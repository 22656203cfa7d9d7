"""uvicorn's HTTP protocol with size limits, a lingering close, and responses that need no application. Rests on
uvicorn's internals, as no other module does; tests/web/test_uvicorn.py says what an upgrade has changed."""

from collections import deque
from functools import partial
from typing import Any, Literal

import httptools
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.metrics import REFUSALS
from service.problems import ProblemError, problem_response
from service.web.joined_writes import JoinedWrites
from service.web.request_ids import new_id

HEADER_BYTES_MAX = 32_768  # of the request line and the headers together
FRAMED_BODY_BYTES_MAX = 33_554_432  # 8 times 4 MiB, since chunks of one byte cost 6 bytes per byte
TRAILERS: deque[object] = deque(maxlen=0)  # discards the fields after a chunked body (RFC 9110, section 6.5.1)


class Connection(HttpToolsProtocol):
    """A connection of a client, whose requests may be pipelined."""

    def connection_made(self, transport: Any) -> None:
        self.wire = JoinedWrites(transport, self._lingers)
        super().connection_made(self.wire)  # type: ignore[arg-type]
        self.messages = 0
        self.reading: Literal["head", "body"] | None = None  # the part of a message that is being read
        self.lingering = False  # the last answer is written, and our side is closed
        self.last_progress: object = None  # as deadlines.py saw it
        self.last_progress_at = 0.0
        self._bytes = 0  # of the head, or of the body with its framing
        self._refused = False  # nothing more is parsed
        self.app_state["connections"].add(self)
        if len(self.app_state["connections"]) > self.app_state["settings"].connections_max:
            self.refuse(ProblemError("OVERLOADED", "There are too many connections; nothing was written."))

    def connection_lost(self, exc: Exception | None) -> None:
        self.app_state["connections"].discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        while data and not self._refused:
            piece = data[: HEADER_BYTES_MAX - (self._bytes if self.reading == "head" else 0)]
            data = data[len(piece) :]
            self._feed(piece)

    def _feed(self, piece: bytes) -> None:
        """A piece is never longer than the rest of a head may be."""
        before, messages = self.reading, self.messages
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._parse_without_upgrade(piece[upgrade.args[0] :])
            elif self.cycle:  # after CONNECT the parser takes nothing more
                self.cycle.keep_alive = False
            return
        except httptools.HttpParserError as error:
            ours = isinstance(error, httptools.HttpParserCallbackError)  # raised while uvicorn reads the target
            fault = "the request target is not valid" if ours else str(error)
            self.refuse(ProblemError("INVALID_HTTP", f"Expected an HTTP/1.1 request (RFC 9112): {fault}."))
            return
        if self.reading is None:
            return
        # A message that began within this piece, after another one, is counted from the next piece on.
        whole = self.messages == messages + (before is None) and self.reading == (before or "head")
        self._bytes = self._bytes + len(piece) if whole else 0
        if self.reading == "head" and self._bytes >= HEADER_BYTES_MAX:
            detail = f"Expected a request line and headers of at most {HEADER_BYTES_MAX} bytes."
            self.refuse(ProblemError("HEADERS_TOO_LARGE", detail))
        elif self._bytes > FRAMED_BODY_BYTES_MAX:
            self.refuse(ProblemError("PAYLOAD_TOO_LARGE", "The body with its framing is too large."))

    def _should_upgrade(self) -> bool:
        return self._get_upgrade() is not None  # makes uvicorn hold the request back

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """A server may ignore `Upgrade` (RFC 9110, section 7.8), which clients in Java and curl --http2 offer first.
        httptools would take the body for another protocol, so the head is parsed again without the offer."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        headers = [b"%s: %s\r\n" % header for header in self.scope["headers"] if header[0] != b"upgrade"]
        head = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(headers))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.reading = None
        self.data_received(head + rest)

    def on_message_begin(self) -> None:
        self.messages += 1
        self._bytes = 0
        self.reading = "head"
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.begin_body()

    def begin_body(self) -> None:
        self._bytes = 0
        self.reading = "body"
        if not self.parser.should_upgrade():
            self.headers = TRAILERS  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self.reading = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Like uvicorn's, but without its timer, and nothing follows the last answer."""
        self.wire.flush()
        self.server_state.total_requests += 1
        if not (self.wire.is_closing() or self.lingering):
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())

    def is_plain_post(self, target: bytes) -> bool:
        """Whether the head that was just read is of a POST to this target that expects no answer before its body."""
        unusual = self.expect_100_continue or self.parser.should_upgrade()
        return self.url == target and self.parser.get_method() == b"POST" and not unusual

    def request(self) -> Scope:
        """The ASGI scope of the request that is being read."""
        return self.scope  # type: ignore[return-value]

    def keeps_alive(self) -> bool:
        return self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()

    def owes_answer(self) -> bool:
        """Whether an answer, or the rest of one, is still to come; the answers of a connection come in order."""
        return bool(self.cycle and not (self.cycle.response_complete or self.cycle.disconnected))

    def is_unanswered(self) -> bool:
        """Whether the message that is being read can still be answered."""
        return not self.cycle.response_started

    def is_pipelined(self) -> bool:
        """Whether the message that is being read waits for the answers to earlier ones."""
        return bool(self.pipeline)

    def pause(self) -> None:
        self.flow.pause_reading()

    def resume(self) -> None:
        if not self.wire.is_closing():
            self.flow.resume_reading()

    def refuse(self, error: ProblemError) -> None:
        """Stops reading. Earlier requests of the connection are still answered, in their order."""
        self._refused = True
        REFUSALS.labels(error.problem.code).inc()
        if self.reading == "body" and self.is_unanswered():
            if self.pipeline:  # the refused request is the last one in it
                self.pipeline[0] = self.cycle, partial(self._refuse_in_turn, error)
            else:
                self._end_with(error)
        elif self.owes_answer():  # to another request, or the rest of an answer that has begun
            self.cycle.keep_alive = False
        elif self.reading == "body":  # the answer came before the end of the body
            self._linger()
        else:
            self._end_with(error)

    async def _refuse_in_turn(self, error: ProblemError, _scope: Any, _receive: Any, _send: Any) -> None:
        """Is called in place of the application."""
        self._end_with(error)

    def _end_with(self, error: ProblemError) -> None:
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.answer(problem_response(error), new_id(), closes=True)
        self._linger()

    def _lingers(self) -> bool:
        """Whether a close has to wait, as the client may still be sending. Shutdown does not wait for idle clients."""
        ends = self._refused or (self.reading == "body" and bool(self.cycle) and not self.cycle.keep_alive)
        if waits := ends and not (self.lingering or self.wire.is_closing()):
            self._linger()
        return waits

    def _linger(self) -> None:
        """Closes our side. Whatever still arrives is discarded for a while (deadlines.py): closing with unread data
        would reset the connection, and the client could lose the answer (RFC 9112, section 9.6)."""
        self._refused = self.lingering = True
        self.wire.write_eof()
        self.resume()

    def answer(self, response: Response, request_id: str, *, closes: bool) -> None:
        """Sends a response without calling the application."""
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"x-request-id", request_id.encode())]
        headers += self.app_state["cors"].headers(self.scope)
        if closes:
            headers.append((b"connection", b"close"))
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.wire.write(STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body))
        self.wire.flush()
