"""Lists on their way out: whole, by pages or as a stream; as a JSON array or a row a line."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.database import Database
from service.endpoint import header
from service.messages import ROWS_MAX
from service.pages import ListPlace, Place, cursor, next_link
from service.problems import ProblemError
from service.state import state_of
from service.statements import Statement

log = structlog.get_logger()

Rows = Sequence[Mapping[int | str, Any]]


class Format(NamedTuple):
    """How the texts of rows become a body."""

    name: str
    media_type: str
    opening: str
    between: str
    closing: str

    def whole(self, texts: Sequence[str]) -> str:
        return self.opening + self.between.join(texts) + (self.closing if texts or self is not LINES else "")


ARRAY = Format("array", "application/json", "[", ",", "]")
LINES = Format("lines", "application/x-ndjson", "", "\n", "\n")
PIECES = Format("pieces", "application/json", "", "", "")  # of one object


def accepted_format(request: Request) -> Format:
    """A row a line for those who ask for it by name; an array for everybody else."""
    weights = {"application/json": 0.0, LINES.media_type: 0.0}
    for part in (header(request.scope, b"accept") or "").lower().split(","):
        media_type, *options = (piece.strip() for piece in part.split(";"))
        if media_type in weights:
            weights[media_type] = weight(options)
    asked, otherwise = weights[LINES.media_type], weights["application/json"]
    return LINES if asked > 0 and asked >= otherwise else ARRAY


def weight(options: Sequence[str]) -> float:
    """Source: RFC 9110, section 12.4.2."""
    for option in options:
        if option.startswith("q="):
            try:
                return float(option.removeprefix("q="))
            except ValueError:
                return 0
    return 1


async def texts_of(rows: Rows) -> list[str]:
    """The last column; a list of appointments has one row without, if there are none."""
    return [row[-1] for row in rows if row[-1] is not None]


def no_headers(_: Rows) -> dict[str, str]:
    return {}


class Listing(NamedTuple):
    """A statement that lists, with its arguments but the last, which is how many rows at most. `place` is
    what a page ends with; `headers` gives those that depend on the rows, `texts` what the rows become."""

    statement: Statement
    arguments: tuple[object, ...]
    place: Place = ListPlace
    headers: Callable[[Rows], dict[str, str]] = no_headers
    texts: Callable[[Rows], Awaitable[list[str]]] = texts_of


async def answer(request: Request, listing: Listing, form: Format, limit: int | None = None) -> Response:
    state = state_of(request)
    rows = await state["database"].fetch(listing.statement, *listing.arguments, (limit or ROWS_MAX) + 1)
    more = len(rows) > (limit or ROWS_MAX)
    if limit is None and more:
        return Stream(listing, form, state["stream_database"], state["settings"].stream_ms_max / 1e3)
    headers = listing.headers(rows)
    texts = await listing.texts(rows)
    if more:
        texts.pop()
        scope = request.scope
        headers["Link"] = next_link(scope["path"], scope["query_string"], cursor(texts[-1], listing.place))
    return Response(form.whole(texts), headers=headers, media_type=form.media_type)


class Stream(Response):
    """A list that is read as it is sent, so that it never is in memory as a whole. It comes to its end, or
    the connection is cut, also if the client takes too long: a stream holds a connection and a snapshot."""

    def __init__(self, listing: Listing, form: Format, database: Database, seconds_max: float) -> None:
        self._listing = listing
        self._form = form
        self._database = database
        self._seconds_max = seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._database.connection() as connection:
            try:
                async with (
                    asyncio.timeout(self._seconds_max),
                    connection.cursor(self._listing.statement, *self._listing.arguments, None) as opened,
                ):
                    rows = await opened.fetch(ROWS_MAX)
                    body = self._body(rows, opened) if scope["method"] == "GET" else nothing()
                    headers = self._listing.headers(rows)
                    response = StreamingResponse(body, headers=headers, media_type=self._form.media_type)
                    await response(scope, receive, send)
            except TimeoutError:
                log.warning("list cut: it took too long", seconds_max=self._seconds_max)
                raise ProblemError("OVERLOADED", "The list took too long.") from None

    async def _body(self, rows: Rows, opened: Any) -> AsyncIterator[str]:
        before = self._form.opening
        while rows:
            yield before + self._form.between.join(await self._listing.texts(rows))
            before = self._form.between
            rows = await opened.fetch(ROWS_MAX)
        yield self._form.closing


async def nothing() -> AsyncIterator[str]:
    """The body of an answer to HEAD."""
    return
    yield
