"""Requests for the HTTP tests, and assertions that every response must satisfy."""

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    410: "Gone",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
MEMBERS = {"type", "title", "status", "code", "detail"}


def payload(org_id: str | None, **changes: Any) -> dict[str, Any]:
    """A valid payload from 10:00 to 10:30, with `changes` applied."""
    valid = {
        "id": "a-1",
        "start": "2020-10-10 10:00",
        "end": "2020-10-10 10:30",
        "createdAt": "2020-09-02 14:23:12",
        "updatedAt": "2020-09-28 14:23:12",
        "orgId": org_id,
    }
    return valid | changes


def post(client: httpx.Client, org_id: str | None, **changes: Any) -> httpx.Response:
    return client.post("/api/appointments", json=payload(org_id, **changes))


def listed(client: httpx.Client, org_id: str, **parameters: str) -> list[dict[str, Any]]:
    response = client.get("/api/appointments", params={"org": org_id} | parameters)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    rows: list[dict[str, Any]] = response.json()
    return rows


def assert_accepted(response: httpx.Response, status: str = "ok") -> None:
    assert response.content == f'{{"status":"{status}"}}'.encode(), response.text
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]


def assert_problem(response: httpx.Response, status: int, code: str, fields: list[str] | None = None) -> dict[str, Any]:
    """Check body, status and headers. `fields` are those of `errors`, in order; if None, there are no `errors`."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == (status == 503)
    problem: dict[str, Any] = response.json()
    extension = {"errors"} if fields is not None else {"conflict"} if status == 409 else set()
    assert problem.keys() == MEMBERS | extension, problem
    assert problem["type"] == "about:blank"
    assert (problem["status"], problem["code"], problem["title"]) == (status, code, TITLES[status])
    assert problem["detail"]
    if fields is not None:
        assert [error["field"] for error in problem["errors"]] == fields
        assert all(error.keys() == {"field", "detail"} and error["detail"] for error in problem["errors"])
    return problem


def metrics(client: httpx.Client) -> dict[str, float]:
    """Samples of /metrics, keyed by name and label values."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
