"""The handlers that read: each decodes, calls and answers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service import VERSION
from service.access import access_of
from service.endpoint import header
from service.fields import Faults
from service.ics import calendar_format, events
from service.listing import ARRAY, PIECES, Format, Listing, Rows, accepted_format, answer, texts_of
from service.logs import note
from service.messages import (
    ROWS_MAX,
    ChangesCursor,
    ExternalId,
    Flag,
    Instant,
    Limit,
    ListCursor,
    Minutes,
    OrganisationId,
    VersionCursor,
    WaitSeconds,
)
from service.pages import ListPlace, VersionPlace
from service.problems import ProblemError
from service.query import read_query
from service.state import state_of
from service.statements import (
    LIST_ALL_APPOINTMENTS,
    LIST_APPOINTMENTS,
    LIST_APPOINTMENTS_AS_OF,
    LIST_AVAILABILITY,
    LIST_CALENDAR,
    LIST_CHANGES,
    LIST_LAST_CHANGES,
    LIST_VERSIONS,
    Statement,
)

LIST_PARAMETERS = {
    "org": OrganisationId,
    "at": Instant,
    "from": Instant,
    "to": Instant,
    "id": ExternalId,
    "includeCancelled": Flag,
    "asOf": Instant,
    "limit": Limit,
    "cursor": ListCursor,
}
VERSION_PARAMETERS = {"org": OrganisationId, "id": ExternalId, "limit": Limit, "cursor": VersionCursor}
CHANGE_PARAMETERS = {"org": OrganisationId, "after": ChangesCursor, "limit": Limit, "wait": WaitSeconds}
AVAILABILITY_PARAMETERS = {"org": OrganisationId, "from": Instant, "to": Instant, "minMinutes": Minutes}
CALENDAR_PARAMETERS = {"org": OrganisationId}
VERSION_REQUIRED = ("id",)
AVAILABILITY_REQUIRED = ("from", "to")


async def list_appointments(request: Request) -> Response:
    query = read_query(request, LIST_PARAMETERS)
    organisation = organisation_of(request, query)
    check_window(query)
    check_page(query)
    form = accepted_format(request)

    headers = partial(list_headers, form=form, current=query["asOf"] is None)
    if unchanged := await not_modified(request, organisation, headers):
        return unchanged
    statement, more = choose(query)
    filters = (query["at"], query["from"], query["to"], query["id"], *(query["cursor"] or (None, None)))
    listing = Listing(statement, (organisation, *filters, *more), ListPlace, headers)
    return await answer(request, listing, form, query["limit"])


def choose(query: Mapping[str, Any]) -> tuple[Statement, tuple[object, ...]]:
    """The statement that lists what is asked for, and its arguments beyond the filters."""
    include_cancelled = query["includeCancelled"] or False
    if query["asOf"]:
        return LIST_APPOINTMENTS_AS_OF, (include_cancelled, query["asOf"])
    return (LIST_ALL_APPOINTMENTS if include_cancelled else LIST_APPOINTMENTS), ()


def list_headers(rows: Rows, form: Format, *, current: bool = True) -> dict[str, str]:
    """The tag is weak, since it says nothing of the bytes: it changes with the organisation, the format and
    the release. Only a list of the current state fits a cursor of changes."""
    last_change = rows[0]["last_change"]
    tag = {"ETag": f'W/"{last_change}-{form.name}-{VERSION}"', "Vary": "Accept"}
    return tag | ({"X-Changes-Cursor": str(last_change)} if current else {})


async def not_modified(
    request: Request, organisation: str, headers: Callable[[Rows], dict[str, str]]
) -> Response | None:
    """The whole answer to a client that has what it asks for already."""
    if tags := header(request.scope, b"if-none-match"):
        unchanged = headers(await state_of(request)["database"].fetch(LIST_LAST_CHANGES, [organisation]))
        if matches(tags, unchanged["ETag"]):
            return Response(status_code=304, headers=unchanged)
    return None


def matches(if_none_match: str, tag: str) -> bool:
    """Source: RFC 9110, section 13.1.2. None of our tags holds a comma."""
    tags = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return bool({"*", tag.removeprefix("W/")} & tags)


async def list_versions(request: Request) -> Response:
    query = read_query(request, VERSION_PARAMETERS, VERSION_REQUIRED)
    check_page(query)
    arguments = (organisation_of(request, query), query["id"], query["cursor"])
    listing = Listing(LIST_VERSIONS, arguments, VersionPlace, lambda _: {"Vary": "Accept"})
    return await answer(request, listing, accepted_format(request), query["limit"])


async def list_changes(request: Request) -> Response:
    query = read_query(request, CHANGE_PARAMETERS)
    organisation, after = organisation_of(request, query), query["after"] or 0
    form = accepted_format(request)
    state = state_of(request)
    fetch = partial(state["database"].fetch, LIST_CHANGES, organisation, after, query["limit"] or ROWS_MAX)
    changes = await fetch()
    if not changes and query["wait"]:
        await state["waiters"].wait(organisation, after, query["wait"], disconnected(request))
        changes = await fetch()
    cursor = changes[-1]["sequence_number"] if changes else after
    body = form.whole(await texts_of(changes))
    if form is ARRAY:
        body = f'{{"changes":{body},"cursor":"{cursor}"}}'
    headers = {"X-Changes-Cursor": str(cursor), "Vary": "Accept"}
    return Response(body, headers=headers, media_type=form.media_type)


async def disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def list_availability(request: Request) -> Response:
    query = read_query(request, AVAILABILITY_PARAMETERS, AVAILABILITY_REQUIRED)
    check_window(query)
    arguments = (organisation_of(request, query), query["from"], query["to"], query["minMinutes"] or 0)
    return await answer(request, Listing(LIST_AVAILABILITY, arguments), PIECES)


async def calendar(request: Request) -> Response:
    organisation = organisation_of(request, read_query(request, CALENDAR_PARAMETERS))
    form = calendar_format(organisation)
    headers = partial(list_headers, form=form)
    if unchanged := await not_modified(request, organisation, headers):
        return unchanged
    return await answer(request, Listing(LIST_CALENDAR, (organisation,), headers=headers, texts=events), form)


def organisation_of(request: Request, query: Mapping[str, Any]) -> str:
    """Raises ProblemError if it is not the bearer's."""
    access = access_of(request)
    organisation: str = query["org"] or access.default_organisation()
    access.check(organisation)
    note(organisation=organisation)
    return organisation


def check_window(query: Mapping[str, Any]) -> None:
    if query["from"] and query["to"] and query["from"] >= query["to"]:
        raise ProblemError("INVALID_TIME_RANGE", "Expected `from` before `to`.")


def check_page(query: Mapping[str, Any]) -> None:
    if query["cursor"] and query["limit"] is None:
        faults = Faults()
        faults.add("cursor", "Expected together with `limit`.")
        faults.raise_if_any()
