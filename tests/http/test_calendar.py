"""GET /api/appointments.ics, parsed by one iCalendar library, and compared with what another one would have written."""

import json
import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import vobject
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from icalendar import Calendar, Event

from service.contract.fields import LENGTH_MAX
from tests.databases import query
from tests.http.requests import assert_accepted, assert_problem, listed, payload, post
from tests.http.test_lists import FILL_LONG_LIST, LONG_LIST_ROWS
from tests.processes import ServiceProcess

URL = "/api/appointments.ics"
JSON = {"Content-Type": "application/json"}


def calendar(client: httpx.Client, organisation: str) -> Any:
    parsed = vobject.readOne(calendar_text(client, organisation))
    parsed.validate(raiseException=True)
    return parsed


def calendar_text(client: httpx.Client, organisation: str) -> str:
    response = client.get(URL, params={"org": organisation})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/calendar; charset=utf-8"
    lines = response.content.split(b"\r\n")
    assert lines[-1] == b""
    for line in lines:
        assert len(line) <= 75
        assert not re.search(r"[\0-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]", line.decode())
    return response.text


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
    ("name", "written"),
    [
        ("a\nb", "a\\nb"),
        ("a\r\nb", "a \\nb"),
        ("a,b;c\\d", r"a\,b\;c\\d"),
        (r"\N\n\r", r"\\N\\n\\r"),
        ('"a": b\t\x85\u2028c', '"a": b\t  c'),
        ("é" * 100, "é" * 100),
        ("\U00010000\n", "\U00010000"),  # trimmed
    ],
)
def test_any_organisation_can_be_the_name_of_a_calendar(
    client: httpx.Client, organisation: str, name: str, written: str
) -> None:
    lines = calendar_text(client, organisation + name).replace("\r\n ", "").split("\r\n")
    assert {f"NAME:{organisation}{written}", f"X-WR-CALNAME:{organisation}{written}"} <= set(lines)


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
        ("\\" * 255, "\\" * 255),
    ],
)
def test_any_external_id_can_be_a_summary(client: httpx.Client, organisation: str, name: str, summary: str) -> None:
    assert_accepted(post(client, organisation, id=name))
    assert list(events(client, organisation)) == [summary]


IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=LENGTH_MAX)
HOSTILE_IDS = IDS | st.text('\\,;:"\r\n\t x\x01\x7f\x85\u2028\ufeffü\U0001f600n', min_size=1, max_size=LENGTH_MAX)
WRITABLE_IDS = HOSTILE_IDS.filter(lambda text: text.strip() and text[0] != "\ufeff")  # which the library leaves out


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(WRITABLE_IDS, min_size=1, unique=True), cancelled=st.booleans())
def test_events_are_those_that_the_library_would_write(client: httpx.Client, ids: list[str], cancelled: bool) -> None:
    organisation = f"org-{uuid4().hex}"
    start = datetime(2020, 10, 10)
    items = [
        payload(organisation, id=each, start=f"{start + timedelta(days=n)}", end=f"{start + timedelta(days=n + 1)}")
        for n, each in enumerate(ids)
    ]
    items.append(items[0] | {"cancelled": cancelled, "updatedAt": "2020-10-01"})
    answer = client.post("/api/appointments/batch", content=json.dumps(items), headers=JSON)
    assert answer.json() == {"results": [{"status": "ok"}] * len(items)}
    versions = client.get("/api/appointments/changes", params={"org": organisation}).json()["changes"]
    written = {version["id"]: library_event(version).to_ical() for version in versions}  # the last version of each
    found = Calendar.from_ical(calendar_text(client, organisation)).walk("VEVENT")
    assert {event["uid"]: event for event in found} == {uid: Event.from_ical(text) for uid, text in written.items()}


def library_event(version: dict[str, Any]) -> Event:
    """The event of an appointment on whole seconds."""
    event = Event()
    event.add("uid", version["id"])
    event.add("dtstamp", datetime.fromisoformat(version["receivedAt"]))
    event.add("last-modified", datetime.fromisoformat(version["receivedAt"]))
    event.add("created", datetime.fromisoformat(version["payloadCreatedAt"]))
    event.add("dtstart", datetime.fromisoformat(version["start"]))
    event.add("dtend", datetime.fromisoformat(version["end"]))
    event.add("sequence", version["version"] - 1)
    event.add("status", "CANCELLED" if version["cancelled"] else "CONFIRMED")
    event.add("summary", "".join(" " if is_control(character) else character for character in version["externalId"]))
    return event


def is_control(character: str) -> bool:
    """Whether a TEXT may not contain it, or some parsers take it for the end of a line."""
    return character in "\u2028\u2029" or (unicodedata.category(character) == "Cc" and character not in "\t\n")


def test_clients_are_told_how_often_to_ask(client: httpx.Client, organisation: str) -> None:
    parsed = calendar(client, organisation)
    [interval], [published] = parsed.contents["refresh-interval"], parsed.contents["x-published-ttl"]
    assert (interval.params, interval.value) == ({"VALUE": ["DURATION"]}, "PT15M")
    assert (published.params, published.value) == ({}, "PT15M")


@pytest.mark.parametrize("long", [False, True])
def test_every_answer_may_be_kept_for_a_minute_by_its_client_alone(
    service: ServiceProcess, organisation: str, long: bool
) -> None:
    if long:
        query(service.database_url, FILL_LONG_LIST, organisation)
    url = f"{URL}?org={organisation}"
    found = service.client.get(url)
    head = service.client.head(url)
    unchanged = service.client.get(url, headers={"If-None-Match": found.headers["etag"]})
    assert (found.status_code, head.status_code, unchanged.status_code) == (200, 200, 304)
    assert (head.content, unchanged.content) == (b"", b"")
    for answer in (found, head, unchanged):
        assert answer.headers["cache-control"] == "private, max-age=60"
        assert answer.headers["etag"] == found.headers["etag"]
    assert head.headers["content-type"] == found.headers["content-type"]


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
