"""Instants: parsed by the service, formatted by the database."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.instants import parse_instant

VALID = {
    "2020-10-10": "2020-10-10T00:00:00.000Z",
    "2020-10-10Z": "2020-10-10T00:00:00.000Z",
    "2020-10-10+02:00": "2020-10-09T22:00:00.000Z",
    "2020-10-10-02:00": "2020-10-10T02:00:00.000Z",
    "2020-10-10 20:20": "2020-10-10T20:20:00.000Z",
    "2020-10-10T20:20": "2020-10-10T20:20:00.000Z",
    "2020-10-10T20:20Z": "2020-10-10T20:20:00.000Z",
    "2020-10-10 20:20Z": "2020-10-10T20:20:00.000Z",
    "2020-10-10 20:20+05:30": "2020-10-10T14:50:00.000Z",
    "2020-10-10T20:20:30": "2020-10-10T20:20:30.000Z",
    "2020-10-10 20:20:30Z": "2020-10-10T20:20:30.000Z",
    "2020-10-10T20:20:30-11:30": "2020-10-11T07:50:30.000Z",
    "2020-10-10T20:20:30.5": "2020-10-10T20:20:30.500Z",
    "2020-10-10T20:20:30.123Z": "2020-10-10T20:20:30.123Z",
    "2020-10-10T20:20:30.1234Z": "2020-10-10T20:20:30.123400Z",
    "2020-10-10T20:20:30.123456": "2020-10-10T20:20:30.123456Z",
    "2020-10-10T20:20:30.123000": "2020-10-10T20:20:30.123Z",
    "2020-10-10T20:20:30.000001+00:00": "2020-10-10T20:20:30.000001Z",
    "2020-10-10T20:20:30.1234569Z": "2020-10-10T20:20:30.123456Z",
    "2020-10-10T20:20:30.999999999999999999999Z": "2020-10-10T20:20:30.999999Z",
    "2020-10-10T20:20:30." + "0" * 5000: "2020-10-10T20:20:30.000Z",
    "2020-10-10T00:00:00+23:59": "2020-10-09T00:01:00.000Z",
    "2020-10-10T00:00:00-23:59": "2020-10-10T23:59:00.000Z",
    "2020-10-10T20:20:30-00:00": "2020-10-10T20:20:30.000Z",
    "2020-02-29": "2020-02-29T00:00:00.000Z",
    "2000-02-29T23:59:59Z": "2000-02-29T23:59:59.000Z",
    "1969-12-31T23:59:59.999Z": "1969-12-31T23:59:59.999Z",
    "0001-01-01": "0001-01-01T00:00:00.000Z",
    "0001-01-01T00:00:00Z": "0001-01-01T00:00:00.000Z",
    "0001-01-01T02:00+02:00": "0001-01-01T00:00:00.000Z",
    "0001-01-01T00:00-01:00": "0001-01-01T01:00:00.000Z",
    "0000-12-31T23:00-01:00": "0001-01-01T00:00:00.000Z",
    "0000-12-31T00:01-23:59": "0001-01-01T00:00:00.000Z",
    "9999-12-31T23:59:59.999999Z": "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59.9999999Z": "9999-12-31T23:59:59.999999Z",
    "9999-12-31T00:00+01:00": "9999-12-30T23:00:00.000Z",
}
INVALID = [
    "",
    " ",
    "2020",
    "2020-10",
    "20201010",
    "2020-1-1",
    "2020-10-1",
    "02020-10-10",
    "+2020-10-10",
    "-2020-10-10",
    "2020/10/10",
    "10.10.2020",
    "2020-10-10T",
    "2020-10-10 ",
    " 2020-10-10",
    "2020-10-10\n",
    "2020-10-10T10",
    "2020-10-10T1010",
    "2020-10-10T1:10",
    "2020-10-10  10:10",
    "2020-10-10\t10:10",
    "2020-10-10t10:10",
    "2020-10-10T10:10z",
    "2020-10-10T10:10 Z",
    "2020-10-10T10:10:10 +02:00",
    "2020-10-10T10:10.5",
    "2020-10-10T10:10:10.",
    "2020-10-10T10:10:10.Z",
    "2020-10-10T10:10:10,5",
    "2020-10-10T10:10:10.5.5",
    "2020-10-10T10:10:10+0200",
    "2020-10-10T10:10:10+02",
    "2020-10-10T10:10:10+2:00",
    "2020-10-10T10:10:10+24:00",
    "2020-10-10T10:10:10+02:60",
    "2020-10-10T10:10:10+02:00:00",
    "2020-10-10T10:10:10\u221202:00",
    "2020-10-10T10:10:10Z+02:00",
    "2020-10-10T10:10:10 UTC",
    "2020-10-10T10:10:10[Europe/Vienna]",
    "2020-02-30",
    "2021-02-29",
    "1900-02-29",
    "2020-00-10",
    "2020-13-10",
    "2020-10-00",
    "2020-10-32",
    "2020-04-31",
    "2020-10-10T24:00",
    "2020-10-10T24:00:00Z",
    "2020-10-10T25:61",
    "2020-10-10T23:60",
    "2020-10-10T23:59:60",
    "2020-10-10T23:59:60Z",
    "2016-12-31T23:59:60Z",
    "2020-W41-6",
    "2020-284",
    "0000-01-01",
    "0000-12-31",
    "0000-12-31T23:59:59Z",
    "0000-12-31-23:59",
    "0000-12-31T00:00-23:59",
    "0000-12-30T23:00-23:59",
    "0001-01-01T00:00+00:01",
    "9999-12-31T23:59:59-00:01",
    "10000-01-01",
    "T10",
    "T10:10",
    "10:10",
    "now",
    "tomorrow",
    "infinity",
    "-infinity",
    "epoch",
    "1602324000",
    "1602324000.5",
    "٢٠٢٠-١٠-١٠",
    "2020-10-10T10:10:1٠",
    "2020-10-10\u00a010:10",
    "2020\u201110\u201110",
    "2020-10-10T10:10\0",
    "\ufeff2020-10-10",
]


@pytest.mark.parametrize(("text", "expected"), VALID.items())
def test_a_valid_instant_is_parsed(text: str, expected: str) -> None:
    assert parse_instant(text) == datetime.fromisoformat(expected)


@pytest.mark.parametrize("text", INVALID)
def test_an_invalid_instant_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the messages differ
        parse_instant(text)


OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(), OFFSETS, st.sampled_from("T "), st.sampled_from(["microseconds", "auto"]))
def test_an_offset_is_converted_to_utc(local: datetime, offset: timezone, gap: str, precision: str) -> None:
    text = local.replace(tzinfo=offset).isoformat(gap, precision)
    try:
        expected = local.replace(tzinfo=offset).astimezone(UTC)
    except OverflowError:
        with pytest.raises(ValueError, match="years"):
            parse_instant(text)
    else:
        assert parse_instant(text) == expected


@given(st.text("0123456789-+:.TZ Wz\t", max_size=32))
def test_any_text_is_an_instant_in_utc_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse_instant(text).tzinfo is UTC


def test_the_database_formats_instants_in_utc_whatever_the_session_time_zone(database_url: str) -> None:
    with psycopg.connect(database_url) as session:
        for zone in ("UTC", "Asia/Kathmandu", "America/St_Johns"):
            session.execute(f"set timezone = '{zone}'")
            for text in VALID.values():
                row = session.execute("select instant_text(%s::timestamptz)", (text,)).fetchone()
                assert row == (text,)
