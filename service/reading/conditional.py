"""Conditional requests: a client whose copy is still valid gets a 304."""

from starlette.requests import Request
from starlette.responses import Response

from service.contract.headers import header, matches
from service.database.buckets import bucket_of
from service.database.pool import Database
from service.database.statements import LIST_LAST_CHANGES
from service.reading.lists import Listing


async def not_modified(request: Request, organisation: str, listing: Listing) -> Response | None:
    """None if the client has no copy, or an outdated one."""
    tags = header(request.scope, b"if-none-match")
    if not tags:
        return None
    database: Database = request.scope["state"]["database"]
    headers = listing.headers(await database.fetch(LIST_LAST_CHANGES, bucket_of(organisation), [organisation]))
    return Response(status_code=304, headers=headers) if matches(tags, headers["ETag"]) else None
