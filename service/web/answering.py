"""uvicorn's HTTP protocol with responses that need no application, refusals in their turn, and a lingering close. Rests
on uvicorn's internals, as do its subclasses; tests/web/test_uvicorn.py says what an upgrade has changed."""

from typing import Any, Literal

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.metrics import REFUSALS
from service.problems import ProblemError, problem_response
from service.web.close_delimited import close_delimited
from service.web.joined_writes import JoinedWrites
from service.web.request_ids import new_id


class AnsweringProtocol(HttpToolsProtocol):
    """The answers of a connection, which come in the order of its requests."""

    def connection_made(self, transport: Any) -> None:
        self.wire = JoinedWrites(transport, self._lingers)
        super().connection_made(self.wire)  # type: ignore[arg-type]
        self.reading: Literal["head", "body"] | None = None  # the part of a message that is being read
        self.lingering = False  # the last answer is written, and our side is closed
        self._ended = False  # nothing more is parsed
        self._refusal: ProblemError | None = None  # the last answer, if earlier ones are still to come

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if cycle.scope["http_version"] != "1.1":
            app = close_delimited(app, cycle, self.wire)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Like uvicorn's, but without its timer, and nothing follows the last answer."""
        self.wire.flush()
        self.server_state.total_requests += 1
        if not (self.wire.is_closing() or self.lingering):
            self.flow.resume_reading()
            self.go_on()

    def go_on(self) -> None:
        """Begins the answer that is next."""
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal:
            self._end_with(self._refusal)

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
        self._ended = True
        REFUSALS.labels(error.problem.code).inc()
        if self.reading == "body" and not self.is_unanswered():
            if self.owes_answer():  # the rest of an answer that began before the end of the body
                self.cycle.keep_alive = False
            else:
                self._linger()
        elif self.reading == "body" and self.pipeline:
            self.pipeline.popleft()  # the request itself, the last one
            self._refuse_in_turn(error)
        elif self.reading != "body" and self.owes_answer():
            self._refuse_in_turn(error)
        else:
            self._end_with(error)

    def _refuse_in_turn(self, error: ProblemError) -> None:
        self.reading = None
        self._refusal = error

    def _end_with(self, error: ProblemError) -> None:
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.answer(problem_response(error), new_id(), closes=True)
        self._linger()

    def _lingers(self) -> bool:
        """Whether a close has to wait, as the client may still be sending. Shutdown does not wait for idle clients."""
        ends = self._ended or (self.reading == "body" and bool(self.cycle) and not self.cycle.keep_alive)
        if waits := ends and not (self.lingering or self.wire.is_closing()):
            self._linger()
        return waits

    def _linger(self) -> None:
        """Closes our side. Whatever still arrives is discarded for a while (deadlines.py): closing with unread data
        would reset the connection, and the client could lose the answer (RFC 9112, section 9.6)."""
        self._ended = self.lingering = True
        self.wire.write_eof()
        self.resume()

    def answer(self, response: Response, request_id: str, *, closes: bool) -> None:
        """Sends a response without calling the application."""
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"x-request-id", request_id.encode())]
        if closes:
            headers.append((b"connection", b"close"))
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.wire.write(STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body))
        self.wire.flush()
