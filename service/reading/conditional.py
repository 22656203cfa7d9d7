"""Conditional requests: weak entity tags that change with every change of the organisation."""

from starlette.requests import Request
from starlette.responses import Response

from service import VERSION
from service.contract.headers import header, matches
from service.database.pool import Database
from service.database.statements import LIST_LAST_CHANGES
from service.reading.formats import Format


def tagged_headers(last_change: int, form: Format, *, current: bool) -> dict[str, str]:
    """The tag also changes with the format and the release. Only a list of the current state fits a cursor of
    changes."""
    headers = {"ETag": f'W/"{last_change}-{form.name}-{VERSION}"', "Vary": "Accept"}
    return headers | ({"X-Changes-Cursor": str(last_change)} if current else {})


async def not_modified(request: Request, organisation: str, form: Format, *, current: bool = True) -> Response | None:
    """A 304 if the client already has the current answer."""
    tags = header(request.scope, b"if-none-match")
    if not tags:
        return None
    database: Database = request.scope["state"]["database"]
    [row] = await database.fetch(LIST_LAST_CHANGES, [organisation])
    headers = tagged_headers(row["last_change"], form, current=current)
    return Response(status_code=304, headers=headers) if matches(tags, headers["ETag"]) else None
