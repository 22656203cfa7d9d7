"""A connection of a client: bytes become requests, with limits on sizes and on the number of connections."""

from collections import deque
from typing import Any, ClassVar

import httptools
import structlog
from starlette.types import Scope

from service.metrics import REFUSALS
from service.problems import ProblemError, as_problem_error
from service.web.answering import AnsweringProtocol
from service.web.heads import check_head, check_target, head_bytes, invalid_http, path_of, without_upgrade

log = structlog.get_logger()

HEADER_BYTES_MAX = 32_768  # of the request line and the headers together
FRAMED_BODY_BYTES_MAX = 33_554_432  # 8 times 4 MiB, since chunks of one byte cost 6 bytes per byte
PIECE_BYTES_MAX = 4_096  # of heads that are parsed at once: every request that waits for its turn takes 2 KB
REFUSED_CONNECTIONS_MAX = 50  # beyond CONNECTIONS_MAX, each with an answer and a lingering close
TRAILERS: deque[object] = deque(maxlen=0)  # discards the fields after a chunked body (RFC 9110, section 6.5.1)


class EndedError(Exception):
    """Stops the parser: nothing may follow the request that was read last."""


class Connection(AnsweringProtocol):
    """A connection of a client, whose requests may be pipelined."""

    refused: ClassVar[set["Connection"]] = set()  # beyond the limit, and not yet closed

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.messages = 0
        self.last_progress: object = None  # as deadlines.py saw it
        self.last_progress_at = 0.0
        self._bytes = 0  # of the head, or of the body with its framing
        self._head_counted = True
        self._unread = b""  # what has come, but is not parsed while earlier requests are unanswered
        self.app_state["connections"].add(self)
        admitted = len(self.app_state["connections"]) - len(self.refused)
        if admitted > self.app_state["settings"].connections_max:
            self._refuse_connection()

    def _refuse_connection(self) -> None:
        self.refused.add(self)
        if len(self.refused) <= REFUSED_CONNECTIONS_MAX:
            self.refuse(ProblemError("OVERLOADED", "There are too many connections; nothing was written."))
        else:  # an answer and a lingering close would use up the descriptors of the database
            REFUSALS.labels("OVERLOADED").inc()
            self.wire.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.app_state["connections"].discard(self)
        self.refused.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        self._read_on()

    def go_on(self) -> None:
        super().go_on()
        if self._unread:
            self._read_on()

    def _read_on(self) -> None:
        while self._unread and not (self._ended or self.pipeline):
            size = HEADER_BYTES_MAX
            if self.reading != "body":
                size = min(PIECE_BYTES_MAX, size - (self._bytes if self.reading else 0))
            piece, self._unread = self._unread[:size], self._unread[size:]
            self._feed(piece)
        if self._ended:
            self._unread = b""
        elif self._unread:
            self.pause()

    def _feed(self, piece: bytes) -> None:
        """A piece is never longer than the rest of a head may be."""
        before, messages = self.reading, self.messages
        upgrade_at = None
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            upgrade_at = upgrade.args[0]
        except httptools.HttpParserCallbackError as error:
            self._stop(error.__context__ or error)
            return
        except httptools.HttpParserError as error:
            self.refuse(invalid_http(str(error)))
            return
        if upgrade_at is not None:  # not where it is caught: it would become the context of later errors
            self._parse_without_upgrade(piece[upgrade_at:])
        elif self.reading:
            self._count(piece, before, messages)

    def _count(self, piece: bytes, before: str | None, messages: int) -> None:
        """Checks the size of the message that is being read; `before` and `messages` are those before the piece."""
        # A message that began within this piece, after another one, is counted from the next piece on.
        whole = self.messages == messages + (before is None) and self.reading == (before or "head")
        self._bytes = self._bytes + len(piece) if whole else 0
        self._head_counted = whole
        if self.reading == "head" and self._bytes >= HEADER_BYTES_MAX:
            self.refuse(head_too_large())
        elif self._bytes > FRAMED_BODY_BYTES_MAX:
            self.refuse(ProblemError("PAYLOAD_TOO_LARGE", "The body with its framing is too large."))

    def _stop(self, cause: BaseException) -> None:
        """After an exception in a callback of the parser."""
        if isinstance(cause, EndedError):
            self._ended = True
            return
        if not isinstance(cause, ProblemError):
            log.error("request failed", exc_info=cause)
        self.refuse(as_problem_error(cause))

    def _should_upgrade(self) -> bool:
        return True  # makes uvicorn hold the request back

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """A server may ignore `Upgrade` (RFC 9110, section 7.8), which clients in Java and curl --http2 offer first.
        httptools would take the body for another protocol, so the head is parsed again without the offer."""
        head = without_upgrade(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.reading = None
        self._unread = head + rest + self._unread

    def on_message_begin(self) -> None:
        if self.wire.is_closing() or (self.cycle and not self.cycle.keep_alive):
            raise EndedError
        self.messages += 1
        self._bytes = 0
        self._head_counted = True
        self.reading = "head"
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Like uvicorn's, but without the white space after a value, and `Expect` is a list (RFC 9110, section 5.3)."""
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"expect" and b"100-continue" in [each.strip() for each in value.lower().split(b",")]:
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        check_head(method, version, self.headers)
        if not self._head_counted and head_bytes(method, self.url, self.headers) > HEADER_BYTES_MAX:
            raise head_too_large()
        if version != "1.1":
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
        self.begin_request()
        self._bytes = 0
        self.reading = "body"
        if not self.parser.should_upgrade():
            self.headers = TRAILERS  # type: ignore[assignment]
            if version != "1.1" and self.cycle:
                self.cycle.keep_alive = False  # uvicorn does this for 1.0 only

    def begin_request(self) -> None:
        """The head has been read, and is valid."""
        try:
            super().on_headers_complete()
        except Exception:
            check_target(self.url)
            raise

    def on_message_complete(self) -> None:
        self.reading = None
        super().on_message_complete()

    def is_post_to(self, path: str) -> bool:
        """Whether the head that was just read is of a POST to this path, however the target spells it."""
        if self.parser.get_method() != b"POST" or self.parser.should_upgrade():
            return False
        return self.url == path.encode() or path_of(self.url) == path

    def request(self) -> Scope:
        """The ASGI scope of the request that is being read."""
        return self.scope  # type: ignore[return-value]

    def keeps_alive(self) -> bool:
        return self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()


def head_too_large() -> ProblemError:
    return ProblemError(
        "HEADERS_TOO_LARGE", f"Expected a request line and headers of at most {HEADER_BYTES_MAX} bytes."
    )
