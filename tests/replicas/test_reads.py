"""Which reads a standby answers. Both standbys are paused, and the service tolerates any lag: an answer with what was
written since then comes from the primary."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from service.import_export import export_lines
from service.reading.source import may_lag
from service.settings import Settings
from tests.http.requests import assert_accepted, assert_problem, metrics, payload, post
from tests.processes import ServiceProcess
from tests.replicas.conftest import Cluster

LIST = "/api/appointments"
VERSIONS = "/api/appointments/versions"
CHANGES = "/api/appointments/changes"
CALENDAR = "/api/appointments.ics"
WINDOW = {"from": "2020-10-10", "to": "2020-10-11"}
SECOND = {"id": "a-2", "start": "2020-10-10 11:00", "end": "2020-10-10 11:30"}
PRESENT = {"Cache-Control": "no-cache"}
STANDBY = "database_reads_total standby"
READS = [
    (LIST, {}),
    (LIST, WINDOW),
    (LIST, {"limit": "5"}),
    (LIST, {"id": "a-1", "includeCancelled": "true"}),
    (VERSIONS, {"id": "a-1"}),
    (CHANGES, {}),
    (CHANGES, {"limit": "5", "wait": "5"}),
    (CALENDAR, {}),
    ("/api/availability", WINDOW),
]
TAGGED = [(LIST, {}), (LIST, {"limit": "5"}), (LIST, {"id": "a-1"}), (CALENDAR, {})]


def get(client: httpx.Client, url: str, parameters: dict[str, str], **headers: str) -> httpx.Response:
    response = client.get(url, params=parameters, headers=headers)
    assert response.status_code in (200, 304), response.text
    return response


def move(client: httpx.Client, organisation: str, day: int = 29) -> None:
    """The appointment that the standbys have is updated."""
    changes = {"updatedAt": f"2020-09-{day}", "start": f"2020-10-10 11:{day}", "end": "2020-10-10 12:00"}
    assert_accepted(post(client, organisation, **changes))


def write_many(client: httpx.Client, organisation: str, count: int) -> None:
    """One a day."""
    days = [f"{date(2021, 1, 1) + timedelta(days=number)}" for number in range(count)]
    items = [payload(organisation, id=f"b-{day}", start=day, end=f"{day} 01:00") for day in days]
    for start in range(0, count, 1_000):
        answered = client.post("/api/appointments/batch", json=items[start : start + 1_000])
        assert {result["status"] for result in answered.json()["results"]} == {"ok"}


@pytest.mark.parametrize(("url", "parameters"), READS)
def test_standby_answers_unless_the_client_wants_the_present(
    paused: ServiceProcess, organisation: str, url: str, parameters: dict[str, str]
) -> None:
    asked = {"org": organisation} | parameters
    before = get(paused.client, url, asked, **PRESENT).text
    move(paused.client, organisation)
    count = metrics(paused.client)[STANDBY]
    assert get(paused.client, url, asked).text == before
    assert metrics(paused.client)[STANDBY] == count + 1
    assert get(paused.client, url, asked, **PRESENT).text != before
    assert metrics(paused.client)[STANDBY] == count + 1


@pytest.mark.parametrize(
    ("values", "present"),
    [
        (["no-cache"], True),
        (["NO-Cache"], True),
        (["no-store, no-cache"], True),
        (["no-store ,\tNo-Cache"], True),
        (["no-store", "no-cache"], True),
        (["no-cache=x"], True),
        (['extension="a, b", no-cache'], True),
        (["max-age=0"], True),
        (["Max-Age=0"], True),
        (["max-age=00"], True),
        (['max-age="0"'], True),
        (["max-age=7200, max-age=0"], True),
        (["max-age=7200", "max-age=0"], True),
        (["max-age"], True),
        (["max-age=x"], True),
        (["max-age=-1"], True),
        (["max-age=7200"], False),
        (["max-age=99999999999999999999999999"], False),
        (["no-store"], False),
        (["no-cached"], False),
        (['extension="no-cache"'], False),
        (['extension="a, no-cache, b"'], False),
        (["max-stale=0"], False),
        (["only-if-cached"], False),
        ([""], False),
    ],
)
def test_cache_control_decides_by_the_age_that_it_allows(
    paused: ServiceProcess, organisation: str, values: list[str], present: bool
) -> None:
    assert_accepted(post(paused.client, organisation, **SECOND))
    headers = [("Cache-Control", value) for value in values]
    listed = paused.client.get(LIST, params={"org": organisation}, headers=headers).json()
    assert [row["externalId"] for row in listed] == (["a-1", "a-2"] if present else ["a-1"])


def test_export_has_what_was_just_written(paused: ServiceProcess, organisation: str, tmp_path: Path) -> None:
    assert_accepted(post(paused.client, organisation, **SECOND))
    export_lines(paused.url, "", {"org": organisation}, str(tmp_path / "exported"))
    lines = (tmp_path / "exported").read_text().splitlines()
    assert [json.loads(line)["externalId"] for line in lines] == ["a-1", "a-2"]


@pytest.mark.parametrize(("url", "parameters"), TAGGED)
def test_client_whose_copy_is_later_than_the_standby_never_goes_back(
    paused: ServiceProcess, organisation: str, url: str, parameters: dict[str, str]
) -> None:
    asked = {"org": organisation} | parameters
    old = get(paused.client, url, asked).headers["etag"]
    move(paused.client, organisation)
    known = get(paused.client, url, asked, **PRESENT).headers["etag"]
    assert get(paused.client, url, asked).headers["etag"] == old != known
    for tags in (known, f"{old}, {known}", known.removeprefix("W/"), known.replace('"', '"x", "', 1)):
        assert get(paused.client, url, asked, **{"If-None-Match": tags}).headers["etag"] in (known, old)
    assert get(paused.client, url, asked, **{"If-None-Match": known}).status_code == 304
    assert get(paused.client, url, asked, **{"If-None-Match": old}).status_code == 304  # as a 200 would be
    move(paused.client, organisation, day=30)
    answered = get(paused.client, url, asked, **{"If-None-Match": known})
    newest = get(paused.client, url, asked, **PRESENT)
    assert (answered.status_code, answered.text) == (200, newest.text)
    assert answered.headers["etag"] == newest.headers["etag"]


@pytest.mark.parametrize("tag", ['W/"99999999999999999999999-x"', '"9999999999999999999"', '"x"', '""', 'W/"', "0"])
def test_odd_tag_matches_nothing(paused: ServiceProcess, organisation: str, tag: str) -> None:
    assert get(paused.client, LIST, {"org": organisation}, **{"If-None-Match": tag}).status_code == 200


def test_cursor_that_the_standby_does_not_know_yet_is_asked_of_the_primary(
    paused: ServiceProcess, organisation: str
) -> None:
    move(paused.client, organisation)
    cursor = get(paused.client, LIST, {"org": organisation}, **PRESENT).headers["x-changes-cursor"]
    asked = {"org": organisation, "after": cursor}
    assert get(paused.client, CHANGES, asked).json() == {"changes": [], "cursor": cursor}
    move(paused.client, organisation, day=30)
    assert len(get(paused.client, CHANGES, asked).json()["changes"]) == 1
    other = cursor[:-1] + ("0" if cursor[-1] != "0" else "1")
    for unknown in (other, "1", "999999999"):
        response = paused.client.get(CHANGES, params={"org": organisation, "after": unknown})
        assert_problem(response, 410, "CURSOR_GONE")


def test_changes_of_a_standby_continue_without_a_gap(paused: ServiceProcess, organisation: str) -> None:
    move(paused.client, organisation)
    first = get(paused.client, CHANGES, {"org": organisation}).json()
    assert len(first["changes"]) == 1
    asked = {"org": organisation, "after": first["cursor"]}
    assert get(paused.client, CHANGES, asked).json() == {"changes": [], "cursor": first["cursor"]}
    [change] = get(paused.client, CHANGES, asked, **PRESENT).json()["changes"]
    assert change["version"] == 2


def test_long_poll_sees_the_change_that_only_the_primary_has(paused: ServiceProcess, organisation: str) -> None:
    cursor = get(paused.client, CHANGES, {"org": organisation}).json()["cursor"]
    move(paused.client, organisation)
    answered = get(paused.client, CHANGES, {"org": organisation, "after": cursor, "wait": "30"})
    assert [row["version"] for row in answered.json()["changes"]] == [2]
    assert answered.elapsed.total_seconds() < 10


def test_long_list_is_streamed_from_one_server(cluster: Cluster, tolerant: ServiceProcess, organisation: str) -> None:
    write_many(tolerant.client, organisation, 1_100)
    with cluster.paused():
        assert_accepted(post(tolerant.client, organisation))
        count = metrics(tolerant.client)[STANDBY]
        assert len(get(tolerant.client, LIST, {"org": organisation}).json()) == 1_100
        assert metrics(tolerant.client)[STANDBY] == count + 1
        present = get(tolerant.client, LIST, {"org": organisation}, **PRESENT)
        assert len(present.json()) == 1_101
        later = get(tolerant.client, LIST, {"org": organisation}, **{"If-None-Match": '"9999999999-x"'})
        assert later.text == present.text


@pytest.mark.parametrize(("url", "parameters"), [(LIST, {}), (VERSIONS, {"id": "a-1"})])
def test_later_page_is_not_older_than_the_page_before(
    paused: ServiceProcess, organisation: str, url: str, parameters: dict[str, str]
) -> None:
    """Or an appointment could be neither on a page nor among the changes after the first page's cursor."""
    move(paused.client, organisation)
    assert_accepted(post(paused.client, organisation, id="a-2", start="2020-10-11", end="2020-10-12"))
    first = get(paused.client, url, {"org": organisation, "limit": "1"} | parameters, **PRESENT)
    second = paused.client.get(first.links["next"]["url"])
    assert len(second.json()) == 1


def test_list_as_of_a_recent_instant_is_final(paused: ServiceProcess, organisation: str) -> None:
    move(paused.client, organisation)
    [version] = get(paused.client, LIST, {"org": organisation}, **PRESENT).json()
    accepted = get(paused.client, VERSIONS, {"org": organisation, "id": "a-1"}, **PRESENT).json()[-1]["receivedAt"]
    for as_of in ("2099-01-01", accepted):
        assert get(paused.client, LIST, {"org": organisation, "asOf": as_of}).json() == [version]
    count = metrics(paused.client)[STANDBY]
    assert get(paused.client, LIST, {"org": organisation, "asOf": "2020-01-01"}).json() == []
    assert metrics(paused.client)[STANDBY] == count + 1


@pytest.mark.parametrize(("statement_ms_max", "expected"), [(10_000, True), (600_000, False)])
def test_instant_is_long_ago_once_all_its_writes_must_have_ended(statement_ms_max: int, expected: bool) -> None:
    scope = {"state": {"settings": Settings(statement_ms_max=statement_ms_max)}}
    assert may_lag(scope, None, datetime.now(UTC) - timedelta(minutes=5)) is expected
