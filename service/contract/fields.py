"""The kinds of field that bodies and query strings share: type, parser and the text that says what is expected."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from service.contract.instants import EXPECTED, SPELLING, parse_instant
from service.problems import Code, FieldError, ProblemError

CHARACTERS_MAX = 255  # code points
DEFAULT_ORGANISATION = "default"

ExternalId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=CHARACTERS_MAX,
        pattern=r"^[^\x00]*[^\x00\s][^\x00]*$",
        description="The upstream system's own id, kept to the letter: not blank, without U+0000.",
        examples=["a-17"],
    ),
]
Instant = Annotated[
    str,
    Meta(
        pattern=f"^{SPELLING}$",
        description=f"An instant on a day that exists: {EXPECTED}.",
        examples=["2020-10-10 20:20"],
    ),
]
OrganisationId = Annotated[
    Annotated[str, Meta(pattern=rf"^\s*([^\s\x00]([^\x00]{{0,{CHARACTERS_MAX - 2}}}[^\s\x00])?)?\s*$")] | None,
    Meta(
        description=f"The tenant: up to {CHARACTERS_MAX} characters after trimming, without U+0000. "
        f"Missing, null, empty or blank means `{DEFAULT_ORGANISATION}`.",
        examples=["clinic-4"],
    ),
]
Cancelled = Annotated[
    bool | None,
    Meta(
        description="Whether the appointment no longer takes place; it then occupies no time. "
        "Missing or null means false.",
        examples=[True],
    ),
]


class FieldKind(NamedTuple):
    """`parse` takes the value that `json` decodes, or the text of a parameter; both raise one of READ_ERRORS."""

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
    """The trimmed name; empty if none was given."""
    trimmed = (text or "").strip()
    if len(trimmed) > CHARACTERS_MAX or "\0" in trimmed:
        raise ValueError("not the name of an organisation")
    return trimmed


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
}


class Faults:
    """Collects the first fault of each field, so that all of them are reported at once."""

    def __init__(self) -> None:
        self.errors: dict[str, FieldError] = {}
        self.codes: set[Code] = set()

    def add(self, field: str, detail: str, code: Code = "INVALID_REQUEST") -> None:
        self.errors.setdefault(field, FieldError(field, detail))
        self.codes.add(code)

    def raise_if_any(self) -> None:
        """Raises ProblemError: INVALID_DATE_FORMAT if only instants are at fault, else INVALID_REQUEST."""
        if not self.errors:
            return
        code: Code = "INVALID_REQUEST" if "INVALID_REQUEST" in self.codes else "INVALID_DATE_FORMAT"
        detail = "The request is not valid; `errors` lists every fault."
        raise ProblemError(code, detail, errors=list(self.errors.values()))
