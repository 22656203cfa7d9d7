"""Query strings: the parameters of each route, and how they are read.

Every parameter must be known, given once and in UTF-8; an empty one counts as missing.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Meta

from service.contract import fields
from service.contract.cursors import parse_list_cursor, parse_version_cursor
from service.contract.fields import READ_ERRORS, ExternalId, Faults, FieldKind, Instant, OrganisationId
from service.problems import ProblemError

ROWS_MAX = 1000  # of a page
WAIT_SECONDS_MAX = 30
CHANGE_MAX = 2**63 - 1  # the largest number that PostgreSQL can give a change
MINUTES_MAX = 10**10  # more than the years 1 to 9999 have

Flag = Annotated[bool, Meta(examples=[True])]
Limit = Annotated[int, Meta(ge=1, le=ROWS_MAX)]
ListCursor = Annotated[str, Meta(description="From the `Link` of a page of a list.")]
VersionCursor = Annotated[str, Meta(description="From the `Link` of a page of versions.")]
ChangesCursor = Annotated[
    int, Meta(ge=0, le=CHANGE_MAX, description="From an answer with changes, or from `X-Changes-Cursor` of a list.")
]
WaitSeconds = Annotated[int, Meta(ge=0, le=WAIT_SECONDS_MAX)]
Minutes = Annotated[int, Meta(ge=0, le=MINUTES_MAX)]


class Parameters(NamedTuple):
    """The parameters of a route, by name."""

    types: Mapping[str, Any]
    required: Collection[str] = ()


NO_PARAMETERS = Parameters({})
LIST = Parameters(
    {
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
)
VERSIONS = Parameters({"org": OrganisationId, "id": ExternalId, "limit": Limit, "cursor": VersionCursor}, ("id",))
CHANGES = Parameters({"org": OrganisationId, "after": ChangesCursor, "limit": Limit, "wait": WaitSeconds})
AVAILABILITY = Parameters(
    {"org": OrganisationId, "from": Instant, "to": Instant, "minMinutes": Minutes}, ("from", "to")
)
CALENDAR = Parameters({"org": OrganisationId})


def parse_flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("not a flag")
    return text == "true"


def parameter(parse: Callable[[str], Any], expected: str) -> FieldKind:
    """A kind of field that only query strings have."""
    return FieldKind(msgspec.json.Decoder(str), parse, expected, "INVALID_REQUEST")


def whole_number(least: int, most: int, expected: str = "") -> FieldKind:
    def parse(text: str) -> int:
        if not re.fullmatch(f"[0-9]{{1,{len(str(most))}}}", text) or not least <= int(text) <= most:
            raise ValueError("not a whole number in the range")
        return int(text)

    return parameter(parse, expected or f"a whole number from {least} to {most}")


CURSOR_EXPECTED = "a cursor from the `Link` of a page of this list"
FIELD_KINDS: Mapping[Any, FieldKind] = {
    **fields.FIELD_KINDS,
    Flag: parameter(parse_flag, "true or false"),
    Limit: whole_number(1, ROWS_MAX),
    ListCursor: parameter(parse_list_cursor, CURSOR_EXPECTED),
    VersionCursor: parameter(parse_version_cursor, CURSOR_EXPECTED),
    ChangesCursor: whole_number(0, CHANGE_MAX, "a cursor from an answer with changes, or from `X-Changes-Cursor`"),
    WaitSeconds: whole_number(0, WAIT_SECONDS_MAX),
    Minutes: whole_number(0, MINUTES_MAX),
}
LENGTH_OF_DAY_AND_GAP = len("2020-10-10T")
PLUS_HINT = " A `+` in a query string is a space: write `%2B`."


def read_query(query_string: bytes, parameters: Parameters) -> dict[str, Any]:
    """The values by name, None where missing. Raises ProblemError: first with every fault of a parameter, then for
    a window that is not in order or a cursor without `limit`.

    Source of the spelling: WHATWG URL, section 5.1.
    """
    if not query_string and not parameters.required:
        return dict.fromkeys(parameters.types)
    faults = Faults()
    given: dict[str, str] = {}
    for part in query_string.split(b"&"):
        if part:
            add_parameter(part, parameters, given, faults)
    values = {name: read_parameter(name, given.get(name), kind, faults) for name, kind in parameters.types.items()}
    for name in parameters.required:
        if not given.get(name):
            kind = FIELD_KINDS[parameters.types[name]]
            faults.add(name, f"Missing. Expected {kind.expected}.", kind.code)
    faults.raise_if_any()
    check_together(values)
    return values


def add_parameter(part: bytes, parameters: Parameters, given: dict[str, str], faults: Faults) -> None:
    raw_name, _, raw_value = part.partition(b"=")
    name = decode(raw_name) or ""
    if name not in parameters.types:
        faults.add(name, f"Unknown parameter. Expected: {', '.join(parameters.types) or 'none'}.")
    elif name in given:
        faults.add(name, "Given more than once. Expected one value.")
    elif (value := decode(raw_value)) is None:
        faults.add(name, "Not UTF-8. Expected percent-encoded UTF-8.")
    else:
        given[name] = value


def decode(raw: bytes) -> str | None:
    try:
        return unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        return None


def read_parameter(name: str, text: str | None, annotation: Any, faults: Faults) -> Any:
    kind = FIELD_KINDS[annotation]
    try:
        return kind.parse(text) if text else None
    except READ_ERRORS:
        hint = PLUS_HINT if annotation is Instant and text and " " in text[LENGTH_OF_DAY_AND_GAP:] else ""
        faults.add(name, f"Expected {kind.expected}.{hint}", kind.code)
        return None


def check_together(values: Mapping[str, Any]) -> None:
    start, end = values.get("from"), values.get("to")
    if start and end and start >= end:
        raise ProblemError("INVALID_TIME_RANGE", "Expected `from` before `to`.")
    if values.get("cursor") and values["limit"] is None:
        faults = Faults()
        faults.add("cursor", "Expected together with `limit`.")
        faults.raise_if_any()
