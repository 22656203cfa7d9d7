"""History: the versions of an appointment, and lists as of an instant."""

from typing import Any

import httpx
import pytest

from tests.databases import query
from tests.http.requests import assert_accepted, assert_problem, listed, post
from tests.http.test_lists import LINES, encode_cursor, follow_links
from tests.processes import ServiceProcess

UPDATES: list[dict[str, Any]] = [
    {},
    {"start": "2020-10-10 10:15", "updatedAt": "2020-09-29"},
    {"start": "2020-10-10 10:15", "updatedAt": "2020-09-30", "cancelled": True},
    {"start": "2020-10-10 09:00", "updatedAt": "2020-10-01"},
]
STARTS = ["10:00", "10:15", "10:15", "09:00"]
LIST_KEYS = {"id", "orgId", "externalId", "start", "end", "payloadCreatedAt", "payloadUpdatedAt", "version"}


@pytest.fixture
def four_versions(client: httpx.Client, organisation: str) -> list[dict[str, Any]]:
    """The version rows of an appointment that was moved, cancelled and reactivated."""
    for update in UPDATES:
        assert_accepted(post(client, organisation, **update))
        assert_accepted(post(client, organisation, **update), "ignored-stale")
    return versions(client, organisation)


def versions(client: httpx.Client, organisation: str, **parameters: str) -> list[dict[str, Any]]:
    response = client.get("/api/appointments/versions", params={"org": organisation, "id": "a-1"} | parameters)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    rows: list[dict[str, Any]] = response.json()
    return rows


def test_every_accepted_change_is_a_version_listed_oldest_first(
    client: httpx.Client, organisation: str, four_versions: list[dict[str, Any]]
) -> None:
    assert [row["version"] for row in four_versions] == [1, 2, 3, 4]
    assert [row["start"] for row in four_versions] == [f"2020-10-10T{start}:00.000Z" for start in STARTS]
    assert [row["cancelled"] for row in four_versions] == [False, False, True, False]
    received = [row["receivedAt"] for row in four_versions]
    assert received == sorted(set(received))
    assert all(row.keys() == LIST_KEYS | {"cancelled", "receivedAt"} for row in four_versions)
    assert len({row["id"] for row in four_versions}) == 1
    [current] = listed(client, organisation)
    assert current == {key: four_versions[-1][key] for key in current}


@pytest.mark.usefixtures("four_versions")
def test_versions_can_be_paged_and_sent_as_ndjson(client: httpx.Client, organisation: str) -> None:
    url = f"/api/appointments/versions?org={organisation}&id=a-1"
    whole = client.get(url)
    pages = follow_links(client, url + "&limit=3")
    assert [len(page.json()) for page in pages] == [3, 1]
    assert [row for page in pages for row in page.json()] == whole.json()
    lines = client.get(url, headers=LINES)
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert "[" + ",".join(lines.text.splitlines()) + "]" == whole.text


def test_an_unknown_appointment_has_no_versions(client: httpx.Client, organisation: str) -> None:
    assert versions(client, organisation) == []
    post(client, organisation)
    assert versions(client, organisation, id="A-1") == []
    assert versions(client, organisation + "-other") == []


@pytest.mark.parametrize(
    ("parameters", "fields"),
    [
        ({}, ["id"]),
        ({"id": ""}, ["id"]),
        ({"id": " "}, ["id"]),
        ({"id": "a", "cursor": "x"}, ["cursor"]),
        ({"id": "a", "cursor": encode_cursor(b'{"receivedAt":"2020-10-10T10:00:00.000Z"}')}, ["cursor"]),
        (
            {
                "id": "a",
                "limit": "1",
                "cursor": encode_cursor(b'{"start":"2020-10-10T10:00:00.000Z","externalId":"a"}'),
            },
            ["cursor"],
        ),
        ({"id": "a", "at": "2020-10-10"}, ["at"]),
        ({"limit": "0"}, ["limit", "id"]),
    ],
)
def test_an_invalid_query_for_versions_is_rejected(
    client: httpx.Client, parameters: dict[str, str], fields: list[str]
) -> None:
    response = client.get("/api/appointments/versions", params=parameters)
    assert_problem(response, 400, "INVALID_REQUEST", fields)


def test_a_list_as_of_an_instant_shows_the_state_recorded_then(
    client: httpx.Client, organisation: str, four_versions: list[dict[str, Any]]
) -> None:
    for row in four_versions:
        for include in ("true", "false"):
            found = listed(client, organisation, asOf=row["receivedAt"], includeCancelled=include)
            shown = LIST_KEYS | ({"cancelled"} if include == "true" else set())
            hidden = row["cancelled"] and include == "false"
            assert found == ([] if hidden else [{key: row[key] for key in row if key in shown}])
    assert listed(client, organisation, asOf="2020-01-01", includeCancelled="true") == []
    assert listed(client, organisation, asOf="0001-01-01") == []
    assert listed(client, organisation, asOf="9999-12-31") == listed(client, organisation)


def test_as_of_combines_with_the_other_filters(
    client: httpx.Client, organisation: str, four_versions: list[dict[str, Any]]
) -> None:
    post(client, organisation, id="a-2", start="2020-10-10 11:00", end="2020-10-10 12:00")
    second = four_versions[1]["receivedAt"]

    def starts(**parameters: str) -> list[str]:
        return [row["start"][11:16] for row in listed(client, organisation, asOf=second, **parameters)]

    assert starts() == starts(at="2020-10-10 10:15") == starts(id="a-1") == ["10:15"]
    assert starts(at="2020-10-10 10:00") == starts(to="2020-10-10 10:15") == starts(id="a-2") == []
    assert starts(**{"from": "2020-10-10 10:29", "to": "2020-10-10 10:30"}) == ["10:15"]


def test_as_of_pages_follow_the_order_at_that_instant(client: httpx.Client, organisation: str) -> None:
    for place, name in enumerate("cab"):
        post(client, organisation, id=name, start=f"2020-10-1{place}", end=f"2020-10-1{place} 01:00")
    last = max(row["receivedAt"] for name in "abc" for row in versions(client, organisation, id=name))
    for name, day in (("c", 3), ("b", 1), ("a", 2)):
        changes = {"start": f"2020-11-0{day}", "end": f"2020-11-0{day} 01:00", "updatedAt": "2020-09-29"}
        assert_accepted(post(client, organisation, id=name, **changes))
    url = f"/api/appointments?org={organisation}"
    pages = follow_links(client, f"{url}&asOf={last}&limit=2")
    assert [[row["externalId"] for row in page.json()] for page in pages] == [["c", "a"], ["b"]]
    assert [row["externalId"] for row in client.get(url).json()] == ["b", "a", "c"]


def test_received_at_increases_even_if_the_clock_goes_back(
    service: ServiceProcess, client: httpx.Client, organisation: str
) -> None:
    post(client, organisation)
    for table in ("appointments", "appointment_versions"):
        query(service.database_url, f"update {table} set received_at = '2999-01-01Z' where org_id = %s", organisation)
    post(client, organisation, updatedAt="2020-09-29")
    received = [row["receivedAt"] for row in versions(client, organisation)]
    assert received == ["2999-01-01T00:00:00.000Z", "2999-01-01T00:00:00.000001Z"]
    assert [row["version"] for row in listed(client, organisation, asOf="2999-01-01")] == [1]
    assert [row["version"] for row in listed(client, organisation, asOf="2999-01-01T00:00:00.000001")] == [2]
