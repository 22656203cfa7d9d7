"""Refuses writes for which there is no room before they cost what a write costs.

A client that comes again at once, whatever Retry-After says, costs time too. So a connection that was refused is
read again in its turn, a few of them each time the event loop comes round: those who were admitted wait for
several rounds of it, and rounds in which thousands are refused are long. Benchmark O2 holds what is
accepted of 4,000 connections that never rest against what 64 connections are; read at any time it was 0.4.
"""

from collections import deque
from time import perf_counter
from typing import Any

from service.endpoint import header
from service.metrics import request_seconds
from service.observe import id_of
from service.problems import ProblemError, problem_response
from service.protocol import Protocol
from service.writer import TOO_MANY

WRITES = "/api/appointments"
WRITES_URL = WRITES.encode()
FULL = problem_response(ProblemError("OVERLOADED", TOO_MANY))
READ_AGAIN = 32  # connections in a round: O2 was 0.93; 16: 1.02, and half as many refusals; 64: 0.83
RESTING: deque["AdmittingProtocol"] = deque()


class AdmittingProtocol(Protocol):
    """Answers a write by itself if there is no room for it."""

    def connection_made(self, transport: Any) -> None:
        self._excess_at = 0.0  # when the head of the message under way came, if it is refused unread
        super().connection_made(transport)

    def on_headers_complete(self) -> None:
        if self._is_excess():
            self._excess_at = perf_counter()
            self.head_is_read()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._excess_at:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._excess_at:
            self._reading = None
            self._refuse_excess()
        else:
            super().on_message_complete()

    def is_unanswered(self) -> bool:
        return bool(self._excess_at) or super().is_unanswered()

    def _is_excess(self) -> bool:
        return (
            self.url == WRITES_URL
            and self.parser.get_method() == b"POST"
            and not (self.expect_100_continue or self.parser.should_upgrade())
            and not self._owes_answer()  # or its turn has not come
            and not self.app_state["writer"].admits()
            and header(self.scope, b"origin") is None  # type: ignore[arg-type]  # a page can read only what has gone through Cors
        )

    def _refuse_excess(self) -> None:
        closes = self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()
        self.answer(FULL, id_of(self.scope), closes=closes)  # type: ignore[arg-type]
        request_seconds("POST", WRITES, FULL.status_code).observe(perf_counter() - self._excess_at)
        self._excess_at = 0.0
        if closes:
            self.transport.close()
        else:
            self._rest()

    def _rest(self) -> None:
        self.flow.pause_reading()
        if not RESTING:
            self.loop.call_soon(read_again, self.loop)
        RESTING.append(self)


def read_again(loop: Any) -> None:
    for _ in range(min(READ_AGAIN, len(RESTING))):
        connection = RESTING.popleft()
        if not connection.transport.is_closing():
            connection.flow.resume_reading()
    if RESTING:
        loop.call_soon(read_again, loop)
