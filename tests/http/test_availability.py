"""GET /api/availability: busy and free intervals of a window."""

from typing import Any

import httpx
import pytest

from service.contract.parameters import ROWS_MAX
from tests.databases import query
from tests.http.requests import assert_accepted, assert_problem, post
from tests.processes import ServiceProcess

URL = "/api/availability"
DAY = "2020-10-10T"


def intervals(*pairs: str) -> list[dict[str, str]]:
    """Intervals of DAY, from pairs like `10:00-11:00`."""
    split = [pair.split("-") for pair in pairs]
    return [{"start": f"{DAY}{start}:00.000Z", "end": f"{DAY}{end}:00.000Z"} for start, end in split]


def available(client: httpx.Client, organisation: str, start: str, end: str, **more: str) -> dict[str, Any]:
    window = {"from": DAY + start, "to": DAY + end}
    response = client.get(URL, params={"org": organisation} | window | more)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert list(body) == ["from", "to", "busy", "free"]
    [window_as_instants] = intervals(f"{start}-{end}")
    assert (body["from"], body["to"]) == (window_as_instants["start"], window_as_instants["end"])
    return body


@pytest.fixture
def hours(client: httpx.Client, organisation: str) -> None:
    """Busy 10:00 to 11:00, 11:00 to 12:00 and 13:00 to 13:30. The appointment from 15:00 to 16:00 is cancelled."""
    for name, start, end in (("a", "10:00", "11:00"), ("b", "11:00", "12:00"), ("c", "13:00", "13:30")):
        assert_accepted(post(client, organisation, id=name, start=DAY + start, end=DAY + end))
    assert_accepted(post(client, organisation, id="d", start=DAY + "15:00", end=DAY + "16:00", cancelled=True))


@pytest.mark.usefixtures("hours")
@pytest.mark.parametrize(
    ("start", "end", "busy", "free"),
    [
        ("08:00", "18:00", ["10:00-12:00", "13:00-13:30"], ["08:00-10:00", "12:00-13:00", "13:30-18:00"]),
        ("10:30", "11:30", ["10:30-11:30"], []),
        ("11:30", "13:10", ["11:30-12:00", "13:00-13:10"], ["12:00-13:00"]),
        ("12:00", "13:00", [], ["12:00-13:00"]),
        ("08:00", "10:00", [], ["08:00-10:00"]),
        ("14:00", "17:00", [], ["14:00-17:00"]),
    ],
)
def test_busy_and_free_intervals_cover_the_window(
    client: httpx.Client, organisation: str, start: str, end: str, busy: list[str], free: list[str]
) -> None:
    body = available(client, organisation, start, end)
    assert (body["busy"], body["free"]) == (intervals(*busy), intervals(*free))


@pytest.mark.usefixtures("hours")
@pytest.mark.parametrize(
    ("minutes", "free"),
    [
        ("0", ["09:30-10:00", "12:00-13:00", "13:30-14:00"]),
        ("30", ["09:30-10:00", "12:00-13:00", "13:30-14:00"]),
        ("31", ["12:00-13:00"]),
        ("60", ["12:00-13:00"]),
        ("61", []),
        (str(10**10), []),
    ],
)
def test_free_intervals_shorter_than_min_minutes_are_left_out(
    client: httpx.Client, organisation: str, minutes: str, free: list[str]
) -> None:
    body = available(client, organisation, "09:30", "14:00", minMinutes=minutes)
    assert body["free"] == intervals(*free)
    assert body["busy"] == intervals("10:00-12:00", "13:00-13:30")


def test_an_organisation_without_appointments_is_free(client: httpx.Client, organisation: str) -> None:
    body = available(client, organisation, "00:00", "23:59")
    assert (body["busy"], body["free"]) == ([], intervals("00:00-23:59"))
    window = {"from": "0001-01-01", "to": "9999-12-31T23:59:59.999999"}
    whole = client.get(URL, params={"org": organisation} | window).json()
    edges = ("0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999999Z")
    assert whole == dict(zip(("from", "to"), edges, strict=True)) | {
        "busy": [],
        "free": [dict(zip(("start", "end"), edges, strict=True))],
    }


@pytest.mark.parametrize(
    ("parameters", "code", "fields"),
    [
        ({}, "INVALID_DATE_FORMAT", ["from", "to"]),
        ({"from": DAY + "10:00"}, "INVALID_DATE_FORMAT", ["to"]),
        ({"from": "", "to": "x"}, "INVALID_DATE_FORMAT", ["to", "from"]),
        ({"from": DAY + "10:00", "to": DAY + "10:00"}, "INVALID_TIME_RANGE", None),
        ({"from": DAY + "10:00", "to": DAY + "11:00", "minMinutes": "-1"}, "INVALID_REQUEST", ["minMinutes"]),
        ({"from": DAY + "10:00", "to": DAY + "11:00", "minMinutes": "1.5"}, "INVALID_REQUEST", ["minMinutes"]),
        (
            {"from": DAY + "10:00", "to": DAY + "11:00", "minMinutes": str(10**10 + 1)},
            "INVALID_REQUEST",
            ["minMinutes"],
        ),
        ({"from": DAY + "10:00", "to": DAY + "11:00", "limit": "1"}, "INVALID_REQUEST", ["limit"]),
    ],
)
def test_an_invalid_parameter_is_rejected(
    client: httpx.Client, parameters: dict[str, str], code: str, fields: list[str] | None
) -> None:
    assert_problem(client.get(URL, params=parameters), 400, code, fields)


COUNT = 2 * ROWS_MAX
FILL = f"""
insert into appointments
    (bucket, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version)
select organisation_bucket(org_id), org_id, n, tstzrange(start, start + interval '30 minutes'), start, start, start, 1
from (select n, timestamptz '2000-01-01Z' + n * interval '1 hour' as start from generate_series(1, {COUNT}) as n) as s,
    (values (%s)) as organisations (org_id)
"""


def test_a_long_response_is_streamed_completely(service: ServiceProcess, organisation: str) -> None:
    query(service.database_url, FILL, organisation)
    window = {"from": "2000-01-01T01:00", "to": "2010-01-01"}
    response = service.client.get(URL, params={"org": organisation} | window)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["transfer-encoding"] == "chunked"
    body = response.json()
    assert (len(body["busy"]), len(body["free"])) == (COUNT, COUNT)
    assert body["busy"] == sorted(body["busy"], key=lambda interval: interval["start"])
    assert [interval["end"] for interval in body["busy"]] == [interval["start"] for interval in body["free"]]
