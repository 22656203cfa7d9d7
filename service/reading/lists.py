"""Lists: fetched whole, page by page, or as a stream."""

import asyncio
import re
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service import VERSION
from service.contract.cursors import ListPlace, Place, cursor_after
from service.contract.headers import header
from service.contract.parameters import ROWS_MAX
from service.database.statements import Statement
from service.problems import ProblemError
from service.reading.formats import PIECES, Format, Rows
from service.reading.source import Source
from service.reading.stream_places import StreamPlace, StreamPlaces

log = structlog.get_logger()

PREFIX = re.compile("(/[A-Za-z0-9._~-]+)*")  # a path, and never `//host`


class Listing(NamedTuple):
    """A statement that lists rows, with all its arguments but the last, the largest number of rows. It begins with
    the key of the organisation."""

    statement: Statement
    arguments: tuple[object, ...]
    form: Format
    place: Place = ListPlace  # what a page ends with
    tagged: bool = False  # the rows contain the organisation's last change, so there is an ETag
    current: bool = True  # the rows are the current state

    def headers(self, rows: Rows) -> dict[str, str]:
        """The weak tag changes with every change of the organisation, the format and the release. The cursor of changes
        is sent only with lists of the current state."""
        if not self.tagged:
            return {} if self.form is PIECES else {"Vary": "Accept"}
        last_change = str(rows[0]["last_change"])
        headers = {"ETag": f'W/"{last_change}-{self.form.name}-{VERSION}"', "Vary": "Accept"}
        return headers | self.form.headers | ({"X-Changes-Cursor": last_change} if self.current else {})


async def answer(request: Request, source: Source, listing: Listing, limit: int | None = None) -> Response:
    """A page of at most `limit` rows; without a limit the whole list, streamed if it is long."""
    state = request.scope["state"]
    rows = await source.fetch(listing.statement, *listing.arguments, (limit or ROWS_MAX) + 1)
    more = len(rows) > (limit or ROWS_MAX)
    if limit is None and more:
        seconds_max = state["settings"].stream_ms_max / 1e3
        return Stream(listing, state["stream_places"], source, seconds_max)
    headers = listing.headers(rows)
    texts = listing.form.texts(rows)
    if more:
        texts.pop()
        headers["Link"] = next_link(request.scope, cursor_after(texts[-1], listing.place))
    return Response(listing.form.body(texts), headers=headers, media_type=listing.form.media_type)


def next_link(scope: Scope, cursor: str) -> str:
    """The value of `Link` (RFC 8288): the same request, from the cursor on. A proxy that strips a prefix from the path
    sends it in `X-Forwarded-Prefix`, each of several proxies its own."""
    prefixes = (header(scope, b"x-forwarded-prefix") or "").split(",")
    prefix = "".join(each.strip().rstrip("/") for each in prefixes)
    path = (prefix if PREFIX.fullmatch(prefix) else "") + scope["path"]
    kept = [(name, value) for name, value in parse_qsl(scope["query_string"].decode()) if name != "cursor"]
    return f'<{path}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'


class Stream(Response):
    """A list that is read while it is sent, and so never held in memory as a whole. The connection is cut if the client
    reads too slowly, because a stream holds a connection and a snapshot."""

    def __init__(self, listing: Listing, places: StreamPlaces, source: Source, seconds_max: float) -> None:
        self._listing, self._places, self._source, self._seconds_max = listing, places, source, seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listing = self._listing
        async with self._places.place(str(listing.arguments[1])) as place:
            try:
                async with (
                    asyncio.timeout(self._seconds_max) as place.limit,
                    self._source.stream(listing.statement, *listing.arguments, None) as (rows, cursor),
                ):
                    body = self._body(rows, cursor, place) if scope["method"] == "GET" else iter(())
                    response = StreamingResponse(
                        body, headers=listing.headers(rows), media_type=listing.form.media_type
                    )
                    await response(scope, receive, send)
            except TimeoutError:
                reason = "others were waiting" if place.is_cut else "it took too long"
                log.warning(f"list cut: {reason}", seconds_max=self._seconds_max)
                raise ProblemError("OVERLOADED", "The list took too long.") from None
            finally:
                place.sending_since = None  # nothing is left to cut

    async def _body(self, rows: Rows, cursor: Any, place: StreamPlace) -> AsyncIterator[str]:
        form = self._listing.form
        before = form.opening
        while rows:
            portion = before + form.between.join(form.texts(rows))
            place.sending_since = monotonic()
            yield portion
            place.sending_since = None
            before = form.between
            rows = await cursor.fetch(ROWS_MAX)
        yield form.closing
