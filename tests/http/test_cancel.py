"""Cancellations: ordinary updates that free the interval."""

from typing import Any

import httpx
import pytest

from tests.http.requests import assert_accepted, assert_problem, listed, post

LATER = "2020-09-29"


def test_a_cancelled_appointment_frees_its_interval(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    assert_accepted(post(client, organisation, updatedAt=LATER, cancelled=True))
    assert listed(client, organisation) == []
    assert_accepted(post(client, organisation, id="a-2"))
    assert [row["externalId"] for row in listed(client, organisation)] == ["a-2"]


def test_a_cancellation_without_a_later_updated_at_is_stale(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    assert_accepted(post(client, organisation, cancelled=True), "ignored-stale")
    assert len(listed(client, organisation)) == 1


def test_a_creation_that_arrives_after_its_cancellation_is_stale(client: httpx.Client, organisation: str) -> None:
    assert_accepted(post(client, organisation, updatedAt=LATER, cancelled=True))
    assert_accepted(post(client, organisation), "ignored-stale")
    assert listed(client, organisation) == []


def test_a_cancelled_appointment_never_conflicts(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    assert_accepted(post(client, organisation, id="a-2", cancelled=True))
    assert_accepted(post(client, organisation, id="a-2", end="2020-10-11", updatedAt=LATER, cancelled=True))


@pytest.mark.parametrize("flag", [{}, {"cancelled": False}, {"cancelled": None}])
def test_a_later_update_without_the_flag_reactivates_the_appointment(
    client: httpx.Client, organisation: str, flag: dict[str, Any]
) -> None:
    post(client, organisation, cancelled=True)
    assert_accepted(post(client, organisation, updatedAt=LATER, **flag))
    [row] = listed(client, organisation)
    assert (row["externalId"], row["version"]) == ("a-1", 2)
    assert "cancelled" not in row


def test_reactivation_is_a_conflict_if_the_interval_is_taken(client: httpx.Client, organisation: str) -> None:
    post(client, organisation, cancelled=True)
    post(client, organisation, id="a-2")
    problem = assert_problem(post(client, organisation, updatedAt=LATER), 409, "TIME_RANGE_UNAVAILABLE")
    assert problem["conflict"]["externalId"] == "a-2"
    assert_accepted(post(client, organisation, id="a-2", updatedAt=LATER, cancelled=True))
    assert_accepted(post(client, organisation, updatedAt=LATER))


@pytest.mark.parametrize("value", [0, 1, "true", "", [], {}, 1.0])
def test_cancelled_must_be_a_boolean(client: httpx.Client, organisation: str, value: Any) -> None:
    problem = assert_problem(post(client, organisation, cancelled=value), 400, "INVALID_REQUEST", ["cancelled"])
    assert problem["errors"][0]["detail"] == "Expected true or false."
    assert listed(client, organisation) == []
