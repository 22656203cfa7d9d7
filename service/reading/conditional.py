"""Conditional requests: a client whose copy is still valid gets a 304."""

from starlette.requests import Request
from starlette.responses import Response

from service.contract.cursors import number_of
from service.contract.headers import header, latest_change, matches
from service.database.buckets import bucket_of
from service.database.statements import LIST_LAST_CHANGES
from service.reading.lists import Listing
from service.reading.source import Source


async def not_modified(request: Request, source: Source, organisation: str, listing: Listing) -> Response | None:
    """None if the client has no copy, or an outdated one. The primary answers a client whose copy is later than what
    the standby has, and then also reads the list."""
    tags = header(request.scope, b"if-none-match")
    if not tags:
        return None
    rows = await source.fetch(LIST_LAST_CHANGES, bucket_of(organisation), [organisation])
    if latest_change(tags) > number_of(rows[0]["last_change"]) and source.ask_primary():
        rows = await source.fetch(LIST_LAST_CHANGES, bucket_of(organisation), [organisation])
    headers = listing.headers(rows)
    return Response(status_code=304, headers=headers) if matches(tags, headers["ETag"]) else None
