"""From JSON to sound appointments."""

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from service.access import EVERYTHING, Access
from service.fields import FIELD_KINDS, READ_ERRORS, Faults
from service.messages import Appointment, AppointmentPayload
from service.problems import ProblemError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PAYLOAD_FIELDS = msgspec.structs.fields(AppointmentPayload)

# Every member undecoded: the whole body is checked for being JSON before any field is looked at, and
# each field can then be wrong by itself.
RawPayload = msgspec.defstruct("RawPayload", [(field.encode_name, Raw | UnsetType, UNSET) for field in PAYLOAD_FIELDS])
PAYLOAD_KINDS = [(field.encode_name, field.name, field.required, FIELD_KINDS[field.type]) for field in PAYLOAD_FIELDS]
SOUND = msgspec.json.Decoder(
    msgspec.defstruct(
        "SoundPayload",
        [(name, kind.json.type) if needed else (name, kind.json.type, None) for name, _, needed, kind in PAYLOAD_KINDS],
    )
)
OBJECT = msgspec.json.Decoder(RawPayload)
ARRAY = msgspec.json.Decoder(list[Raw])
ANY_JSON = msgspec.json.Decoder(Raw)


def decode_appointment(body: bytes, access: Access = EVERYTHING) -> Appointment:
    """Raises ProblemError: first for JSON, then for all fields at once, then for their order, then for
    an organisation that is not the bearer's."""
    values = decode_sound(body) or decode_each(body)
    values["org_id"] = values["org_id"] or access.default_organisation()
    appointment = Appointment(**values)
    if appointment.start >= appointment.end:
        raise ProblemError("INVALID_TIME_RANGE", "Expected `start` before `end`.")
    if appointment.created_at > appointment.updated_at:
        raise ProblemError("INVALID_METADATA", "Expected `createdAt` not after `updatedAt`.")
    access.check(appointment.org_id)
    return appointment


def decode_item(body: bytes, access: Access) -> Appointment | ProblemError:
    try:
        return decode_appointment(body, access)
    except ProblemError as error:
        return error


def decode_sound(body: bytes) -> dict[str, Any] | None:
    """The values of all fields in one go; None if anything is wrong, without saying what."""
    try:
        body.decode()
        members = SOUND.decode(body)
        if BYTE_ORDER_MARK not in body:
            return {name: kind.parse(getattr(members, member)) for member, name, _, kind in PAYLOAD_KINDS}
    except (msgspec.DecodeError, RecursionError, ValueError):
        pass
    return None


def decode_each(body: bytes) -> dict[str, Any]:
    """The values of all fields, each by itself. Raises ProblemError, with every fault."""
    raw = decode_object(body)
    values: dict[str, Any] = {}
    faults = Faults()
    for member_name, name, required, kind in PAYLOAD_KINDS:
        member = getattr(raw, member_name)
        if member is UNSET and required:
            faults.add(member_name, f"Missing. Expected {kind.expected}.", kind.code)
            continue
        try:
            values[name] = kind.parse(None if member is UNSET else kind.json.decode(member))
        except READ_ERRORS:
            faults.add(member_name, f"Expected {kind.expected}.", kind.code)
    faults.raise_if_any()
    return values


def decode_object(body: bytes) -> Any:
    """The members, undecoded, as a RawPayload."""
    return decode_json(body, "object", b"{", OBJECT)


def decode_array(body: bytes) -> list[Raw]:
    """The items, undecoded."""
    items: list[Raw] = decode_json(body, "array", b"[", ARRAY)
    return items


def decode_json(body: bytes, kind: str, opening: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Raises ProblemError for what is no JSON, or of another kind. msgspec does not look at the
    encoding of what it skips."""
    if not body:
        raise ProblemError("INVALID_JSON", f"The body is empty; expected a JSON {kind}.")
    of_kind = body.lstrip(b" \t\r\n").startswith(opening)
    try:
        body.decode()
        decoded = (decoder if of_kind else ANY_JSON).decode(body)
    except msgspec.DecodeError as error:
        raise ProblemError("INVALID_JSON", f"The body is not JSON: {error}.") from None
    except UnicodeDecodeError as error:
        detail = f"The body is not UTF-8: byte {error.start} does not belong there."
        raise ProblemError("INVALID_JSON", detail) from None
    except RecursionError:
        raise ProblemError("INVALID_JSON", "The body is nested too deeply.") from None
    if BYTE_ORDER_MARK in body:
        raise ProblemError("INVALID_JSON", "The body holds a byte order mark, which JSON must not.")
    if not of_kind:
        faults = Faults()
        faults.add("", f"Expected a JSON {kind}.")
        faults.raise_if_any()
    return decoded
