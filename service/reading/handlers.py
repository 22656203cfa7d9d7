"""The handlers that read: each decodes, calls and answers."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.access.grants import Grant
from service.contract import parameters
from service.contract.cursors import BEGINNING, ChangeCursor, VersionPlace
from service.contract.parameters import ROWS_MAX, Parameters, read_query
from service.database import statements as sql
from service.database.buckets import key_of
from service.logs import note
from service.problems import ProblemError
from service.reading.calendar_feed import calendar_format
from service.reading.change_poller import ChangePoller
from service.reading.conditional import not_modified
from service.reading.formats import ARRAY, PIECES, Format, Rows, accepted_format
from service.reading.lists import Listing, answer
from service.reading.source import Source, may_lag

CURSOR_GONE = "The change that the cursor names is not in this history: read the list anew, then go on from its cursor."


async def list_appointments(request: Request, grant: Grant) -> Response:
    organisation, query = decode(request, grant, parameters.LIST)
    listing = listing_of(organisation, query, accepted_format(request.scope))
    source = Source(request.scope, standby=may_lag(request.scope, query["cursor"], query["asOf"]))
    answered = await not_modified(request, source, organisation, listing)
    return answered or await answer(request, source, listing, query["limit"])


def listing_of(organisation: str, query: Mapping[str, Any], form: Format) -> Listing:
    filters = (query["at"], query["from"], query["to"], query["id"], *(query["cursor"] or (None, None)))
    arguments = (*key_of(organisation), *filters, query["includeCancelled"] or False)
    if as_of := query["asOf"]:
        return Listing(sql.LIST_APPOINTMENTS_AS_OF, (*arguments, as_of), form, tagged=True, current=False)
    return Listing(sql.LIST_APPOINTMENTS, arguments, form, tagged=True)


async def list_versions(request: Request, grant: Grant) -> Response:
    organisation, query = decode(request, grant, parameters.VERSIONS)
    arguments = (*key_of(organisation), query["id"], query["cursor"])
    listing = Listing(sql.LIST_VERSIONS, arguments, accepted_format(request.scope), VersionPlace)
    source = Source(request.scope, standby=may_lag(request.scope, query["cursor"]))
    return await answer(request, source, listing, query["limit"])


async def list_changes(request: Request, grant: Grant) -> Response:
    organisation, query = decode(request, grant, parameters.CHANGES)
    after: ChangeCursor = query["after"] or BEGINNING
    source = Source(request.scope)
    fetch = partial(changes_after, source, organisation, after, query["limit"] or ROWS_MAX)
    changes = await fetch()
    if not changes and query["wait"]:
        poller: ChangePoller = request.scope["state"]["change_poller"]
        await poller.wait(organisation, after.text, query["wait"], disconnected(request))
        source.ask_primary()  # which the poller has asked
        changes = await fetch()
    cursor = changes[-1]["cursor"] if changes else after.text
    return await changes_answer(changes, cursor, accepted_format(request.scope))


async def changes_after(source: Source, organisation: str, after: ChangeCursor, limit: int) -> Rows:
    """Raises ProblemError, a 410, if the cursor names a change of another history."""
    rows = await source.fetch(sql.LIST_CHANGES, *key_of(organisation), *after, limit)
    if not rows[0]["known"] and source.ask_primary():  # the standby may not have it yet
        rows = await source.fetch(sql.LIST_CHANGES, *key_of(organisation), *after, limit)
    if not rows[0]["known"]:
        raise ProblemError("CURSOR_GONE", CURSOR_GONE)
    return rows if rows[0]["change"] is not None else []


async def changes_answer(changes: Rows, cursor: str, form: Format) -> Response:
    body = form.body(form.texts(changes))
    if form is ARRAY:
        body = f'{{"changes":{body},"cursor":"{cursor}"}}'
    return Response(body, headers={"X-Changes-Cursor": cursor, "Vary": "Accept"}, media_type=form.media_type)


async def disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def list_availability(request: Request, grant: Grant) -> Response:
    organisation, query = decode(request, grant, parameters.AVAILABILITY)
    arguments = (*key_of(organisation), query["from"], query["to"], query["minMinutes"] or 0)
    return await answer(request, Source(request.scope), Listing(sql.LIST_AVAILABILITY, arguments, PIECES))


async def calendar(request: Request, grant: Grant) -> Response:
    organisation, _ = decode(request, grant, parameters.CALENDAR)
    listing = Listing(sql.LIST_CALENDAR, key_of(organisation), calendar_format(organisation), tagged=True)
    source = Source(request.scope)
    return await not_modified(request, source, organisation, listing) or await answer(request, source, listing)


def decode(request: Request, grant: Grant, known: Parameters) -> tuple[str, dict[str, Any]]:
    """The organisation and the parameters. Raises ProblemError."""
    query = read_query(request.scope["query_string"], known)
    organisation = grant.organisation(query["org"])
    note(organisation=organisation)
    return organisation, query
