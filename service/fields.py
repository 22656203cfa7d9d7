"""The kinds of field that a body or a query may hold: how each is read, and what to say if it is not."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from service.instants import EXPECTED, parse_instant
from service.messages import (
    CHANGE_MAX,
    CHARACTERS_MAX,
    MINUTES_MAX,
    ROWS_MAX,
    WAIT_SECONDS_MAX,
    Cancelled,
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
from service.pages import parse_list_cursor, parse_version_cursor
from service.problems import Code, FieldError, ProblemError


class FieldKind(NamedTuple):
    """`parse` takes what `json` decodes, or the text of a parameter; both raise a READ_ERROR."""

    json: msgspec.json.Decoder[Any]
    parse: Callable[[Any], Any]
    expected: str
    code: Code


READ_ERRORS = (msgspec.DecodeError, RecursionError, ValueError)


def parse_external_id(text: str) -> str:
    if len(text) > CHARACTERS_MAX or not text.strip() or "\0" in text:
        raise ValueError("not an external id")
    return text


def parse_organisation(text: str | None) -> str:
    """Empty: it is not said."""
    trimmed = (text or "").strip()
    if len(trimmed) > CHARACTERS_MAX or "\0" in trimmed:
        raise ValueError("not the name of an organisation")
    return trimmed


def parse_flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("not a flag")
    return text == "true"


def parameter(parse: Callable[[str], Any], expected: str) -> FieldKind:
    """A kind that only queries hold."""
    return FieldKind(msgspec.json.Decoder(str), parse, expected, "INVALID_REQUEST")


def whole_number(least: int, most: int, expected: str = "") -> FieldKind:
    def parse(text: str) -> int:
        if not re.fullmatch(f"[0-9]{{1,{len(str(most))}}}", text) or not least <= int(text) <= most:
            raise ValueError("not such a number")
        return int(text)

    return parameter(parse, expected or f"a whole number from {least} to {most}")


CURSOR_EXPECTED = "a cursor as it came in a `Link` of this list"
FIELD_KINDS: Mapping[Any, FieldKind] = {
    ExternalId: FieldKind(
        msgspec.json.Decoder(str),
        parse_external_id,
        f"a string of 1 to {CHARACTERS_MAX} characters, not blank, without U+0000",
        "INVALID_REQUEST",
    ),
    OrganisationId: FieldKind(
        msgspec.json.Decoder(str | None),
        parse_organisation,
        f"a string of up to {CHARACTERS_MAX} characters, not counting white space around it, without U+0000",
        "INVALID_REQUEST",
    ),
    Instant: FieldKind(
        msgspec.json.Decoder(str),
        parse_instant,
        f"an instant that exists, as a string: {EXPECTED}",
        "INVALID_DATE_FORMAT",
    ),
    Cancelled: FieldKind(msgspec.json.Decoder(bool | None), bool, "true or false", "INVALID_REQUEST"),
    Flag: parameter(parse_flag, "true or false"),
    Limit: whole_number(1, ROWS_MAX),
    ListCursor: parameter(parse_list_cursor, CURSOR_EXPECTED),
    VersionCursor: parameter(parse_version_cursor, CURSOR_EXPECTED),
    ChangesCursor: whole_number(0, CHANGE_MAX, "a cursor as it came with changes or in `X-Changes-Cursor`"),
    WaitSeconds: whole_number(0, WAIT_SECONDS_MAX),
    Minutes: whole_number(0, MINUTES_MAX),
}


class Faults:
    """Gathers the first fault of each field, to report all of them at once."""

    def __init__(self) -> None:
        self.errors: dict[str, FieldError] = {}
        self.codes: set[Code] = set()

    def add(self, field: str, detail: str, code: Code = "INVALID_REQUEST") -> None:
        self.errors.setdefault(field, FieldError(field, detail))
        self.codes.add(code)

    def raise_if_any(self) -> None:
        """Raises ProblemError; one fault that is not an instant's makes all INVALID_REQUEST."""
        if not self.errors:
            return
        code: Code = "INVALID_REQUEST" if "INVALID_REQUEST" in self.codes else "INVALID_DATE_FORMAT"
        detail = "The request is not sound; `errors` lists every fault."
        raise ProblemError(code, detail, errors=list(self.errors.values()))
