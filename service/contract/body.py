"""Bodies of POST: from JSON to valid appointments."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import NODEFAULT, UNSET, Raw, Struct, UnsetType, defstruct
from msgspec.json import Decoder

from service.contract import fields
from service.problems import ProblemError

WHITE_SPACE = b" \t\r\n"  # of JSON
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16, and one of UTF-32


class AppointmentPayload(Struct, rename="camel", kw_only=True):
    """One appointment as an upstream system knows it; other members are ignored."""

    id: fields.ExternalId
    start: fields.Instant
    end: fields.Instant
    created_at: fields.Instant
    updated_at: fields.Instant
    org_id: fields.OrganisationId = None
    cancelled: fields.Cancelled = None


class Appointment(Struct, frozen=True, kw_only=True):
    """A valid payload: instants in UTC and in order. `org_id` is trimmed; empty if none was given."""

    id: str
    start: datetime
    end: datetime
    created_at: datetime
    updated_at: datetime
    org_id: str
    cancelled: bool


MEMBERS = [
    (field.encode_name, field.name, field.default, fields.FIELD_KINDS[field.type])
    for field in msgspec.structs.fields(AppointmentPayload)
]

# The fast decoder takes a valid body in one pass. The other one leaves every member undecoded: the whole body is then
# checked for being JSON before any field is read, and each field can be wrong on its own.
VALID = Decoder(defstruct("ValidPayload", [(member, kind.json.type, default) for member, _, default, kind in MEMBERS]))
OBJECT = Decoder(defstruct("RawPayload", [(member, Raw | UnsetType, UNSET) for member, *_ in MEMBERS]))
ANY_JSON = Decoder(Raw)


def decode_appointment(body: bytes) -> Appointment:
    """Raises ProblemError: first for JSON, then for all fields at once, then for their order."""
    appointment = Appointment(**(decode_at_once(body) or decode_each(body)))
    if appointment.start >= appointment.end:
        raise ProblemError("INVALID_TIME_RANGE", "Expected `start` before `end`.")
    if appointment.created_at > appointment.updated_at:
        raise ProblemError("INVALID_METADATA", "Expected `createdAt` not after `updatedAt`.")
    return appointment


def decode_at_once(body: bytes) -> dict[str, Any] | None:
    """The values of all fields; None if anything is wrong."""
    try:
        body.decode()  # msgspec does not check the encoding of members that it skips
        members = VALID.decode(body)
        values = {name: kind.parse(getattr(members, member)) for member, name, _, kind in MEMBERS}
    except fields.READ_ERRORS:
        return None
    return values


def decode_each(body: bytes) -> dict[str, Any]:
    """The values of all fields, decoded one by one. Raises ProblemError with every fault."""
    check_kind(body, "object", b"{")
    try:
        body.decode()
        members = OBJECT.decode(body)
    except fields.READ_ERRORS as error:
        raise not_json(body, "object", error) from None
    values: dict[str, Any] = {}
    faults: fields.Faults = {}
    for member, name, default, kind in MEMBERS:
        raw = getattr(members, member)
        if raw is UNSET and default is NODEFAULT:
            faults[member] = kind.fault("Missing. ")
            continue
        try:
            values[name] = kind.parse(default if raw is UNSET else kind.json.decode(raw))
        except fields.READ_ERRORS:
            faults[member] = kind.fault()
    if faults:
        raise fields.invalid(faults)
    return values


def check_kind(body: bytes, kind: str, opening: bytes) -> None:
    """Raises ProblemError for a body that does not begin like JSON of this kind: it may be JSON of another kind."""
    if body.lstrip(WHITE_SPACE).startswith(opening):
        return
    try:
        body.decode()
        ANY_JSON.decode(body)
    except fields.READ_ERRORS as error:
        raise not_json(body, kind, error) from None
    raise fields.invalid({"": (f"Expected a JSON {kind}.", "INVALID_REQUEST")})


def not_json(body: bytes, kind: str, error: Exception) -> ProblemError:
    if not body.strip(WHITE_SPACE):
        detail = f"The body is empty; expected a JSON {kind}."
    elif body.startswith(BYTE_ORDER_MARK):
        detail = "The body begins with a byte order mark, which JSON does not allow."
    elif is_wide(body):
        detail = "The body looks like UTF-16 or UTF-32; expected UTF-8."
    elif isinstance(error, UnicodeDecodeError):
        detail = f"The body is not UTF-8: byte {error.start} is invalid."
    elif isinstance(error, RecursionError):
        detail = "The body is nested too deeply."
    else:
        detail = f"The body is not JSON: {error}."
    return ProblemError("INVALID_JSON", detail)


def is_wide(text: bytes) -> bool:
    """Whether the encoding looks like UTF-16 or UTF-32: JSON begins with an ASCII character."""
    return text.startswith(WIDE_MARKS) or b"\0" in text[:2]


class BodyKind(NamedTuple):
    """The body that a route accepts: its size, and its decoder for JSON and, if it accepts that too, for NDJSON."""

    bytes_max: int
    decode_json: Callable[[bytes], Any]
    decode_lines: Callable[[bytes], Any] | None = None


APPOINTMENT = BodyKind(1_048_576, decode_appointment)
