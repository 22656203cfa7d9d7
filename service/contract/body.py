"""Bodies of POST: from JSON to valid appointments."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import NODEFAULT, UNSET, Raw, Struct, UnsetType, defstruct
from msgspec.json import Decoder

from service.contract import fields
from service.problems import ProblemError

ITEMS_MAX = 1000  # of a batch
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
ARRAY = Decoder(list[Raw])
ANY_JSON = Decoder(Raw)


def decode_appointment(body: bytes) -> Appointment:
    """Raises ProblemError: first for JSON, then for all fields at once, then for their order."""
    appointment = Appointment(**(decode_at_once(body) or decode_each(body)))
    if appointment.start >= appointment.end:
        raise ProblemError("INVALID_TIME_RANGE", "Expected `start` before `end`.")
    if appointment.created_at > appointment.updated_at:
        raise ProblemError("INVALID_METADATA", "Expected `createdAt` not after `updatedAt`.")
    return appointment


def split_array(body: bytes) -> list[bytes]:
    """The items of a batch, undecoded. Raises ProblemError."""
    return limited([bytes(item) for item in decode_json(body, "array", b"[", ARRAY)])


def split_lines(body: bytes) -> list[bytes]:
    """The items of a batch in NDJSON, undecoded; blank lines are skipped. Raises ProblemError."""
    return limited([line for line in body.split(b"\n") if line.strip()])


def limited(items: list[bytes]) -> list[bytes]:
    if len(items) > ITEMS_MAX:
        raise ProblemError("PAYLOAD_TOO_LARGE", f"Expected at most {ITEMS_MAX} items; these are {len(items)}.")
    return items


def decode_at_once(body: bytes) -> dict[str, Any] | None:
    """The values of all fields; None if anything is wrong."""
    try:
        body.decode()
        members = VALID.decode(body)
        values = {name: kind.parse(getattr(members, member)) for member, name, _, kind in MEMBERS}
    except fields.READ_ERRORS:
        return None
    return None if BYTE_ORDER_MARK in body else values


def decode_each(body: bytes) -> dict[str, Any]:
    """The values of all fields, decoded one by one. Raises ProblemError with every fault."""
    members = decode_json(body, "object", b"{", OBJECT)
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


def decode_json(body: bytes, kind: str, opening: bytes, decoder: Decoder[Any]) -> Any:
    """Raises ProblemError for a body that is not JSON, or is JSON of another kind. msgspec does not check the
    encoding of members that it skips, hence `body.decode()`."""
    if not body:
        raise ProblemError("INVALID_JSON", f"The body is empty; expected a JSON {kind}.")
    of_kind = body.lstrip(b" \t\r\n").startswith(opening)
    try:
        body.decode()
        decoded = (decoder if of_kind else ANY_JSON).decode(body)
    except msgspec.DecodeError as error:
        raise ProblemError("INVALID_JSON", f"The body is not JSON: {error}.") from None
    except UnicodeDecodeError as error:
        raise ProblemError("INVALID_JSON", f"The body is not UTF-8: byte {error.start} is invalid.") from None
    except RecursionError:
        raise ProblemError("INVALID_JSON", "The body is nested too deeply.") from None
    if BYTE_ORDER_MARK in body:
        raise ProblemError("INVALID_JSON", "The body contains a byte order mark, which JSON does not allow.")
    if not of_kind:
        raise fields.invalid({"": (f"Expected a JSON {kind}.", "INVALID_REQUEST")})
    return decoded


class BodyKind(NamedTuple):
    """The body that a route accepts: its size, and its decoder for JSON and, if it accepts that too, for NDJSON."""

    bytes_max: int
    decode_json: Callable[[bytes], Any]
    decode_lines: Callable[[bytes], Any] | None = None


APPOINTMENT = BodyKind(1_048_576, decode_appointment)
BATCH = BodyKind(4_194_304, split_array, split_lines)
