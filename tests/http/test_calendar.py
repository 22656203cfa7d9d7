"""GET /api/appointments.ics, parsed by a different iCalendar library than the one that writes it."""

import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import vobject

from tests.databases import query
from tests.http.requests import assert_accepted, assert_problem, listed, post
from tests.http.test_lists import FILL_LONG_LIST, LONG_LIST_ROWS
from tests.processes import ServiceProcess

URL = "/api/appointments.ics"


def calendar(client: httpx.Client, organisation: str) -> Any:
    response = client.get(URL, params={"org": organisation})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/calendar; charset=utf-8"
    lines = response.content.split(b"\r\n")
    assert lines[-1] == b""
    assert all(len(line) <= 75 and not re.search(rb"[\0-\x08\x0a-\x1f\x7f]", line) for line in lines)
    parsed = vobject.readOne(response.text)
    parsed.validate(raiseException=True)
    return parsed


def events(client: httpx.Client, organisation: str) -> dict[str, Any]:
    return {event.summary.value: event for event in calendar(client, organisation).contents.get("vevent", [])}


def test_each_appointment_is_an_event(client: httpx.Client, organisation: str) -> None:
    assert_accepted(post(client, organisation))
    assert_accepted(post(client, organisation, start="2020-10-10 10:15", updatedAt="2020-09-30"))
    [row] = listed(client, organisation)
    [change] = client.get(f"/api/appointments/versions?org={organisation}&id=a-1&limit=2").json()[1:]
    [event] = events(client, organisation).values()
    assert event.uid.value == row["id"]
    assert event.dtstart.value == datetime(2020, 10, 10, 10, 15, tzinfo=UTC)
    assert event.dtend.value == datetime(2020, 10, 10, 10, 30, tzinfo=UTC)
    assert event.created.value == datetime(2020, 9, 2, 14, 23, 12, tzinfo=UTC)
    received = datetime.fromisoformat(change["receivedAt"]).replace(microsecond=0)
    assert (event.last_modified.value, event.dtstamp.value) == (received, received)
    assert (event.sequence.value, event.status.value) == ("1", "CONFIRMED")


def test_a_cancelled_appointment_is_listed_with_its_uid(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    [before] = events(client, organisation).values()
    post(client, organisation, cancelled=True, updatedAt="2020-09-30")
    [after] = events(client, organisation).values()
    assert (after.uid.value, after.sequence.value, after.status.value) == (before.uid.value, "1", "CANCELLED")


def test_an_organisation_without_appointments_has_a_valid_calendar(client: httpx.Client, organisation: str) -> None:
    parsed = calendar(client, organisation)
    assert "vevent" not in parsed.contents
    assert parsed.contents["vtimezone"]
    assert parsed.contents["name"][0].value == organisation


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2020-10-10 10:00:00.25", "2020-10-10 10:00:00.75", ("100000", "100001")),
        ("2020-10-10 10:00:00.25", "2020-10-10 10:00:01", ("100000", "100001")),
        ("2020-10-10 10:00:00", "2020-10-10 10:00:00.000001", ("100000", "100001")),
        ("2020-10-10 10:00:59.999999", "2020-10-10 10:01:00.000001", ("100059", "100101")),
        ("9999-12-31 23:59:59.5", "9999-12-31 23:59:59.999999", ("235958", "235959")),
        ("0001-01-01 00:00", "0001-01-01 00:00:00.000001", ("000000", "000001")),
    ],
)
def test_fractional_seconds_become_events_of_whole_seconds(
    client: httpx.Client, organisation: str, start: str, end: str, expected: tuple[str, str]
) -> None:
    post(client, organisation, start=start, end=end)
    day = start[:10].replace("-", "")
    text = client.get(URL, params={"org": organisation}).text
    assert (f"DTSTART:{day}T{expected[0]}Z\r\n", f"DTEND:{day}T{expected[1]}Z\r\n") == tuple(
        re.findall(r"(?:DTSTART|DTEND):\d{8}T\d{6}Z\r\n", text)
    )


@pytest.mark.parametrize(
    ("name", "summary"),
    [
        ("a,b;c\\d\ne", "a,b;c\\d\ne"),
        ("BEGIN:VEVENT\r\nUID:1", "BEGIN:VEVENT \nUID:1"),
        ("\x01\x0b\x0c\x1c\x7f\x85\u2028-\ttab", "       -\ttab"),
        ("ü😀" * 60, "ü😀" * 60),
        ("-" * 255, "-" * 255),
    ],
)
def test_any_external_id_can_be_a_summary(client: httpx.Client, organisation: str, name: str, summary: str) -> None:
    assert_accepted(post(client, organisation, id=name))
    assert list(events(client, organisation)) == [summary]


def test_an_unchanged_calendar_is_not_sent_again(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    first = client.get(URL, params={"org": organisation})
    headers = {"If-None-Match": first.headers["etag"]}
    again = client.get(URL, params={"org": organisation}, headers=headers)
    assert (again.status_code, again.content) == (304, b"")
    post(client, organisation, updatedAt="2020-09-30")
    changed = client.get(URL, params={"org": organisation}, headers=headers)
    assert changed.status_code == 200
    assert changed.headers["etag"] != again.headers["etag"] == first.headers["etag"]
    assert changed.text.count("SEQUENCE:1\r\n") == 1


def test_a_long_calendar_is_streamed_completely(service: ServiceProcess, organisation: str) -> None:
    query(service.database_url, FILL_LONG_LIST, organisation)
    response = service.client.get(URL, params={"org": organisation})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/calendar; charset=utf-8"
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.text.startswith("BEGIN:VCALENDAR\r\n")
    assert response.text.endswith("END:VCALENDAR\r\n")
    assert response.text.count("BEGIN:VEVENT\r\n") == response.text.count("END:VEVENT\r\n") == LONG_LIST_ROWS


def test_unknown_parameters_are_rejected(client: httpx.Client) -> None:
    assert_problem(client.get(URL + "?at=2020-10-10"), 400, "INVALID_REQUEST", ["at"])
