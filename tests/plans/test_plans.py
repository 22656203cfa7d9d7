"""Each statement's one plan, in an organisation of 100,000 appointments among others."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from service.database import SESSION
from service.statements import LIST_APPOINTMENTS, UPSERT_APPOINTMENT, Statement
from service.uuid7 import uuid7
from tests.databases import new_database

APPOINTMENTS = 100_000
FILL = f"""
insert into appointments
    (org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version, cancelled)
select org_id, 'a-' || n, tstzrange(start, start + interval '20 minutes'), start, start, start, 1, cancelled
from (
    select 'large' as org_id, n, timestamptz '2000-01-01Z' + n * interval '30 minutes' as start,
        false as cancelled
    from generate_series(1, {APPOINTMENTS}) as n
    union all
    -- Thousands of cancelled ones in one place, where a scan that looks at them would show.
    select 'large', {APPOINTMENTS} + n, timestamptz '2003-01-01Z', true from generate_series(1, 5000) as n
    union all
    select 'small-' || n % 100, n, timestamptz '2000-01-01Z' + n * interval '30 minutes', false
    from generate_series(1, 10000) as n
) as filled
"""
INSIDE, BETWEEN, BEFORE_ALL = "2003-01-01 00:10Z", "2003-01-01 00:25Z", "1999-01-01Z"


@pytest.fixture(scope="module")
def session(server_url: str, template: str) -> Iterator[psycopg.Connection[Any]]:
    with new_database(server_url, template) as url, psycopg.connect(url) as connection:
        connection.execute(FILL)
        connection.execute("analyze")
        for name, value in SESSION.items():
            connection.execute("select set_config(%s, %s, false)", (name, value))
        for statement in (LIST_APPOINTMENTS, UPSERT_APPOINTMENT):
            connection.execute(f"prepare {statement.name} as {statement.text}".encode())
        yield connection


def plan(session: psycopg.Connection[Any], statement: Statement, *arguments: str | None) -> list[dict[str, Any]]:
    """All nodes of the plan as it ran; the rows that it wrote are undone."""
    values = ", ".join("null" if argument is None else f"'{argument}'" for argument in arguments)
    with session.transaction(force_rollback=True):
        row = session.execute(
            f"explain (analyze, buffers, format json) execute {statement.name}({values})".encode()
        ).fetchone()
    assert row is not None
    [explained] = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return list(nodes(explained["Plan"]))


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from nodes(child)


def assert_frugal(found: list[dict[str, Any]], indexes: set[str], pages_max: int) -> None:
    """Only these indexes, no scan of a table, no sort, hardly a row that is thrown away, few pages."""
    scanned = [node for node in found if "Relation Name" in node and node["Node Type"] != "ModifyTable"]
    assert {node.get("Index Name") for node in scanned} == indexes
    assert not {"Sort", "Seq Scan", "Bitmap Heap Scan"} & {node["Node Type"] for node in found}
    for node in scanned:
        assert node["Actual Rows"] * node["Actual Loops"] <= 1
        assert node.get("Rows Removed by Filter", 0) <= 1
    assert found[0]["Shared Hit Blocks"] + found[0]["Shared Read Blocks"] <= pages_max


@pytest.mark.parametrize(("at", "rows"), [(INSIDE, 1), (BETWEEN, 0), (BEFORE_ALL, 0)])
def test_a_list_at_an_instant_touches_one_row(session: psycopg.Connection[Any], at: str, rows: int) -> None:
    found = plan(session, LIST_APPOINTMENTS, "large", at)
    assert_frugal(found, {"appointments_start_idx"}, pages_max=12)
    [outer] = [node for node in found if node.get("Alias") == "a"]
    assert outer["Actual Rows"] == rows


def test_a_whole_list_comes_out_of_the_index_in_order(session: psycopg.Connection[Any]) -> None:
    found = plan(session, LIST_APPOINTMENTS, "small-7", None)
    [outer] = [node for node in found if node.get("Alias") == "a"]
    assert (outer["Node Type"], outer["Index Name"]) == ("Index Scan", "appointments_start_idx")
    assert outer["Actual Rows"] == 100
    assert outer.get("Rows Removed by Filter", 0) == 0
    assert "Sort" not in {node["Node Type"] for node in found}


@pytest.mark.parametrize(
    ("external_id", "start", "end", "indexes"),
    [
        ("new", "1999-06-01Z", "1999-06-02Z", {"appointments_start_idx"}),
        ("new", "2003-01-01 00:20Z", "2003-01-01 00:30Z", {"appointments_start_idx"}),
        ("new", INSIDE, BETWEEN, {"appointments_start_idx", "appointments_external_id_key"}),
        ("a-52608", INSIDE, BETWEEN, {"appointments_start_idx"}),
    ],
)
def test_an_upsert_looks_at_one_neighbour_and_at_most_one_row_of_its_own(
    session: psycopg.Connection[Any], external_id: str, start: str, end: str, indexes: set[str]
) -> None:
    values = ("large", external_id, start, end, "2020-01-01Z", "2020-01-01Z", "false", uuid7())
    found = plan(session, UPSERT_APPOINTMENT, *(f'{{"{value}"}}' for value in values))
    ran = [node for node in found if node["Actual Loops"] > 0]
    assert_frugal(ran, indexes, pages_max=100)
