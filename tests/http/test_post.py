"""POST /api/appointments: every rule for its fields, and every outcome."""

from typing import Any

import httpx
import pytest

from tests.http.requests import assert_accepted, assert_problem, listed, payload, post


def test_a_new_appointment_is_ok_and_listed(client: httpx.Client, organisation: str) -> None:
    assert_accepted(post(client, organisation))
    [row] = listed(client, organisation)
    assert list(row) == ["id", "orgId", "externalId", "start", "end", "payloadCreatedAt", "payloadUpdatedAt", "version"]
    assert row | {"id": ""} == {
        "id": "",
        "orgId": organisation,
        "externalId": "a-1",
        "start": "2020-10-10T10:00:00.000Z",
        "end": "2020-10-10T10:30:00.000Z",
        "payloadCreatedAt": "2020-09-02T14:23:12.000Z",
        "payloadUpdatedAt": "2020-09-28T14:23:12.000Z",
        "version": 1,
    }


def test_a_later_update_wins_and_keeps_the_id(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    [before] = listed(client, organisation)
    later = {"start": "2020-10-10 12:00", "end": "2020-10-10 13:00", "updatedAt": "2020-09-28 14:23:12.000001"}
    assert_accepted(post(client, organisation, **later, createdAt="2020-09-03"))
    [after] = listed(client, organisation)
    assert after == before | {
        "start": "2020-10-10T12:00:00.000Z",
        "end": "2020-10-10T13:00:00.000Z",
        "payloadCreatedAt": "2020-09-03T00:00:00.000Z",
        "payloadUpdatedAt": "2020-09-28T14:23:12.000001Z",
        "version": 2,
    }


@pytest.mark.parametrize(
    "updated_at", ["2020-09-28 14:23:12", "2020-09-28 14:23:11.999999", "2020-09-28T16:23:12+02:00"]
)
def test_an_equal_or_earlier_update_is_ignored(client: httpx.Client, organisation: str, updated_at: str) -> None:
    post(client, organisation)
    before = listed(client, organisation)
    assert_accepted(post(client, organisation, updatedAt=updated_at, end="2020-10-10 11:00"), "ignored-stale")
    assert listed(client, organisation) == before


def test_a_stale_update_is_ignored_even_if_it_overlaps(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    post(client, organisation, id="a-2", start="2020-10-10 11:00", end="2020-10-10 12:00")
    overlapping = {"start": "2020-10-10 11:30", "end": "2020-10-10 11:45"}
    assert_accepted(post(client, organisation, **overlapping), "ignored-stale")
    assert_problem(post(client, organisation, **overlapping, updatedAt="2020-09-29"), 409, "TIME_RANGE_UNAVAILABLE")


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2020-10-10 10:00", "2020-10-10 10:30"),
        ("2020-10-10 09:30", "2020-10-10 10:00:00.000001"),
        ("2020-10-10 10:29:59.999999", "2020-10-10 11:00"),
        ("2020-10-10 10:10", "2020-10-10 10:20"),
        ("2020-10-10 09:00", "2020-10-10 11:00"),
        ("0001-01-01", "9999-12-31T23:59:59.999999"),
        ("2020-10-10T12:10+02:00", "2020-10-10T12:20+02:00"),
    ],
)
def test_an_overlap_is_a_conflict_that_names_the_other_appointment(
    client: httpx.Client, organisation: str, start: str, end: str
) -> None:
    post(client, organisation, id="long before", start="2020-10-01", end="2020-10-02")
    post(client, organisation, id='the "first"')
    before = listed(client, organisation)
    response = post(client, organisation, id="a-2", start=start, end=end)
    problem = assert_problem(response, 409, "TIME_RANGE_UNAVAILABLE")
    assert problem["detail"] == 'The time range overlaps appointment "the "first"" of this organisation.'
    assert problem["conflict"] == {
        "externalId": 'the "first"',
        "start": "2020-10-10T10:00:00.000Z",
        "end": "2020-10-10T10:30:00.000Z",
    }
    assert listed(client, organisation) == before


@pytest.mark.parametrize(
    ("start", "end"), [("2020-10-10 09:30", "2020-10-10 10:00"), ("2020-10-10 10:30", "2020-10-10 11:00")]
)
def test_adjacent_appointments_do_not_conflict(client: httpx.Client, organisation: str, start: str, end: str) -> None:
    post(client, organisation)
    assert_accepted(post(client, organisation, id="a-2", start=start, end=end))


def test_an_update_may_overlap_its_own_old_interval(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    moved = {"start": "2020-10-10 10:15", "end": "2020-10-10 10:45", "updatedAt": "2020-09-29"}
    assert_accepted(post(client, organisation, **moved))


def test_an_update_conflicts_with_a_neighbour_despite_its_own_old_interval(
    client: httpx.Client, organisation: str
) -> None:
    """The search for a conflict must look past the appointment itself."""
    post(client, organisation, id="a-0", start="2020-10-10 09:00", end="2020-10-10 10:00")
    post(client, organisation)
    stretched = {"start": "2020-10-10 09:30", "end": "2020-10-10 10:45", "updatedAt": "2020-09-29"}
    problem = assert_problem(post(client, organisation, **stretched), 409, "TIME_RANGE_UNAVAILABLE")
    assert problem["conflict"]["externalId"] == "a-0"


def test_organisations_are_isolated_from_each_other(client: httpx.Client, organisation: str) -> None:
    other = organisation + "-other"
    assert_accepted(post(client, organisation))
    assert_accepted(post(client, other))
    assert len(listed(client, organisation)) == len(listed(client, other)) == 1


def test_a_moved_appointment_frees_its_old_interval(client: httpx.Client, organisation: str) -> None:
    post(client, organisation)
    post(client, organisation, start="2020-10-10 12:00", end="2020-10-10 13:00", updatedAt="2020-09-29")
    assert_accepted(post(client, organisation, id="a-2"))


@pytest.mark.parametrize(
    ("org_id", "year"),
    [(None, 1001), ("", 1002), ("  \t\n ", 1003), ("default", 1004), (" default ", 1005), ("\u2003", 1006)],
)
def test_a_blank_organisation_means_default(
    client: httpx.Client, organisation: str, org_id: str | None, year: int
) -> None:
    far_off = {"id": organisation, "start": f"{year}-01-01", "end": f"{year}-01-02"}
    assert_accepted(post(client, org_id, **far_off))
    assert_accepted(post(client, "default", **far_off), "ignored-stale")


def test_a_missing_organisation_means_default(client: httpx.Client) -> None:
    body = payload(None, start="0601-01-01", end="0601-01-02", id="without")
    del body["orgId"]
    assert_accepted(client.post("/api/appointments", json=body))
    assert "without" in [row["externalId"] for row in listed(client, "default")]


def test_organisation_names_are_trimmed_and_otherwise_kept(client: httpx.Client, organisation: str) -> None:
    assert_accepted(post(client, f"\u00a0 {organisation} x\t"))
    assert_accepted(post(client, f"{organisation} x"), "ignored-stale")
    assert_accepted(post(client, f"{organisation} X"))


@pytest.mark.parametrize(
    "external_id", [" a", "a ", "A", "a\u0301", "\u00e1", "😀" * 255, "a\nb", "\u200b", "\x01", '"\\']
)
def test_an_id_is_stored_verbatim(client: httpx.Client, organisation: str, external_id: str) -> None:
    assert_accepted(post(client, organisation, id=external_id))
    assert [row["externalId"] for row in listed(client, organisation)] == [external_id]


def test_unknown_members_are_ignored(client: httpx.Client, organisation: str) -> None:
    more = {"": 1, "nested": {"id": 5, "a": [None, True]}, "huge": 10**400, "version": "x", "ID": 7}
    assert_accepted(post(client, organisation, **more))


def test_a_number_too_large_for_a_float_is_ignored_in_an_unknown_member(
    client: httpx.Client, organisation: str
) -> None:
    body = httpx.Request("POST", "http://x", json=payload(organisation)).content
    assert_accepted(client.post("/api/appointments", content=b'{"x": 1e400, ' + body[1:]))


def test_the_last_of_duplicate_members_wins(client: httpx.Client, organisation: str) -> None:
    body = httpx.Request("POST", "http://x", json=payload(organisation)).content
    assert_accepted(client.post("/api/appointments", content=b'{"id": 5, ' + body[1:]))
    response = client.post("/api/appointments", content=body[:-1] + b', "id": 5}')
    assert_problem(response, 400, "INVALID_REQUEST", ["id"])


@pytest.mark.parametrize("value", [5, 1.5, True, [], {}, None, "", " ", "\u3000\n", "a" * 256, "a\0", "\0"])
def test_an_id_must_be_a_string_of_1_to_255_characters(client: httpx.Client, organisation: str, value: Any) -> None:
    problem = assert_problem(post(client, organisation, id=value), 400, "INVALID_REQUEST", ["id"])
    assert "1 to 255 characters" in problem["errors"][0]["detail"]
    assert listed(client, organisation) == []


@pytest.mark.parametrize("value", [5, False, [], {}, "o" * 256, "a\0b"])
def test_an_organisation_must_be_a_string_of_up_to_255_characters(client: httpx.Client, value: Any) -> None:
    assert_problem(post(client, value), 400, "INVALID_REQUEST", ["orgId"])


def test_lengths_are_counted_in_code_points_after_trimming(client: httpx.Client, organisation: str) -> None:
    assert_accepted(post(client, organisation.ljust(255, "😀") + " " * 9))
    assert_accepted(post(client, organisation, id="x" * 255))


@pytest.mark.parametrize("field", ["start", "end", "createdAt", "updatedAt"])
@pytest.mark.parametrize(
    "value", [None, 1602324000, "", " ", "tomorrow", "2020-02-30", "2020-10-10 10:00 ", "2020-10-10\0"]
)
def test_an_unreadable_instant_is_reported_for_its_field(
    client: httpx.Client, organisation: str, field: str, value: Any
) -> None:
    problem = assert_problem(post(client, organisation, **{field: value}), 400, "INVALID_DATE_FORMAT", [field])
    assert "YYYY-MM-DD" in problem["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("id", "INVALID_REQUEST"),
        ("start", "INVALID_DATE_FORMAT"),
        ("end", "INVALID_DATE_FORMAT"),
        ("createdAt", "INVALID_DATE_FORMAT"),
        ("updatedAt", "INVALID_DATE_FORMAT"),
    ],
)
def test_a_missing_field_is_reported(client: httpx.Client, organisation: str, field: str, code: str) -> None:
    body = payload(organisation)
    del body[field]
    problem = assert_problem(client.post("/api/appointments", json=body), 400, code, [field])
    assert problem["errors"][0]["detail"].startswith("Missing.")


def test_all_errors_are_reported_at_once(client: httpx.Client) -> None:
    response = client.post("/api/appointments", json={"orgId": 5, "start": "x", "updatedAt": 3})
    fields = ["id", "start", "end", "createdAt", "updatedAt", "orgId"]
    assert_problem(response, 400, "INVALID_REQUEST", fields)
    dates = client.post("/api/appointments", json={"id": "a", "start": "x", "updatedAt": 3})
    assert_problem(dates, 400, "INVALID_DATE_FORMAT", ["start", "end", "createdAt", "updatedAt"])


@pytest.mark.parametrize("end", ["2020-10-10 10:00", "2020-10-10 09:59", "2020-10-10T12:00+02:00"])
def test_start_must_be_before_end(client: httpx.Client, organisation: str, end: str) -> None:
    metadata = {"createdAt": "2021-01-01", "updatedAt": "2020-01-01"}
    assert_problem(post(client, organisation, end=end), 400, "INVALID_TIME_RANGE")
    assert_problem(post(client, organisation, end=end, **metadata), 400, "INVALID_TIME_RANGE")


def test_created_at_must_not_be_after_updated_at(client: httpx.Client, organisation: str) -> None:
    after = post(client, organisation, createdAt="2020-09-28 14:23:12.000001")
    assert_problem(after, 400, "INVALID_METADATA")
    assert listed(client, organisation) == []
    assert_accepted(post(client, organisation, createdAt="2020-09-28 14:23:12"))


def test_metadata_is_not_compared_with_the_interval_or_the_clock(client: httpx.Client, organisation: str) -> None:
    assert_accepted(post(client, organisation, createdAt="9999-12-31", updatedAt="9999-12-31"))
    past = {"id": "a-2", "start": "0001-01-01", "end": "0001-01-02", "createdAt": "0001-01-01"}
    assert_accepted(post(client, organisation, **past))


def test_the_earliest_and_latest_instants_are_accepted(client: httpx.Client, organisation: str) -> None:
    ends = {"start": "0001-01-01", "end": "9999-12-31 23:59:59.999999"}
    assert_accepted(post(client, organisation, **ends, createdAt=ends["start"], updatedAt=ends["end"]))
    [row] = listed(client, organisation, at=ends["start"])
    assert row["start"] == row["payloadCreatedAt"] == "0001-01-01T00:00:00.000Z"
    assert row["end"] == row["payloadUpdatedAt"] == "9999-12-31T23:59:59.999999Z"
    assert listed(client, organisation, at=ends["end"]) == []
    assert_accepted(post(client, organisation, **ends, updatedAt=ends["end"]), "ignored-stale")
