"""The published JSON schemas and both decoders agree on which values are valid."""

import json
import re
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import Field, TypeAdapter, ValidationError

from service.contract.body import AppointmentPayload, decode_appointment, decode_at_once, decode_each
from service.contract.fields import FIELD_KINDS, LENGTH_MAX, READ_ERRORS, ExternalId, Instant, OrganisationId
from service.problems import ProblemError
from service.web.openapi import document

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
SCHEMAS = {kind: Draft202012Validator(msgspec.json.schema(kind)) for kind in (ExternalId, OrganisationId, Instant)}
# White space of Python or of other languages, and other characters that patterns tend to get wrong.
SPECIAL = "\0 \t\n\r\x1c\x1f\x85\xa0\u180e\u2003\u2028\u3000\ufeff\x01a\U0001f600"
RUNS = st.builds(str.__mul__, st.sampled_from(SPECIAL) | st.characters(codec="utf-8"), st.integers(1, LENGTH_MAX))
TEXTS = st.lists(RUNS, max_size=4).map("".join) | st.text(SPECIAL, max_size=LENGTH_MAX + 1)
INSTANTS = st.from_regex(
    r"[0-9]{4}-[01][0-9]-[0-3][0-9]([Tt ][0-2][0-9]:[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?)?"
    r"([Zz]|[+-][0-2][0-9](:?[0-5][0-9])?)?\n?",
    fullmatch=True,
)


def accepts(kind: Any, text: str) -> bool:
    try:
        FIELD_KINDS[kind].parse(text)
    except READ_ERRORS:
        return False
    return True


@pytest.mark.parametrize("kind", SCHEMAS, ids=["id", "organisation", "instant"])
@given(text=TEXTS | INSTANTS)
def test_the_schema_accepts_everything_that_the_service_accepts(kind: Any, text: str) -> None:
    assert SCHEMAS[kind].is_valid(text) or not accepts(kind, text)


@given(st.text(st.characters(max_codepoint=0xFF), max_size=LENGTH_MAX + 5) | TEXTS.filter(str.strip))
def test_the_id_schema_is_exact_except_for_blank_ids_beyond_latin_1(text: str) -> None:
    assert SCHEMAS[ExternalId].is_valid(text) == accepts(ExternalId, text)
    assert accepts(ExternalId, text) == (1 <= len(text) <= LENGTH_MAX and bool(text.strip()) and "\0" not in text)


PATTERNS = sorted(set(re.findall(r'"pattern":"((?:[^"\\]|\\.)*)"', msgspec.json.encode(document()).decode())))


@pytest.mark.parametrize("pattern", [json.loads(f'"{pattern}"') for pattern in PATTERNS])
@given(text=TEXTS | INSTANTS)
def test_patterns_mean_the_same_in_rust(pattern: str, text: str) -> None:
    """Whose engine has the syntax of RE2. `$` of Python also matches before a final line feed."""
    try:
        TypeAdapter(Annotated[str, Field(pattern=pattern)]).validate_python(text)
        accepted = True
    except ValidationError:
        accepted = False
    assert accepted == bool(re.search(pattern.removesuffix("$") + r"\Z", text))


REQUIRED = {
    "id": TEXTS,
    "start": st.sampled_from(["0001-01-01", "0000-12-31T23:00-01:00"]),
    "end": st.sampled_from(["9999-12-31T23:59:59.9999999Z", "9999-12-31 00:00+01:00"]),
    "createdAt": st.just("2020-10-10"),
    "updatedAt": st.just("2020-10-10 10:10"),
}
OPTIONAL = {"orgId": TEXTS | st.none(), "cancelled": st.none() | st.booleans(), "more": VALUES}
PAYLOAD = Draft202012Validator(document()["components"]["schemas"]["AppointmentPayload"])


@given(st.fixed_dictionaries(REQUIRED, optional=OPTIONAL))
def test_the_schema_of_a_body_accepts_everything_that_the_service_accepts(members: dict[str, Any]) -> None:
    try:
        decode_appointment(json.dumps(members).encode())
    except ProblemError:
        return
    PAYLOAD.validate(members)


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


ANY_MEMBERS = {
    name: st.just("2020-10-10") | VALUES for name in ("id", "start", "end", "createdAt", "updatedAt", "orgId")
}


@given(st.fixed_dictionaries(ANY_MEMBERS), st.binary(max_size=3), st.integers(0, 100))
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
