"""Fuzzing of the request decoders: arbitrary input gives a valid value or a 400, in agreement with a second decoder.

`FUZZ_CASES=1000000 make test KIND=hostile/test_fuzz.py` sets the number of cases of each test.
"""

import json
import os
import re
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict

from service.contract import parameters
from service.contract.body import WHITE_SPACE, Appointment, decode_appointment, decode_at_once, decode_each
from service.contract.cursors import ListPlace, VersionPlace, encode, parse_list_cursor, parse_version_cursor
from service.contract.fields import LENGTH_MAX, Instant
from service.contract.instants import parse_instant
from service.contract.items import scan_array, split_array
from service.contract.parameters import Parameters, read_query
from service.problems import ProblemError
from tests.http.requests import payload

INSTANT_PATTERN = msgspec.json.schema(Instant)["pattern"]  # as the OpenAPI document publishes it

fuzzed = settings(max_examples=int(os.environ.get("FUZZ_CASES", "400")), deadline=None)

INSTANT_LIKE = st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]([ T][0-2][0-9]:[0-6][0-9](:[0-6][0-9](\.[0-9]+)?)?)?"
    r"(Z|[+-][0-2][0-9]:[0-6][0-9])?", fullmatch=True)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | INSTANT_LIKE
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
MEMBERS = st.sampled_from([*payload(None), "cancelled"])
NEARLY_VALID = st.dictionaries(MEMBERS, JSON, max_size=3).map(lambda changes: payload("o") | changes)
TEXTS = st.builds(json.dumps, NEARLY_VALID | JSON, ensure_ascii=st.booleans(), indent=st.none() | st.just(1))
SPLICES = st.tuples(st.integers(0, 400), st.integers(0, 4), st.binary(max_size=4))


def spliced(octets: bytes, splices: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, new in splices:
        octets = octets[:at] + new + octets[at + length :]
    return octets


ENCODED = TEXTS.map(lambda text: text.encode(errors="surrogatepass"))
BODIES = st.binary() | st.builds(spliced, ENCODED, st.lists(SPLICES, max_size=3))


def is_json(body: bytes) -> bool:
    """Whether Python's own decoder accepts it. That one is too lenient towards NaN and Infinity, and lone
    surrogates."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        decoded = json.loads(body.decode(), parse_constant=refuse)
        json.dumps(decoded, ensure_ascii=False).encode()  # no lone surrogates
    except (ValueError, RecursionError):
        return False
    return True


@fuzzed
@given(BODIES)
def test_any_body_gives_a_valid_appointment_or_a_400(body: bytes) -> None:
    try:
        appointment = decode_appointment(body)
    except ProblemError as error:
        assert error.problem.status == 400
        assert msgspec.json.encode(error.problem)
        assert (error.problem.code == "INVALID_JSON") == (not is_json(body)), error.problem
    else:
        assert is_json(body)
        assert appointment.start < appointment.end
        assert appointment.created_at <= appointment.updated_at
        assert "\0" not in appointment.id + appointment.org_id


@fuzzed
@given(BODIES)
def test_the_fast_and_the_field_by_field_decoder_agree(body: bytes) -> None:
    values = decode_at_once(body)
    if values is None:
        with pytest.raises(ProblemError):
            decode_each(body)
    else:
        assert decode_each(body) == values


# Texts that are nearly JSON, with the characters on which the bounds of items depend.
FRAGMENTS = st.sampled_from(
    ['"', '"a"', "\\", "[", "]", "{", "}", ",", ":", " ", "\n", "1", "tru", "\ufeff", "{}", "\x00"]
)
STRUCTURES = st.lists(FRAGMENTS, max_size=12).map("".join).map(str.encode)
ITEMS = ENCODED | STRUCTURES | st.builds(spliced, ENCODED, st.lists(SPLICES, max_size=1))
SEPARATORS = st.sampled_from([b",", b" ,", b",\r\n", b"\t, "])
ARRAYS = st.builds(
    lambda items, separator: b"[" + separator.join(items) + b"]", st.lists(ITEMS, max_size=4), SEPARATORS
)


def items_of(body: bytes) -> list[bytes] | None:
    try:
        return split_array(body)
    except ProblemError as error:
        assert error.problem.status == 400
        return None


@fuzzed
@given(ARRAYS | BODIES | st.builds(spliced, ARRAYS, st.lists(SPLICES, max_size=2)))
def test_the_items_of_an_array_are_json_exactly_if_the_array_is(body: bytes) -> None:
    """So none is lost or joined to another one, and no malformed array passes for a sound one."""
    items = items_of(body)
    if items is None:
        assert not (is_json(body) and isinstance(json.loads(body), list))
    elif is_json(body):
        assert [json.loads(item) for item in items] == json.loads(body)
    else:
        assert not all(is_json(item) for item in items)


@fuzzed
@given(st.lists(ENCODED.filter(is_json), max_size=4), SEPARATORS)
def test_both_ways_to_split_an_array_agree(items: list[bytes], separator: bytes) -> None:
    """The fast way is not open to a malformed array; an item that is none makes no difference to those before it."""
    stripped = [item.strip(WHITE_SPACE) for item in items]
    assert split_array(b"[" + separator.join(items) + b"]") == stripped
    assert list(scan_array(b"[" + separator.join([*items, b"tru"]) + b"]")) == [*stripped, b"tru"]
    assert split_array(b"[" + separator.join([b"tru", *items]) + b"]") == [b"tru", *stripped]


@st.composite
def valid_appointments(draw: st.DrawFn) -> Appointment:
    start, end = draw(st.lists(st.datetimes(), min_size=2, max_size=2, unique=True).map(sorted))
    created_at, updated_at = draw(st.lists(st.datetimes(), min_size=2, max_size=2).map(sorted))
    texts = st.text(max_size=LENGTH_MAX).filter(lambda text: "\0" not in text)
    return Appointment(
        id=draw(texts.filter(str.strip)),
        start=start,
        end=end,
        created_at=created_at,
        updated_at=updated_at,
        org_id=draw(texts),
        cancelled=draw(st.booleans()),
    )


@fuzzed
@given(valid_appointments())
def test_a_valid_appointment_is_decoded_exactly(appointment: Appointment) -> None:
    """Only the organisation is changed: it is trimmed."""
    expected: dict[str, Any] = asdict(appointment)
    names = {"created_at": "createdAt", "updated_at": "updatedAt", "org_id": "orgId"}
    body = json.dumps(
        {
            names.get(name, name): f"{value.isoformat()}Z" if isinstance(value, datetime) else value
            for name, value in expected.items()
        }
    ).encode()
    decoded = {
        name: value.replace(tzinfo=None) if isinstance(value, datetime) else value
        for name, value in asdict(decode_appointment(body)).items()
    }
    assert decoded == expected | {"org_id": appointment.org_id.strip()}


def reference_instant(text: str) -> datetime | None:
    """Parses without regular expressions or `fromisoformat`, as an offset from the beginning of year 1."""
    rest, minutes_off = text, 0
    if rest.endswith("Z"):
        rest = rest[:-1]
    elif (len(rest) > 15 and rest[-6] in "+-" and rest[-3] == ":") or (len(rest) == 16 and rest[10] in "+-"):
        hours, minutes = rest[-5:-3], rest[-2:]
        minutes_off = (int(hours) * 60 + int(minutes)) * (1 if rest[-6] == "+" else -1)
        if int(hours) > 23 or int(minutes) > 59:
            return None
        rest = rest[:-6]
    day, clock = rest[:10], rest[11:]
    year, month, date = int(day[:4]), int(day[5:7]), int(day[8:])
    if len(rest) == 11 or not 1 <= month <= 12:
        return None
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    lengths = [31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    if not 1 <= date <= lengths[month - 1]:
        return None
    before = year - 1
    days = 365 * before + before // 4 - before // 100 + before // 400 + sum(lengths[: month - 1]) + date - 1
    hour, minute, second = int(clock[:2] or 0), int(clock[3:5] or 0), int(clock[6:8] or 0)
    if hour > 23 or minute > 59 or second > 59:
        return None
    microseconds = int((clock[9:] + "000000")[:6])
    seconds = days * 86_400 + (hour * 60 + minute - minutes_off) * 60 + second
    try:
        return datetime(1, 1, 1) + timedelta(seconds=seconds, microseconds=microseconds) if seconds >= 0 else None
    except OverflowError:
        return None


@fuzzed
@given(INSTANT_LIKE)
def test_instants_are_parsed_like_the_reference_parser(text: str) -> None:
    expected = reference_instant(text)
    try:
        found = parse_instant(text)
    except ValueError:
        # Of year 0, parse_instant accepts only the last day, with an offset that leads into year 1.
        assert expected is None or text.startswith("0000")
    else:
        assert found.replace(tzinfo=None) == expected


@fuzzed
@given(st.text() | INSTANT_LIKE)
def test_every_accepted_instant_matches_the_published_pattern(text: str) -> None:
    try:
        parse_instant(text)
    except ValueError:
        return
    assert re.search(INSTANT_PATTERN, text)


ROUTE_PARAMETERS = [parameters.LIST, parameters.VERSIONS, parameters.CHANGES, parameters.AVAILABILITY]
NAMES = st.sampled_from(sorted({name for route in ROUTE_PARAMETERS for name in route.types}))
VALUES = INSTANT_LIKE | st.integers().map(str) | st.text().map(lambda text: text.encode(errors="replace").hex("%"))
PAIRS = st.lists(st.builds("{}={}".format, NAMES, VALUES), max_size=4)
QUERIES = st.binary() | st.builds(spliced, PAIRS.map(lambda pairs: "&".join(pairs).encode()), st.lists(SPLICES))


@fuzzed
@given(QUERIES, st.sampled_from(ROUTE_PARAMETERS))
def test_any_query_string_gives_values_or_a_400(query: bytes, known: Parameters) -> None:
    try:
        values = read_query(query, known)
    except ProblemError as error:
        assert error.problem.status == 400
        assert msgspec.json.encode(error.problem)
    else:
        assert values.keys() == known.types.keys()


@fuzzed
@given(st.datetimes(), st.text())
def test_cursors_round_trip(at: datetime, external_id: str) -> None:
    instant = f"{at.isoformat()}Z"
    place = ListPlace(instant, external_id.encode(errors="replace").decode().replace("\0", ""))
    start, parsed_id = parse_list_cursor(encode(place))
    assert (start.replace(tzinfo=None), parsed_id) == (at, place.external_id)
    assert parse_version_cursor(encode(VersionPlace(instant))).replace(tzinfo=None) == at
