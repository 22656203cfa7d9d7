"""Bodies of POST: from JSON to valid appointments."""

from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from starlette.types import Scope

from service.contract.fields import FIELD_KINDS, READ_ERRORS, Cancelled, ExternalId, Faults, Instant, OrganisationId
from service.contract.headers import LINES, media_type
from service.problems import ProblemError

ITEMS_MAX = 1000  # of a batch
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BodyKind(NamedTuple):
    """What a route accepts; `lines`: NDJSON as well as JSON."""

    bytes_max: int
    lines: bool


APPOINTMENT = BodyKind(1_048_576, lines=False)
BATCH = BodyKind(4_194_304, lines=True)


class AppointmentPayload(Struct, rename="camel", kw_only=True):
    """One appointment as an upstream system knows it; other members are ignored."""

    id: ExternalId
    start: Instant
    end: Instant
    created_at: Instant
    updated_at: Instant
    org_id: OrganisationId = None
    cancelled: Cancelled = None


class Appointment(Struct, frozen=True, kw_only=True):
    """A valid payload: instants in UTC and in order. `org_id` is trimmed; empty if none was given."""

    id: str
    start: datetime
    end: datetime
    created_at: datetime
    updated_at: datetime
    org_id: str
    cancelled: bool


PAYLOAD_FIELDS = msgspec.structs.fields(AppointmentPayload)
PAYLOAD_KINDS = [(field.encode_name, field.name, field.required, FIELD_KINDS[field.type]) for field in PAYLOAD_FIELDS]

# The fast decoder takes a valid body in one pass. The other one leaves every member undecoded: the whole body is then
# checked for being JSON before any field is read, and each field can be wrong on its own.
VALID = msgspec.json.Decoder(
    msgspec.defstruct(
        "ValidPayload",
        [(name, kind.json.type) if needed else (name, kind.json.type, None) for name, _, needed, kind in PAYLOAD_KINDS],
    )
)
OBJECT = msgspec.json.Decoder(
    msgspec.defstruct("RawPayload", [(field.encode_name, Raw | UnsetType, UNSET) for field in PAYLOAD_FIELDS])
)
ARRAY = msgspec.json.Decoder(list[Raw])
ANY_JSON = msgspec.json.Decoder(Raw)


def decode_appointment(body: bytes) -> Appointment:
    """Raises ProblemError: first for JSON, then for all fields at once, then for their order."""
    appointment = Appointment(**(decode_at_once(body) or decode_each(body)))
    if appointment.start >= appointment.end:
        raise ProblemError("INVALID_TIME_RANGE", "Expected `start` before `end`.")
    if appointment.created_at > appointment.updated_at:
        raise ProblemError("INVALID_METADATA", "Expected `createdAt` not after `updatedAt`.")
    return appointment


def split_batch(scope: Scope, body: bytes) -> list[bytes]:
    """The items of a batch, undecoded; blank lines are skipped. Raises ProblemError."""
    if media_type(scope) == LINES:
        items = [line for line in body.split(b"\n") if line.strip()]
    else:
        items = [bytes(item) for item in decode_json(body, "array", b"[", ARRAY)]
    if len(items) > ITEMS_MAX:
        raise ProblemError("PAYLOAD_TOO_LARGE", f"Expected at most {ITEMS_MAX} items; these are {len(items)}.")
    return items


def decode_at_once(body: bytes) -> dict[str, Any] | None:
    """The values of all fields; None if anything is wrong."""
    try:
        body.decode()
        members = VALID.decode(body)
        if BYTE_ORDER_MARK not in body:
            return {name: kind.parse(getattr(members, member)) for member, name, _, kind in PAYLOAD_KINDS}
    except (msgspec.DecodeError, RecursionError, ValueError):
        pass
    return None


def decode_each(body: bytes) -> dict[str, Any]:
    """The values of all fields, decoded one by one. Raises ProblemError with every fault."""
    members = decode_json(body, "object", b"{", OBJECT)
    values: dict[str, Any] = {}
    faults = Faults()
    for member_name, name, required, kind in PAYLOAD_KINDS:
        member = getattr(members, member_name)
        if member is UNSET and required:
            faults.add(member_name, f"Missing. Expected {kind.expected}.", kind.code)
            continue
        try:
            values[name] = kind.parse(None if member is UNSET else kind.json.decode(member))
        except READ_ERRORS:
            faults.add(member_name, f"Expected {kind.expected}.", kind.code)
    faults.raise_if_any()
    return values


def decode_json(body: bytes, kind: str, opening: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
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
        faults = Faults()
        faults.add("", f"Expected a JSON {kind}.")
        faults.raise_if_any()
    return decoded
