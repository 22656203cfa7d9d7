"""Cursors and tags of a history that was replaced: by a restored backup, by a fail-over that lost writes, or by a new
database."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from service.writing.batch import uuid7
from tests.cluster import not_on_citus
from tests.databases import new_database, query
from tests.http.requests import assert_accepted, assert_problem, post
from tests.http.test_changes import URL, changes, wait_until_polled
from tests.processes import ServiceProcess, running_service

pytestmark = not_on_citus

LIST = "/api/appointments?org=o"
TAGGED = [LIST, LIST + "&limit=1", LIST + "&asOf=2999-01-01", "/api/appointments.ics?org=o"]
BACKED_UP = 2  # changes before the backup
LOST = 3  # changes after it


@contextmanager
def served(database_url: str, directory: Path) -> Iterator[httpx.Client]:
    with running_service(directory, DATABASE_URL=database_url) as service:
        yield service.client


def change(client: httpx.Client, times: int) -> list[str]:
    """The cursor after each of so many changes of one appointment, each with the same payload in every history."""
    _, cursor = changes(client, "o")
    held = int(client.get(LIST).json()[0]["version"]) if cursor != "0" else 0
    cursors = []
    for number in range(held + 1, held + times + 1):
        assert_accepted(post(client, "o", updatedAt=f"2020-10-{number:02}"))
        cursors.append(client.get(LIST).headers["x-changes-cursor"])
    return cursors


def tags(client: httpx.Client) -> dict[str, str]:
    return {url: client.get(url).headers["etag"] for url in TAGGED}


def matching(client: httpx.Client, known: dict[str, str]) -> list[str]:
    """The URLs whose tags lead to a 304."""
    statuses = {url: client.get(url, headers={"If-None-Match": tag}).status_code for url, tag in known.items()}
    assert set(statuses.values()) <= {200, 304}
    return [url for url, status in statuses.items() if status == 304]


@pytest.mark.parametrize("written_after", [0, 1, LOST, LOST + 2])
@pytest.mark.parametrize("kept", [0, BACKED_UP])
def test_cursors_and_tags_of_a_lost_history_are_recognised(
    server_url: str, template: str, tmp_path: Path, kept: int, written_after: int
) -> None:
    """`kept`: changes that are in both histories; 0: a new database in place of the old one."""
    with new_database(server_url, template) as old:
        with served(old, tmp_path / "before"):
            pass  # a role under test gets its privileges
        with served(old, tmp_path / "backup") as client:
            backed_up = change(client, kept)
            tags_of_backup = tags(client)
        with new_database(server_url, urlsplit(old).path.removeprefix("/")) as restored:
            with served(old, tmp_path / "lost") as client:
                lost = change(client, LOST)
                tags_of_lost = tags(client)
                assert matching(client, tags_of_lost) == TAGGED
            with served(restored, tmp_path / "restored") as client:
                written = change(client, written_after)
                for cursor in lost:
                    gone = assert_problem(client.get(URL, params={"org": "o", "after": cursor}), 410, "CURSOR_GONE")
                    assert "read the list anew" in gone["detail"]
                    waited = client.get(URL, params={"org": "o", "after": cursor, "wait": "30"}, timeout=10)
                    assert_problem(waited, 410, "CURSOR_GONE")
                assert matching(client, tags_of_lost) == []
                assert matching(client, tags_of_backup) == (TAGGED if not written_after else [])
                for number, cursor in enumerate([*backed_up, *written], start=1):
                    rows, last = changes(client, "o", after=cursor)
                    assert [row["version"] for row in rows] == list(range(number + 1, kept + written_after + 1))
                    assert last == [*backed_up, *written][-1]


@pytest.mark.parametrize("cursor", ["1", "999999", str(2**63 - 1), "999999-" + "0" * 24])
def test_a_number_that_names_no_change_is_gone(client: httpx.Client, organisation: str, cursor: str) -> None:
    post(client, organisation)
    response = client.get(URL, params={"org": organisation, "after": cursor})
    assert_problem(response, 410, "CURSOR_GONE")


def test_the_number_of_the_last_change_alone_is_gone(client: httpx.Client, organisation: str) -> None:
    """So were the cursors of earlier releases, which several histories can share."""
    post(client, organisation)
    post(client, organisation, updatedAt="2021-01-01")  # or the number before could be 0, the beginning
    _, cursor = changes(client, organisation)
    number, _, rest = cursor.partition("-")
    other = rest.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    for forged in (number, f"{number}-{other}", f"{int(number) + 1}-{rest}", f"{int(number) - 1}-{rest}"):
        assert_problem(client.get(URL, params={"org": organisation, "after": forged}), 410, "CURSOR_GONE")


def test_a_cursor_of_another_organisation_is_gone(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    post(client, organisation + "-other")
    _, cursor = changes(client, organisation + "-other")
    assert_problem(client.get(URL, params={"org": organisation, "after": cursor}), 410, "CURSOR_GONE")


def test_the_beginning_is_in_every_history(client: httpx.Client, organisation: str) -> None:
    for cursor in ("", "0", "00"):
        assert changes(client, organisation, after=cursor) == ([], "0")


def test_changes_of_one_microsecond_in_two_histories_differ(database_url: str) -> None:
    """The ids begin with the time, so only their last bytes tell such changes apart."""
    cursors = "select change_cursor(1, '2026-11-26', %s::uuid), change_cursor(1, '2026-11-26', %s::uuid)"
    [(cursor, other)] = query(database_url, cursors, uuid7(), uuid7())
    assert cursor != other


def test_a_long_poll_ends_when_its_change_is_lost(service: ServiceProcess, organisation: str) -> None:
    client = service.client
    post(client, organisation)
    _, cursor = changes(client, organisation)
    with ThreadPoolExecutor(1) as executor:
        parameters = {"org": organisation, "after": cursor, "wait": "30"}
        long_poll = executor.submit(client.get, URL, params=parameters)
        wait_until_polled(client)
        query(service.database_url, "delete from appointment_versions where org_id = %s", organisation)
        assert_problem(long_poll.result(10), 410, "CURSOR_GONE")
