"""The table of failures: what each SQLSTATE means for a request."""

import asyncpg
import pytest

from service.database.failures import ACTIONS, Action, action_for

ROWS = {
    "08": ("08006", Action.UNAVAILABLE),
    "0A000": ("0A000", Action.UNAVAILABLE),
    "23505": ("23505", Action.OTHERWISE),
    "23P01": ("23P01", Action.OTHERWISE),
    "25006": ("25006", Action.UNAVAILABLE),
    "28": ("28P01", Action.UNAVAILABLE),
    "3D000": ("3D000", Action.UNAVAILABLE),
    "40": ("40P01", Action.OTHERWISE),
    "42501": ("42501", Action.UNAVAILABLE),
    "42703": ("42703", Action.UNAVAILABLE),
    "42883": ("42883", Action.UNAVAILABLE),
    "42P01": ("42P01", Action.UNAVAILABLE),
    "53": ("53300", Action.UNAVAILABLE),
    "55": ("55000", Action.UNAVAILABLE),
    "55P03": ("55P03", Action.OTHERWISE),
    "57": ("57014", Action.UNAVAILABLE),
    "58": ("58030", Action.UNAVAILABLE),
}
DEFECTS = ["22001", "22P02", "23514", "25001", "3D001", "42601", "P0001", "XX000"]


def test_every_row_of_the_table_has_an_expectation() -> None:
    assert ROWS.keys() == ACTIONS.keys()


@pytest.mark.parametrize(
    ("sqlstate", "expected"), [*ROWS.values(), *((sqlstate, Action.DEFECT) for sqlstate in DEFECTS)]
)
def test_sqlstate_decides_what_happens_to_the_request(sqlstate: str, expected: Action) -> None:
    error = asyncpg.PostgresError.new({"C": sqlstate, "M": "as the server says it"})
    assert action_for(error) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("failure on connection: duplicate key value violates", Action.OTHERWISE),
        ("postmaster was shut down, exiting", Action.UNAVAILABLE),
        ("failure on connection marked as essential: worker-1:5432", Action.UNAVAILABLE),
        ("could not find a plan", Action.DEFECT),
    ],
)
def test_text_of_an_internal_error_of_citus_decides(text: str, expected: Action) -> None:
    error = asyncpg.PostgresError.new({"C": "XX000", "M": text})
    assert action_for(error) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), Action.UNAVAILABLE),
        (ConnectionResetError(), Action.UNAVAILABLE),
        (asyncpg.InterfaceError("connection is closed"), Action.UNAVAILABLE),
        (asyncpg.InternalClientError("unexpected message"), Action.UNAVAILABLE),
        (asyncpg.PostgresError("without a SQLSTATE"), Action.UNAVAILABLE),
        (asyncpg.DataError("invalid input for query argument"), Action.DEFECT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_without_a_sqlstate_are_outages_except_for_wrong_arguments(error: Exception, expected: Action) -> None:
    assert action_for(error) is expected
