"""Load shedding: writes that find no room are refused before they cost what a write costs.

A client that sends again at once, whatever Retry-After says, costs time too. So a refused connection is paused and
read again in its turn, a few of them in each round of the event loop: an admitted write needs several rounds, and
rounds in which thousands are refused are long. Benchmark O2 compares the writes accepted from 4,000 connections
that never pause with those from 64; without turns the ratio was 0.4.
"""

from time import perf_counter
from typing import Any

from starlette.types import Scope

from service.metrics import request_seconds
from service.problems import TOO_MANY_WRITES, ProblemError, problem_response
from service.web.connection import Connection
from service.web.request_ids import id_of
from service.web.turns import Turns

FULL = problem_response(ProblemError("OVERLOADED", TOO_MANY_WRITES))
TURNS = Turns()


class SheddingConnection(Connection):
    """Answers a POST to `shed_path` itself if `admits` of the application's state says that there is no room. The
    requests behind it that have been read already wait until the connection's next turn."""

    _excess_at = 0.0  # when the head of the current message came, if the message is refused unread

    def connection_made(self, transport: Any) -> None:
        self._waiting_writes: set[object] = set()  # those of the pipeline that may be refused in their turn
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        TURNS.forget(self)
        super().connection_lost(exc)

    def take_turn(self) -> None:
        if not (self.wire.is_closing() or self.lingering):
            self.go_on()
        if not (self.pipeline or self in TURNS.resting):
            self.resume()

    def begin_request(self) -> None:
        excess = self._is_excess()
        if excess and not self._waits():
            self._excess_at = perf_counter()
            if self.expect_100_continue:
                self.wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self.wire.flush()
            return
        super().begin_request()
        if excess:
            self._waiting_writes.add(self.cycle)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if self in TURNS.resting:
            self.pipeline.append((cycle, app))
            return
        if cycle in self._waiting_writes:
            self._waiting_writes.remove(cycle)
            if not (cycle.more_body or self.app_state["admits"]()):
                cycle.response_started = cycle.response_complete = True
                self._refuse_excess(cycle.scope, perf_counter(), closes=not cycle.keep_alive)
                return
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        if not self._excess_at:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._excess_at:
            self.reading = None
            excess_at, self._excess_at = self._excess_at, 0.0
            self._refuse_excess(self.request(), excess_at, closes=not self.keeps_alive())
        else:
            super().on_message_complete()

    def is_unanswered(self) -> bool:
        return bool(self._excess_at) or super().is_unanswered()

    def _is_excess(self) -> bool:
        # `admits` counts, so it is asked for writes only.
        return self.is_post_to(self.app_state["shed_path"]) and (self._waits() or not self.app_state["admits"]())

    def _waits(self) -> bool:
        """Whether the request that was just read is decided in its turn."""
        return self.owes_answer() or self in TURNS.resting

    def _refuse_excess(self, scope: Scope, excess_at: float, *, closes: bool) -> None:
        self.answer(FULL, id_of(scope), scope, closes=closes)
        request_seconds("POST", self.app_state["shed_path"], FULL.status_code).observe(perf_counter() - excess_at)
        if closes:
            self.wire.close()
            return
        self.pause()
        TURNS.wait(self)
