"""The kinds of field that bodies and query strings share: type, parser and the text that says what is expected."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from service.contract.instants import EXPECTED, SPELLING, parse_instant
from service.problems import Code, FieldError, ProblemError

LENGTH_MAX = 255  # code points
DEFAULT_ORGANISATION = "default"
FAULTS_MAX = 20  # in an answer
NAME_LENGTH_MAX = 64  # of an unknown parameter that an answer repeats

# The published patterns accept everything that the service accepts, and little else. They use only what Python,
# ECMA-262, RE2 and Rust agree on: not `\s`, and no counts, since a character beyond U+FFFF counts twice in some.
WHITE_SPACE = r"\x09-\x0d\x1c-\x20\x85\xa0"  # what str.strip() removes, up to U+00FF: the rest has no common escape
ExternalId = Annotated[
    str,
    Meta(min_length=1, max_length=LENGTH_MAX, pattern=rf"^[^\x00]*[^\x00{WHITE_SPACE}][^\x00]*$"),
    Meta(description="The upstream system's own id, stored verbatim: not blank, without U+0000.", examples=["a-17"]),
]
Instant = Annotated[
    str,
    Meta(pattern=f"^{SPELLING}$"),
    Meta(description=f"An instant on a day that exists: {EXPECTED}.", examples=["2020-10-10 20:20"]),
]
OrganisationId = Annotated[
    Annotated[str, Meta(pattern=r"^[^\x00]*$")] | None,
    Meta(
        description=f"The tenant: up to {LENGTH_MAX} characters after trimming, without U+0000. "
        f"Missing, null, empty or blank means `{DEFAULT_ORGANISATION}`.",
        examples=["clinic-4"],
    ),
]
Cancelled = Annotated[
    bool | None,
    Meta(description="Whether it no longer takes place; it then occupies no time. Missing or null means false."),
    Meta(examples=[True]),
]

READ_ERRORS = (msgspec.DecodeError, RecursionError, ValueError)


class FieldKind(NamedTuple):
    """`parse` takes the value that `json` decodes, or the text of a parameter; both raise one of READ_ERRORS."""

    expected: str
    parse: Callable[[Any], Any]
    json: msgspec.json.Decoder[Any] = msgspec.json.Decoder(str)
    code: Code = "INVALID_REQUEST"

    def fault(self, missing: str = "", hint: str = "") -> tuple[str, Code]:
        return f"{missing}Expected {self.expected}.{hint}", self.code


def parse_external_id(text: str) -> str:
    if len(text) > LENGTH_MAX or not text.strip() or "\0" in text:
        raise ValueError("not an external id")
    return text


def parse_organisation(text: str | None) -> str:
    """The trimmed name; empty if none was given."""
    trimmed = (text or "").strip()
    if len(trimmed) > LENGTH_MAX or "\0" in trimmed:
        raise ValueError("not the name of an organisation")
    return trimmed


FIELD_KINDS: Mapping[Any, FieldKind] = {
    ExternalId: FieldKind(f"a string of 1 to {LENGTH_MAX} characters, not blank, without U+0000", parse_external_id),
    OrganisationId: FieldKind(
        f"a string of up to {LENGTH_MAX} characters, not counting white space around it, without U+0000",
        parse_organisation,
        msgspec.json.Decoder(str | None),
    ),
    Instant: FieldKind(f"an instant that exists, as a string: {EXPECTED}", parse_instant, code="INVALID_DATE_FORMAT"),
    Cancelled: FieldKind("true or false", bool, msgspec.json.Decoder(bool | None)),
}

Faults = dict[str, tuple[str, Code]]  # by field: its first fault, and the code of a request without other faults


def invalid(faults: Faults) -> ProblemError:
    """Reports all faults at once: INVALID_DATE_FORMAT if only instants are at fault, else INVALID_REQUEST. An answer is
    small, however many faults there are."""
    dates_only = all(code == "INVALID_DATE_FORMAT" for _, code in faults.values())
    more = len(faults) - FAULTS_MAX
    faulty = (
        f"it has the {FAULTS_MAX} faults in `errors` and {more:,} more" if more > 0 else "`errors` lists every fault"
    )
    return ProblemError(
        "INVALID_DATE_FORMAT" if dates_only else "INVALID_REQUEST",
        f"The request is not valid; {faulty}.",
        errors=[FieldError(shortened(field), detail) for field, (detail, _) in islice(faults.items(), FAULTS_MAX)],
    )


def shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH_MAX else f"{name[:NAME_LENGTH_MAX]}…"
