"""Query strings: the parameters of each route, and how they are read. Every parameter must be known, given once and in
UTF-8; an empty one counts as missing."""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote_to_bytes

from msgspec import Meta

from service.contract import fields
from service.contract.cursors import parse_change_cursor, parse_list_cursor, parse_version_cursor
from service.contract.fields import ExternalId, Faults, FieldKind, Instant, OrganisationId
from service.problems import ProblemError

ROWS_MAX = 1000  # of a page
WAIT_SECONDS_MAX = 30
MINUTES_MAX = 10**10  # more than the years 1 to 9999 have

Flag = Annotated[bool, Meta(examples=[True])]
Limit = Annotated[int, Meta(ge=1, le=ROWS_MAX)]
ListCursor = Annotated[str, Meta(description="From the `Link` of a page of a list.")]
VersionCursor = Annotated[str, Meta(description="From the `Link` of a page of versions.")]
ChangesCursor = Annotated[str, Meta(description="From an answer with changes, or from `X-Changes-Cursor` of a list.")]
WaitSeconds = Annotated[int, Meta(ge=0, le=WAIT_SECONDS_MAX)]
Minutes = Annotated[int, Meta(ge=0, le=MINUTES_MAX)]


class Parameters(NamedTuple):
    """The parameters of a route, by name."""

    types: Mapping[str, Any]
    required: Collection[str] = ()


NO_PARAMETERS = Parameters({})
LIST = Parameters(
    {"org": OrganisationId, "at": Instant, "from": Instant, "to": Instant, "id": ExternalId}
    | {"includeCancelled": Flag, "asOf": Instant, "limit": Limit, "cursor": ListCursor}
)
VERSIONS = Parameters({"org": OrganisationId, "id": ExternalId, "limit": Limit, "cursor": VersionCursor}, ("id",))
CHANGES = Parameters({"org": OrganisationId, "after": ChangesCursor, "limit": Limit, "wait": WaitSeconds})
AVAILABILITY = Parameters(
    {"org": OrganisationId, "from": Instant, "to": Instant, "minMinutes": Minutes}, ("from", "to")
)
CALENDAR = Parameters({"org": OrganisationId})


def parse_flag(text: str) -> bool:
    return bool(("false", "true").index(text))


def whole_number(least: int, most: int) -> FieldKind:
    def parse(text: str) -> int:
        if not re.fullmatch(f"[0-9]{{1,{len(str(most))}}}", text) or not least <= int(text) <= most:
            raise ValueError("not a whole number in the range")
        return int(text)

    return FieldKind(f"a whole number from {least} to {most}", parse)


CURSOR_EXPECTED = "a cursor from the `Link` of a page of this list"
FIELD_KINDS: Mapping[Any, FieldKind] = {
    **fields.FIELD_KINDS,
    Flag: FieldKind("true or false", parse_flag),
    Limit: whole_number(1, ROWS_MAX),
    ListCursor: FieldKind(CURSOR_EXPECTED, parse_list_cursor),
    VersionCursor: FieldKind(CURSOR_EXPECTED, parse_version_cursor),
    ChangesCursor: FieldKind("a cursor from an answer with changes, or from `X-Changes-Cursor`", parse_change_cursor),
    WaitSeconds: whole_number(0, WAIT_SECONDS_MAX),
    Minutes: whole_number(0, MINUTES_MAX),
}


def read_query(query_string: bytes, parameters: Parameters) -> dict[str, Any]:
    """The values by name, None where missing. Raises ProblemError: first with every fault of a parameter, then for
    a window that is not in order or a cursor without `limit`. Source of the spelling: WHATWG URL, section 5.1."""
    values: dict[str, Any] = dict.fromkeys(parameters.types)
    if not query_string and not parameters.required:
        return values
    faults: Faults = {}
    given = texts_by_name(query_string, parameters.types, faults)
    for name, annotation in parameters.types.items():
        kind = FIELD_KINDS[annotation]
        try:
            values[name] = kind.parse(given[name]) if name in given else None
        except fields.READ_ERRORS:
            plus = annotation is Instant and " " in given[name][len("2020-10-10T") :]
            hint = " A `+` in a query string is a space: write `%2B`." if plus else ""
            faults.setdefault(name, kind.fault(hint=hint))
    for name in parameters.required:
        if name not in given:
            faults.setdefault(name, FIELD_KINDS[parameters.types[name]].fault("Missing. "))
    if faults:
        raise fields.invalid(faults)
    start, end = values.get("from"), values.get("to")
    if start and end and start >= end:
        raise ProblemError("INVALID_TIME_RANGE", "Expected `from` before `to`.")
    if values.get("cursor") and values["limit"] is None:
        raise fields.invalid({"cursor": ("Expected together with `limit`.", "INVALID_REQUEST")})
    return values


def texts_by_name(query_string: bytes, known: Collection[str], faults: Faults) -> dict[str, str]:
    """The values that are not empty."""
    given: dict[str, str] = {}
    for part in filter(None, query_string.replace(b"+", b" ").split(b"&")):
        raw_name, _, raw_value = part.partition(b"=")
        name = value = reason = ""
        try:
            name = unquote_to_bytes(raw_name).decode()
            value = unquote_to_bytes(raw_value).decode()
        except UnicodeDecodeError:
            reason = "Not UTF-8. Expected percent-encoded UTF-8."
        if name not in known and not reason:
            reason = f"Unknown parameter. Expected: {', '.join(known) or 'none'}."
        elif name in given:
            reason = "Given more than once. Expected one value."
        if reason:
            faults.setdefault(name, (reason, "INVALID_REQUEST"))
        else:
            given[name] = value
    return {name: value for name, value in given.items() if value}
