"""The published JSON schemas and both decoders agree on which values are valid."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from service.contract.body import AppointmentPayload, decode_appointment, decode_at_once, decode_each
from service.contract.fields import FIELD_KINDS, READ_ERRORS, ExternalId, Instant
from service.problems import ProblemError

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
EXTERNAL_ID = Draft202012Validator(msgspec.json.schema(ExternalId))
INSTANT = Draft202012Validator(msgspec.json.schema(Instant))


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\0 \t\n\u2003"), max_size=260))
def test_the_id_schema_accepts_exactly_what_the_service_accepts(text: str) -> None:
    try:
        assert FIELD_KINDS[ExternalId].parse(text) == text
        accepted = True
    except READ_ERRORS:
        accepted = False
    assert EXTERNAL_ID.is_valid(text) == accepted
    assert accepted == (1 <= len(text) <= 255 and bool(text.strip()) and "\0" not in text)


@given(
    st.from_regex(
        r"[0-9]{4}-[01][0-9]-[0-3][0-9]"
        r"([T ][0-2][0-9]:[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?)?(Z|[+-][0-2][0-9]:[0-5][0-9])?",
        fullmatch=True,
    )
)
def test_the_instant_schema_accepts_everything_that_the_service_accepts(text: str) -> None:
    try:
        FIELD_KINDS[Instant].parse(text)
    except ValueError:
        return
    assert INSTANT.is_valid(text)


@given(
    st.dictionaries(
        st.sampled_from([field.encode_name for field in msgspec.structs.fields(AppointmentPayload)])
        | st.text(max_size=3),
        VALUES | st.lists(VALUES, max_size=2) | st.just("2020-10-10"),
    )
)
def test_any_object_decodes_to_an_appointment_or_a_problem(members: dict[str, Any]) -> None:
    try:
        decode_appointment(msgspec.json.encode(members))
    except ProblemError as error:
        assert error.problem.status == 400


MEMBERS = {name: st.just("2020-10-10") | VALUES for name in ("id", "start", "end", "createdAt", "updatedAt", "orgId")}


@given(st.fixed_dictionaries(MEMBERS), st.binary(max_size=3), st.integers(0, 100))
def test_both_decoders_agree(members: dict[str, Any], insertion: bytes, place: int) -> None:
    body = msgspec.json.encode(members)
    place = min(place, len(body))
    for each in (body, body[:place] + insertion + body[place:]):
        try:
            expected = decode_each(each)
        except ProblemError:
            expected = None
        assert decode_at_once(each) == expected


@given(st.binary(max_size=64) | st.text('{}[]",:\\u0dD8 e1.-tfn', max_size=32).map(str.encode))
def test_any_bytes_decode_to_an_appointment_or_a_problem(body: bytes) -> None:
    try:
        decode_appointment(body)
    except ProblemError as error:
        assert error.problem.status == 400
