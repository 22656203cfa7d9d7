"""GET /api/appointments: order, `at`, and strict parsing of the query."""

from urllib.parse import unquote

import httpx
import pytest

from tests.http.requests import assert_accepted, assert_problem, listed, post

FIRST = {"id": "b", "start": "2020-10-10 10:00", "end": "2020-10-10 10:30"}
SECOND = {"id": "a", "start": "2020-10-10 10:30", "end": "2020-10-10 11:00"}
THIRD = {"id": "C", "start": "2020-10-12", "end": "2020-10-13"}


def ids(client: httpx.Client, organisation: str, **parameters: str) -> list[str]:
    return [row["externalId"] for row in listed(client, organisation, **parameters)]


@pytest.fixture
def three_appointments(client: httpx.Client, organisation: str) -> None:
    for appointment in (THIRD, FIRST, SECOND):
        assert_accepted(post(client, organisation, **appointment))


@pytest.mark.usefixtures("three_appointments")
def test_a_list_is_ordered_by_start(client: httpx.Client, organisation: str) -> None:
    assert ids(client, organisation) == ["b", "a", "C"]


@pytest.mark.usefixtures("three_appointments")
@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2020-10-10 10:00", ["b"]),
        ("2020-10-10 10:29:59.999999", ["b"]),
        ("2020-10-10 10:30", ["a"]),
        ("2020-10-10T12:30:00+02:00", ["a"]),
        ("2020-10-10 11:00", []),
        ("2020-10-12", ["C"]),
        ("2020-10-12T23:59:59Z", ["C"]),
        ("2020-10-13", []),
        ("2020-10-10 09:59:59.999999", []),
        ("0001-01-01", []),
        ("9999-12-31T23:59:59.999999Z", []),
    ],
)
def test_at_selects_start_inclusive_to_end_exclusive(
    client: httpx.Client, organisation: str, at: str, expected: list[str]
) -> None:
    assert ids(client, organisation, at=at) == expected


@pytest.mark.usefixtures("three_appointments")
@pytest.mark.parametrize("query", ["", "&", "&at=", "&at", "&&at=&"])
def test_an_empty_parameter_counts_as_missing(client: httpx.Client, organisation: str, query: str) -> None:
    response = client.get(f"/api/appointments?org={organisation}{query}")
    assert response.status_code == 200
    assert response.json() == listed(client, organisation)
    assert len(response.json()) == 3


@pytest.mark.parametrize(
    "query", ["", "?", "?org=", "?org", "?org=%20", "?org=+%09", "?org=default", "?org=+default%20"]
)
def test_a_missing_or_blank_organisation_means_default(client: httpx.Client, query: str) -> None:
    post(client, "default", id="in-default", start="0700-01-01", end="0700-01-02")
    response = client.get("/api/appointments" + query)
    assert response.status_code == 200
    assert "in-default" in [row["externalId"] for row in response.json()]


def test_an_unknown_organisation_has_no_appointments(client: httpx.Client, organisation: str) -> None:
    response = client.get("/api/appointments", params={"org": organisation})
    assert (response.status_code, response.content) == (200, b"[]")
    assert client.get("/api/appointments", params={"org": organisation, "at": "2020-01-01"}).content == b"[]"


def test_head_responds_like_get_without_a_body(client: httpx.Client, organisation: str) -> None:
    url = f"/api/appointments?org={organisation}"
    head, get = client.head(url), client.get(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == "2"
    assert head.headers["x-request-id"]
    assert unvarying_headers(head) == unvarying_headers(get)


def unvarying_headers(response: httpx.Response) -> dict[str, str]:
    """All headers without those that differ from one response to the next."""
    return {name: value for name, value in response.headers.items() if name not in ("date", "x-request-id")}


@pytest.mark.parametrize(
    ("query", "code", "fields"),
    [
        ("at=yesterday", "INVALID_DATE_FORMAT", ["at"]),
        ("at=%00", "INVALID_DATE_FORMAT", ["at"]),
        ("at=+", "INVALID_DATE_FORMAT", ["at"]),
        ("at=2020-10-10T10:00:00+02:00", "INVALID_DATE_FORMAT", ["at"]),
        ("org=a%00b", "INVALID_REQUEST", ["org"]),
        ("org=" + "o" * 256, "INVALID_REQUEST", ["org"]),
        ("org=%ff", "INVALID_REQUEST", ["org"]),
        ("org=%ed%a0%80", "INVALID_REQUEST", ["org"]),
        ("at=%ff", "INVALID_REQUEST", ["at"]),
        ("%ff=1", "INVALID_REQUEST", [""]),
        ("org=a&org=a", "INVALID_REQUEST", ["org"]),
        ("org=&org=a", "INVALID_REQUEST", ["org"]),
        ("at=&at=", "INVALID_REQUEST", ["at"]),
        ("orgId=a", "INVALID_REQUEST", ["orgId"]),
        ("Org=a", "INVALID_REQUEST", ["Org"]),
        ("foo=", "INVALID_REQUEST", ["foo"]),
        ("=1", "INVALID_REQUEST", [""]),
        ("foo=1&x=1&x=2&at=x", "INVALID_REQUEST", ["foo", "x", "at"]),
    ],
)
def test_an_invalid_query_is_rejected(client: httpx.Client, query: str, code: str, fields: list[str]) -> None:
    assert_problem(client.get(f"/api/appointments?{query}"), 400, code, fields)


@pytest.mark.parametrize("query", ["%ff=1", "org=%ff", "foo=%ff", "%ff=%ff"])
def test_the_error_for_a_parameter_that_is_not_utf8_says_so(client: httpx.Client, query: str) -> None:
    [fault] = client.get(f"/api/appointments?{query}").json()["errors"]
    assert fault["detail"] == "Not UTF-8. Expected percent-encoded UTF-8."


def test_the_error_for_a_plus_sign_suggests_its_encoding(client: httpx.Client) -> None:
    response = client.get("/api/appointments?at=2020-10-10T10:00:00+02:00")
    assert "%2B" in response.json()["errors"][0]["detail"]
    encoded = client.get("/api/appointments?at=2020-10-10T10:00:00%2B02:00")
    assert encoded.status_code == 200
    assert client.get("/api/appointments?at=2020-10-10+10:00").status_code == 200


@pytest.mark.parametrize(
    ("count", "detail"),
    [
        (20, "The request is not valid; `errors` lists every fault."),
        (21, "The request is not valid; it has the 20 faults in `errors` and 1 more."),
        (5_000, "The request is not valid; it has the 20 faults in `errors` and 4,980 more."),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_answer_lists_20_faults_at_most(client: httpx.Client, method: str, count: int, detail: str) -> None:
    names = [f"x{number}" for number in range(count)]
    response = client.request(method, f"/api/appointments?{'&'.join(names)}")
    problem = assert_problem(response, 400, "INVALID_REQUEST", names[:20])
    assert problem["detail"] == detail
    assert len(response.content) < 10_000


@pytest.mark.parametrize("name", ["x" * 30_000, "%C3%A9" * 5_000, "x" * 65])
def test_the_name_of_an_unknown_parameter_is_shortened(client: httpx.Client, name: str) -> None:
    response = client.get(f"/api/appointments?{name}=1")
    assert_problem(response, 400, "INVALID_REQUEST", [unquote(name)[:64] + "…"])
    assert len(response.content) < 1_000


def test_post_rejects_query_parameters(client: httpx.Client, organisation: str) -> None:
    response = client.post(f"/api/appointments?org={organisation}", json={})
    assert_problem(response, 400, "INVALID_REQUEST", ["org"])
