"""GET /api/appointments/changes: every accepted change, in the order of commits, at once or as it comes."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.databases import query
from tests.http.requests import assert_accepted, assert_problem, payload, post
from tests.http.test_history import UPDATES
from tests.http.test_lists import LINES
from tests.processes import ServiceProcess, running_service, wait_until

URL = "/api/appointments/changes"
ORGANISATIONS = ["o-1", "o-2"]


def changes(client: httpx.Client, organisation: str, **parameters: str) -> tuple[list[dict[str, object]], str]:
    response = client.get(URL, params={"org": organisation} | parameters)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["changes", "cursor"]
    assert response.headers["x-changes-cursor"] == body["cursor"]
    return body["changes"], body["cursor"]


def test_accepted_changes_come_in_the_order_of_their_commits(client: httpx.Client, organisation: str) -> None:
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


def test_a_cursor_leads_on_from_where_the_answer_ended(client: httpx.Client, organisation: str) -> None:
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


def test_without_changes_the_cursor_stays(client: httpx.Client, organisation: str) -> None:
    assert changes(client, organisation) == ([], "0")
    assert changes(client, organisation, after="7") == ([], "7")
    assert changes(client, organisation, after=str(2**63 - 1)) == ([], str(2**63 - 1))


def test_a_list_and_the_changes_after_it_fit_together(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    cursor = client.get(f"/api/appointments?org={organisation}").headers["x-changes-cursor"]
    assert changes(client, organisation, after=cursor) == ([], cursor)
    post(client, organisation, updatedAt="2020-09-30")
    [change], _ = changes(client, organisation, after=cursor)
    assert change["version"] == 2


def test_a_change_a_line_with_the_cursor_in_the_header(client: httpx.Client, organisation: str) -> None:
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
        ({"limit": "0"}, ["limit"]),
        ({"limit": "1001"}, ["limit"]),
        ({"wait": "31"}, ["wait"]),
        ({"wait": "-1"}, ["wait"]),
        ({"wait": "0.5"}, ["wait"]),
        ({"id": "a"}, ["id"]),
    ],
)
def test_a_faulty_parameter_is_refused(client: httpx.Client, parameters: dict[str, str], fields: list[str]) -> None:
    assert_problem(client.get(URL, params=parameters), 400, "INVALID_REQUEST", fields)


def test_who_waits_is_answered_when_something_comes(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    _, cursor = changes(client, organisation)
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(changes, client, organisation, after=cursor, wait="30")
        time.sleep(0.5)
        post(client, organisation + "-other")
        post(client, organisation)
        time.sleep(0.5)
        assert not waiting.done()
        assert_accepted(post(client, organisation, id="a-2", start="2020-10-11", end="2020-10-12"))
        rows, _ = waiting.result(10)
    assert [row["externalId"] for row in rows] == ["a-2"]


def test_who_waits_in_vain_gets_nothing_when_the_time_is_up(client: httpx.Client, organisation: str) -> None:
    started = time.monotonic()
    assert changes(client, organisation, after="7", wait="1") == ([], "7")
    assert time.monotonic() - started >= 1
    post(client, organisation)
    assert len(changes(client, organisation, wait="30")[0]) == 1


@pytest.fixture
def few(database_url: str, tmp_path: Path) -> Iterator[ServiceProcess]:
    with running_service(tmp_path, DATABASE_URL=database_url, CHANGES_WAITING_MAX="2") as process:
        yield process


WAITING = f"{URL}?wait=30"


def test_beyond_so_many_who_wait_there_is_no_room_until_one_leaves(few: ServiceProcess) -> None:
    with ThreadPoolExecutor(2) as executor:
        waiting = [executor.submit(httpx.get, few.url + WAITING, timeout=2) for _ in range(2)]
        time.sleep(1)
        refused = few.client.get(URL + "?wait=1")
        assert_problem(refused, 503, "OVERLOADED")
        assert refused.headers["retry-after"]
        assert few.client.get(URL).status_code == 200
        for each in waiting:
            with pytest.raises(httpx.ReadTimeout):
                each.result()
    wait_until(lambda: few.client.get(URL + "?wait=1").status_code == 200)


def test_a_shutdown_keeps_nobody_waiting(few: ServiceProcess) -> None:
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(httpx.get(few.url + WAITING, timeout=30)))
    waiting.start()
    wait_until(lambda: "http_request" in few.client.get("/metrics").text)
    time.sleep(0.5)
    few.process.terminate()
    waiting.join(5)
    [answer] = answers
    assert answer.json() == {"changes": [], "cursor": "0"}
    assert few.process.wait(10) == 0


def write(url: str, number: int) -> None:
    """Moves an appointment of each organisation again and again."""
    with httpx.Client(base_url=url) as client:
        for turn in range(60):
            day = f"{2000 + turn}-01-0{number + 1}"
            body = payload(ORGANISATIONS[turn % 2], id=str(number), start=day, end=day + " 01:00")
            body |= {"createdAt": day, "updatedAt": day}
            assert client.post("/api/appointments", json=body).status_code == 200


def follow_changes(url: str, organisation: str, ended: threading.Event) -> list[tuple[object, object]]:
    """What a client sees that asks on until the writers have ended and nothing more comes."""
    rows, cursor = [], ""
    with httpx.Client(base_url=url) as client:
        while True:
            last = ended.is_set()
            page, cursor = changes(client, organisation, after=cursor, limit="7")
            rows += [(row["externalId"], row["version"]) for row in page]
            if last and not page:
                return rows


def test_nothing_is_skipped_beside_writers_of_several_processes(database_url: str, tmp_path: Path) -> None:
    """Followers end with exactly the rows of the table, in their order."""
    ended = threading.Event()
    with (
        running_service(tmp_path, DATABASE_URL=database_url, WORKERS="2") as process,
        ThreadPoolExecutor(16) as executor,
    ):
        followers = {
            executor.submit(follow_changes, process.url, organisation, ended): organisation
            for organisation in ORGANISATIONS * 2
        }
        writers = [executor.submit(write, process.url, number) for number in range(8)]
        for writer in writers:
            writer.result()
        ended.set()
        for follower, organisation in followers.items():
            rows = query(
                database_url,
                "select external_id, version from appointment_versions where org_id = %s order by sequence_number",
                organisation,
            )
            assert follower.result() == rows
            assert len(rows) == 8 * 30
