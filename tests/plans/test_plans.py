"""The generic plan of each statement, for an organisation of 100,000 appointments among smaller ones."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from service.database.buckets import bucket_of, by_bucket
from service.database.connection import SESSION
from service.database.statements import (
    LIST_APPOINTMENTS,
    LIST_APPOINTMENTS_AS_OF,
    LIST_AVAILABILITY,
    LIST_CALENDAR,
    LIST_CHANGES,
    LIST_LAST_CHANGES,
    LIST_VERSIONS,
    UPSERT_APPOINTMENT,
    Statement,
)
from service.writing.batch import uuid7
from tests.cluster import not_on_citus
from tests.databases import new_database

pytestmark = not_on_citus

APPOINTMENTS = 100_000
FILL = f"""
insert into appointments
    (bucket, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version, cancelled)
select organisation_bucket(org_id), org_id, 'a-' || n,
    tstzrange(start, start + interval '20 minutes'), start, start, start, 1, cancelled
from (
    select 'large' as org_id, n, timestamptz '2000-01-01Z' + n * interval '30 minutes' as start,
        false as cancelled
    from generate_series(1, {APPOINTMENTS}) as n
    union all
    -- Thousands of cancelled appointments at one instant, which would show up in a scan that reads them.
    select 'large', {APPOINTMENTS} + n, timestamptz '2003-01-01Z', true from generate_series(1, 5000) as n
    union all
    select 'small-' || n % 100, n, timestamptz '2000-01-01Z' + n * interval '30 minutes', false
    from generate_series(1, 10000) as n
) as filled;
insert into appointment_versions
    (bucket, appointment_id, org_id, external_id, during, payload_created_at, payload_updated_at, received_at,
    version, cancelled)
select bucket, id, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version, cancelled
from appointments;
insert into appointment_versions
    (bucket, appointment_id, org_id, external_id, during, payload_created_at, payload_updated_at, received_at,
    version, cancelled)
select bucket, id, org_id, external_id, during, payload_created_at, payload_updated_at,
    received_at + n * interval '1 second', n, cancelled
from appointments cross join generate_series(2, 100) as n
where org_id = 'small-7'
"""
LISTING = (
    LIST_APPOINTMENTS,
    LIST_APPOINTMENTS_AS_OF,
    LIST_AVAILABILITY,
    LIST_CALENDAR,
    LIST_CHANGES,
    LIST_LAST_CHANGES,
    LIST_VERSIONS,
)
CURSOR = """
select change_cursor(sequence_number, received_at, appointment_id) from appointment_versions
where org_id = 'large' and sequence_number = %s
"""
NOW = "2999-01-01Z"
INSIDE, BETWEEN, BEFORE_ALL = "2003-01-01 00:10Z", "2003-01-01 00:25Z", "1999-01-01Z"


@pytest.fixture(scope="module")
def session(server_url: str, template: str) -> Iterator[psycopg.Connection[Any]]:
    with new_database(server_url, template) as url, psycopg.connect(url) as connection:
        connection.execute(FILL)
        connection.execute("analyze")
        for name, value in SESSION.items():
            connection.execute("select set_config(%s, %s, false)", (name, value))
        for statement in (*LISTING, UPSERT_APPOINTMENT):
            connection.execute(f"prepare {statement.name} as {statement.text}".encode())
        yield connection


def plan(session: psycopg.Connection[Any], statement: Statement, *arguments: str | None) -> list[dict[str, Any]]:
    """All nodes of the plan as executed; what the statement wrote is rolled back."""
    values = ", ".join("null" if argument is None else f"'{argument}'" for argument in arguments)
    with session.transaction(force_rollback=True):
        row = session.execute(
            f"explain (analyze, buffers, format json) execute {statement.name}({values})".encode()
        ).fetchone()
    assert row is not None
    [explained] = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return list(walk(explained["Plan"]))


def key(organisation: str) -> tuple[str, str]:
    return str(bucket_of(organisation)), organisation


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from walk(child)


def assert_reads_single_rows(found: list[dict[str, Any]], indexes: set[str], pages_max: int) -> None:
    """Only these indexes are scanned, for one row each; no table scan, no sort, few pages."""
    scanned = [node for node in found if "Relation Name" in node and node["Node Type"] != "ModifyTable"]
    assert {node.get("Index Name") for node in scanned} == indexes
    assert not {"Sort", "Seq Scan", "Bitmap Heap Scan"} & {node["Node Type"] for node in found}
    for node in scanned:
        assert node["Actual Rows"] * node["Actual Loops"] <= 1
        assert node.get("Rows Removed by Filter", 0) <= 1
    assert found[0]["Shared Hit Blocks"] + found[0]["Shared Read Blocks"] <= pages_max


def assert_reads_at_most(found: list[dict[str, Any]], rows_max: int, pages_max: int) -> None:
    """Only indexes are scanned, each for at most `rows_max` rows per loop, and at most `pages_max` pages in all."""
    scanned = [node for node in found if "Relation Name" in node]
    assert scanned
    assert all("Index Name" in node for node in scanned)
    for node in scanned:
        assert node["Actual Rows"] + node.get("Rows Removed by Filter", 0) <= rows_max
    assert found[0]["Shared Hit Blocks"] + found[0]["Shared Read Blocks"] <= pages_max


@pytest.mark.parametrize(("at", "rows"), [(INSIDE, 1), (BETWEEN, 0), (BEFORE_ALL, 0)])
def test_list_at_an_instant_reads_at_most_one_row(session: psycopg.Connection[Any], at: str, rows: int) -> None:
    found = plan(session, LIST_APPOINTMENTS, *key("large"), at, *[None] * 5, "false", None)
    ran = [node for node in found if node["Actual Loops"] > 0]
    assert_reads_single_rows(ran, {"appointments_start_idx", "appointment_versions_pkey"}, pages_max=20)
    [outer] = [node for node in found if node.get("Alias") == "active"]
    assert outer["Actual Rows"] == rows
    assert_cancelled_are_not_read(found)


def test_whole_list_is_read_in_index_order_without_a_sort(session: psycopg.Connection[Any]) -> None:
    found = plan(session, LIST_APPOINTMENTS, *key("small-7"), *[None] * 6, "false", None)
    [outer] = [node for node in found if node.get("Alias") == "active"]
    assert (outer["Node Type"], outer["Index Name"]) == ("Index Scan", "appointments_start_idx")
    assert outer["Actual Rows"] == 100
    assert outer.get("Rows Removed by Filter", 0) == 0
    assert "Sort" not in {node["Node Type"] for node in found}
    assert_cancelled_are_not_read(found)


def assert_cancelled_are_not_read(found: list[dict[str, Any]]) -> None:
    """Their branch is behind a one-time filter."""
    [filtered] = [node for node in found if "One-Time Filter" in node]
    assert filtered["One-Time Filter"] == "$9"
    [cancelled] = [node for node in found if node.get("Alias") == "gone"]
    assert cancelled["Actual Loops"] == 0


@pytest.mark.parametrize(
    ("statement", "more"),
    [(LIST_APPOINTMENTS, ["false"]), (LIST_APPOINTMENTS, ["true"]), (LIST_APPOINTMENTS_AS_OF, ["true", NOW])],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("external_id", ["a-50000", "a-102000", "none"])
def test_single_appointment_is_found_by_index(
    session: psycopg.Connection[Any], statement: Statement, more: list[str], external_id: str
) -> None:
    found = plan(session, statement, *key("large"), None, None, None, external_id, None, None, *more, None)
    assert_reads_at_most(found, rows_max=1, pages_max=36)


@pytest.mark.parametrize("include_cancelled", ["false", "true"])
@pytest.mark.parametrize("after", [("2002-01-01Z", "x"), ("2003-01-01Z", "a-103000"), (None, None)])
def test_page_reads_at_most_two_rows_more_than_it_returns(
    session: psycopg.Connection[Any], include_cancelled: str, after: tuple[str | None, str | None]
) -> None:
    found = plan(session, LIST_APPOINTMENTS, *key("large"), None, None, None, None, *after, include_cancelled, "10")
    assert found[0]["Actual Rows"] == 10
    assert_reads_at_most(found, rows_max=12, pages_max=50)  # an incremental sort reads one row ahead


def test_window_reads_only_the_rows_it_returns(session: psycopg.Connection[Any]) -> None:
    window = "2002-01-01 00:10Z", "2002-01-01 02:00Z"
    found = plan(session, LIST_APPOINTMENTS, *key("large"), None, *window, *[None] * 3, "false", None)
    assert found[0]["Actual Rows"] == 4
    assert_reads_at_most(found, rows_max=4, pages_max=20)


@pytest.mark.parametrize(("as_of", "versions"), [("2000-01-01 00:00Z", 0), ("2001-01-01Z", 1), (NOW, 1)])
def test_list_as_of_an_instant_reads_one_version_per_appointment(
    session: psycopg.Connection[Any], as_of: str, versions: int
) -> None:
    """However many versions there are before and after the instant."""
    found = plan(session, LIST_APPOINTMENTS_AS_OF, *key("small-7"), *[None] * 6, "false", as_of, None)
    [scan] = [node for node in found if node.get("Index Name") == "appointment_versions_received_key"]
    assert (scan["Actual Loops"], scan["Actual Rows"]) == (100, versions)
    assert scan.get("Rows Removed by Filter", 0) == 0
    assert found[0]["Shared Hit Blocks"] + found[0]["Shared Read Blocks"] <= 100 * 6 + 100


def test_versions_are_read_in_index_order_without_a_sort(session: psycopg.Connection[Any]) -> None:
    found = plan(session, LIST_VERSIONS, *key("small-7"), "a-7", "2000-01-01 03:30:50Z", "10")
    assert found[0]["Actual Rows"] == 10
    assert_reads_at_most(found, rows_max=10, pages_max=20)
    assert "Sort" not in {node["Node Type"] for node in found}


def test_changes_are_read_in_index_order_without_a_sort(session: psycopg.Connection[Any]) -> None:
    for after in ("0", "50000", "90000"):
        [cursor] = session.execute(CURSOR, [after]).fetchone() or ["0"]
        found = plan(session, LIST_CHANGES, *key("large"), after, cursor, "10")
        assert found[0]["Actual Rows"] == 10
        assert_reads_at_most(found, rows_max=10, pages_max=20)
        assert "Sort" not in {node["Node Type"] for node in found}


def test_last_changes_take_one_index_lookup_per_organisation(session: psycopg.Connection[Any]) -> None:
    names = [f"small-{number}" for number in range(100)]
    [(bucket, asked), *_] = by_bucket([*names, "unknown"])
    found = plan(session, LIST_LAST_CHANGES, str(bucket), f"{{{','.join(asked)}}}")
    assert found[0]["Actual Rows"] == len(asked) > 2
    assert_reads_at_most(found, rows_max=1, pages_max=len(asked) * 5)


def test_availability_reads_only_the_rows_of_its_window(session: psycopg.Connection[Any]) -> None:
    window = "2002-01-01 00:10Z", "2002-01-01 02:00Z"
    found = plan(session, LIST_AVAILABILITY, *key("large"), *window, "0", None)
    assert found[0]["Actual Rows"] == 3 + 4 + 4
    assert_reads_at_most([node for node in found if node["Node Type"] != "CTE Scan"], rows_max=4, pages_max=20)


def test_calendar_is_read_in_index_order_without_a_sort(session: psycopg.Connection[Any]) -> None:
    found = plan(session, LIST_CALENDAR, *key("large"), "10")
    assert_reads_at_most(found, rows_max=10, pages_max=30)
    assert "Sort" not in {node["Node Type"] for node in found}


EXPLAIN_NESTED = """
load 'auto_explain';
set auto_explain.log_nested_statements = on;
set auto_explain.log_min_duration = 0;
set auto_explain.log_format = json;
set client_min_messages = log"""


def test_function_looks_rows_up_by_index_even_in_tables_without_statistics(database_url: str) -> None:
    """As after `make distribute` of an empty database, when many appointments come before the first `analyze`."""
    logged: list[str] = []
    values = ("large", "new", INSIDE, BETWEEN, "2020-01-01Z", "2020-01-01Z", "false", uuid7())
    arrays = ", ".join(f"'{{\"{value}\"}}'" for value in values)
    with psycopg.connect(database_url) as session:
        session.execute(EXPLAIN_NESTED)
        session.add_notice_handler(lambda notice: logged.append(notice.message_primary or ""))
        session.execute(f"select put_appointments({bucket_of('large')}, {arrays}, false)".encode())
    plans = [json.loads(text[text.index("{") :]) for text in logged if "plan:" in text]
    judging = [explained["Plan"] for explained in plans if "last_change" in explained["Query Text"]]
    scanned = [node for plan_ in judging for node in walk(plan_) if "Relation Name" in node]
    assert {node["Alias"]: node.get("Index Name") for node in scanned} == {
        "a": "appointments_external_id_key",
        "n": "appointments_start_idx",
        "v": "appointment_versions_pkey",
    }


@pytest.mark.parametrize(
    ("external_id", "start", "end", "indexes"),
    [
        ("new", "1999-06-01Z", "1999-06-02Z", {"appointments_start_idx"}),
        ("new", "2003-01-01 00:20Z", "2003-01-01 00:30Z", {"appointments_start_idx"}),
        ("new", INSIDE, BETWEEN, {"appointments_start_idx", "appointments_external_id_key"}),
        ("a-52608", INSIDE, BETWEEN, {"appointments_start_idx"}),
    ],
)
def test_upsert_reads_one_neighbour_and_at_most_one_row_of_its_own(
    session: psycopg.Connection[Any], external_id: str, start: str, end: str, indexes: set[str]
) -> None:
    values = ("large", external_id, start, end, "2020-01-01Z", "2020-01-01Z", "false", uuid7(), bucket_of("large"))
    found = plan(session, UPSERT_APPOINTMENT, *(f'{{"{value}"}}' for value in values))
    ran = [node for node in found if node["Actual Loops"] > 0]
    assert_reads_single_rows(ran, indexes, pages_max=100)
