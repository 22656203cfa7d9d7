"""GET /api/appointments/changes: every accepted change in commit order, and long polling for new ones."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from tests.databases import query
from tests.http.requests import assert_accepted, assert_problem, metrics, payload, post
from tests.http.test_history import UPDATES
from tests.http.test_lists import LINES
from tests.processes import ServiceProcess, running_service, wait_until

URL = "/api/appointments/changes"
ORGANISATIONS = ["o-1", "o-2"]
FIRST_READS = "database_statement_duration_seconds_count list_changes"


def changes(client: httpx.Client, organisation: str, **parameters: str) -> tuple[list[dict[str, object]], str]:
    response = client.get(URL, params={"org": organisation} | parameters)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["changes", "cursor"]
    assert response.headers["x-changes-cursor"] == body["cursor"]
    return body["changes"], body["cursor"]


def number_of(cursor: str) -> int:
    return int(cursor.partition("-")[0])


def test_accepted_changes_are_listed_in_commit_order(client: httpx.Client, organisation: str) -> None:
    for update in UPDATES:
        assert_accepted(post(client, organisation, **update))
    assert_accepted(post(client, organisation, **UPDATES[0]), "ignored-stale")
    assert_accepted(post(client, organisation, id="a-2", start="2020-10-11", end="2020-10-12"))
    assert post(client, organisation, id="a-3", start="2020-10-11", end="2020-10-12").status_code == 409
    post(client, organisation + "-other")
    found, _ = changes(client, organisation)
    assert [(row["externalId"], row["version"]) for row in found] == [
        *(("a-1", version) for version in range(1, len(UPDATES) + 1)),
        ("a-2", 1),
    ]
    url = f"/api/appointments/versions?org={organisation}&id=a-1"
    assert found[:-1] == client.get(url).json()


def test_a_cursor_continues_after_the_last_change_returned(client: httpx.Client, organisation: str) -> None:
    for update in UPDATES:
        post(client, organisation, **update)
    whole, last = changes(client, organisation)
    for limit in ("1", "2", "3"):
        found, cursor = [], ""
        while True:
            page, after = changes(client, organisation, limit=limit, after=cursor)
            assert len(page) <= int(limit)
            if not page:
                break
            found += page
            cursor = after
        assert (found, cursor, after) == (whole, last, last)


def test_the_cursor_is_unchanged_if_there_are_no_changes(client: httpx.Client, organisation: str) -> None:
    assert changes(client, organisation) == ([], "0")
    post(client, organisation)
    _, cursor = changes(client, organisation)
    assert changes(client, organisation, after=cursor) == ([], cursor)


def test_the_cursor_of_a_list_leads_to_the_changes_after_it(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    cursor = client.get(f"/api/appointments?org={organisation}").headers["x-changes-cursor"]
    assert changes(client, organisation, after=cursor) == ([], cursor)
    post(client, organisation, updatedAt="2020-09-30")
    [change], _ = changes(client, organisation, after=cursor)
    assert change["version"] == 2


def test_ndjson_changes_carry_the_cursor_in_a_header(client: httpx.Client, organisation: str) -> None:
    for update in UPDATES:
        post(client, organisation, **update)
    response = client.get(URL, params={"org": organisation}, headers=LINES)
    assert response.headers["content-type"] == "application/x-ndjson"
    rows, cursor = changes(client, organisation)
    assert [httpx.Response(200, content=line).json() for line in response.text.splitlines()] == rows
    assert response.headers["x-changes-cursor"] == cursor
    nothing = client.get(URL, params={"org": organisation, "after": cursor}, headers=LINES)
    assert (nothing.content, nothing.headers["x-changes-cursor"]) == (b"", cursor)


@pytest.mark.parametrize(
    ("parameters", "fields"),
    [
        ({"after": "x"}, ["after"]),
        ({"after": "-1"}, ["after"]),
        ({"after": "+1"}, ["after"]),
        ({"after": "1.0"}, ["after"]),
        ({"after": "\u0661"}, ["after"]),
        ({"after": str(2**63)}, ["after"]),
        ({"after": "9" * 10_000}, ["after"]),
        ({"after": "1-"}, ["after"]),
        ({"after": "1-x"}, ["after"]),
        ({"after": "1-" + "a" * 23}, ["after"]),
        ({"after": "1-" + "a" * 25}, ["after"]),
        ({"after": "-" + "a" * 24}, ["after"]),
        ({"limit": "0"}, ["limit"]),
        ({"limit": "1001"}, ["limit"]),
        ({"wait": "31"}, ["wait"]),
        ({"wait": "-1"}, ["wait"]),
        ({"wait": "0.5"}, ["wait"]),
        ({"id": "a"}, ["id"]),
    ],
)
def test_an_invalid_parameter_is_rejected(client: httpx.Client, parameters: dict[str, str], fields: list[str]) -> None:
    assert_problem(client.get(URL, params=parameters), 400, "INVALID_REQUEST", fields)


def looks(client: httpx.Client) -> float:
    """How often the change poller has read the last changes. It does so only on behalf of waiting long polls."""
    return metrics(client).get("database_statement_duration_seconds_count list_last_changes", 0)


def wait_until_polled(client: httpx.Client) -> None:
    """Until the change poller has looked twice. The first look may have begun earlier, and may still be for a long poll
    that has just ended; the second began after this call, for a long poll that is waiting."""
    before = looks(client)
    wait_until(lambda: looks(client) >= before + 2)


def test_long_poll_returns_as_soon_as_a_change_is_committed(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    _, cursor = changes(client, organisation)
    with ThreadPoolExecutor(1) as executor:
        long_poll = executor.submit(changes, client, organisation, after=cursor, wait="30")
        wait_until_polled(client)
        assert_accepted(post(client, organisation, updatedAt="2020-09-30"))
        [change], new_cursor = long_poll.result(10)
    assert (change["externalId"], change["version"]) == ("a-1", 2)
    assert number_of(new_cursor) == number_of(cursor) + 1  # a single change, the least that must end the wait


def test_long_poll_returns_only_for_changes_of_its_organisation(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    _, cursor = changes(client, organisation)
    with ThreadPoolExecutor(1) as executor:
        long_poll = executor.submit(changes, client, organisation, after=cursor, wait="30")
        wait_until_polled(client)
        assert_accepted(post(client, organisation + "-other"))
        assert_accepted(post(client, organisation), "ignored-stale")
        wait_until_polled(client)
        assert not long_poll.done()
        assert_accepted(post(client, organisation, id="a-2", start="2020-10-11", end="2020-10-12"))
        rows, _ = long_poll.result(10)
    assert [row["externalId"] for row in rows] == ["a-2"]  # a premature response would be empty


def test_long_poll_without_changes_returns_empty_after_its_wait(client: httpx.Client, organisation: str) -> None:
    """Takes a second, the shortest wait there is."""
    post(client, organisation)
    _, cursor = changes(client, organisation)
    started = time.monotonic()
    assert changes(client, organisation, after=cursor, wait="1") == ([], cursor)
    assert 1 <= time.monotonic() - started < 10


@pytest.fixture
def process(database_url: str, tmp_path: Path) -> Iterator[ServiceProcess]:
    with running_service(tmp_path, DATABASE_URL=database_url, CHANGES_WAITING_MAX="2") as started:
        yield started


def test_long_poll_returns_existing_changes_without_waiting(process: ServiceProcess) -> None:
    post(process.client, "o")
    [change], _ = changes(process.client, "o", wait="30")
    assert change["version"] == 1
    assert looks(process.client) == 0


def test_long_polls_beyond_the_limit_are_refused_until_one_disconnects(process: ServiceProcess) -> None:
    with process.connect() as first, process.connect() as second:
        for connection in (first, second):
            connection.sendall(f"GET {URL}?org=o&wait=30 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_until(lambda: metrics(process.client).get(FIRST_READS) == 2)  # each reads once before it waits
        wait_until_polled(process.client)
        assert_problem(process.client.get(URL + "?wait=1"), 503, "OVERLOADED")
        assert changes(process.client, "o") == ([], "0")
        first.close()  # frees its place long before its 30 seconds are up
        wait_until(lambda: process.client.get(URL + "?wait=1").status_code == 200, seconds=10)
        assert_accepted(post(process.client, "o"))
        response = HTTPResponse(second)
        response.begin()
        assert (response.status, len(json.load(response)["changes"])) == (200, 1)


def test_shutdown_ends_waiting_long_polls(process: ServiceProcess) -> None:
    with ThreadPoolExecutor(1) as executor:
        long_poll = executor.submit(changes, process.client, "o", wait="30")
        wait_until_polled(process.client)
        process.process.terminate()
        assert long_poll.result(5) == ([], "0")
    assert process.process.wait(10) == 0


def test_long_poll_is_a_503_if_the_database_becomes_unavailable(process: ServiceProcess) -> None:
    [[name]] = query(process.database_url, "select current_database()")
    server = process.database_url.replace(f"/{name}", "/postgres")
    with ThreadPoolExecutor(1) as executor:
        long_poll = executor.submit(process.client.get, URL + "?wait=30")
        wait_until_polled(process.client)
        query(server, f"alter database {name} allow_connections false")
        query(server, f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
        assert_problem(long_poll.result(10), 503, "DATABASE_UNAVAILABLE")
    query(server, f"alter database {name} allow_connections true")


def move_repeatedly(url: str, number: int) -> None:
    """Move an appointment of each organisation repeatedly."""
    with httpx.Client(base_url=url) as client:
        for turn in range(60):
            day = f"{2000 + turn}-01-0{number + 1}"
            body = payload(ORGANISATIONS[turn % 2], id=str(number), start=day, end=day + " 01:00")
            body |= {"createdAt": day, "updatedAt": day}
            assert client.post("/api/appointments", json=body).status_code == 200


def follow_changes(url: str, organisation: str, writers_done: threading.Event) -> list[tuple[object, object]]:
    """All changes that a client reads by following the cursor until the writers are done and a page is empty."""
    rows, cursor = [], ""
    with httpx.Client(base_url=url) as client:
        while True:
            last_round = writers_done.is_set()
            page, cursor = changes(client, organisation, after=cursor, limit="7")
            rows += [(row["externalId"], row["version"]) for row in page]
            if last_round and not page:
                return rows


def test_no_change_is_skipped_while_several_processes_write(database_url: str, tmp_path: Path) -> None:
    """Each follower ends with exactly the rows of the table, in their order."""
    writers_done = threading.Event()
    with (
        running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2") as process,
        ThreadPoolExecutor(16) as executor,
    ):
        followers = {
            executor.submit(follow_changes, process.url, organisation, writers_done): organisation
            for organisation in ORGANISATIONS * 2
        }
        writers = [executor.submit(move_repeatedly, process.url, number) for number in range(8)]
        for writer in writers:
            writer.result()
        writers_done.set()
        for follower, organisation in followers.items():
            rows = query(
                database_url,
                "select external_id, version from appointment_versions where org_id = %s order by sequence_number",
                organisation,
            )
            assert follower.result() == rows
            assert len(rows) == 8 * 30
