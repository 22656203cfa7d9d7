"""Unknown routes, methods, request ids, probes, request logs and metrics."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest

from tests.cluster import COORDINATOR_URL
from tests.http.requests import assert_problem, listed, metrics, post
from tests.processes import ServiceProcess, wait_until, writes_by_bucket


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/appointments/",
        "//api/appointments",
        "/api//appointments",
        "/api/appointments/a-1",
        "/livez/",
        "/api/docs/",
        "/api/docs/nothing",
        "/api/docs/../handlers.py",
        "/API/appointments",
        "/%00",
        "/é",
    ],
)
def test_an_unknown_path_is_not_found(client: httpx.Client, path: str) -> None:
    assert_problem(client.get(path), 404, "NOT_FOUND")
    assert_problem(client.post(path, json={}), 404, "NOT_FOUND")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_an_unsupported_method_is_not_allowed(client: httpx.Client, method: str) -> None:
    response = client.request(method, "/api/appointments")
    assert_problem(response, 405, "METHOD_NOT_ALLOWED")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/api/docs", "/api/openapi.json"])
def test_read_only_routes_reject_post(client: httpx.Client, path: str) -> None:
    response = client.post(path)
    assert_problem(response, 405, "METHOD_NOT_ALLOWED")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_respond_ok(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("request_id", ["abc-123", "7f9c:1/2+3=@x.y_z", "a" * 128])
def test_a_valid_request_id_is_echoed(client: httpx.Client, request_id: str) -> None:
    for path in ("/livez", "/nothing", "/api/docs"):
        assert client.get(path, headers={"X-Request-Id": request_id}).headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", ["", "a" * 129, "a b", 'x"y', "<script>", "é"])
def test_an_invalid_request_id_is_replaced(client: httpx.Client, request_id: str) -> None:
    response = client.get("/livez", headers=[(b"X-Request-Id", request_id.encode())])
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.headers["x-request-id"] != client.get("/livez").headers["x-request-id"]


@pytest.mark.parametrize(("second", "echoed"), [("first", True), ("second", False)])
def test_different_request_ids_are_replaced(client: httpx.Client, second: str, echoed: bool) -> None:
    response = client.get("/livez", headers=[("X-Request-Id", "first"), ("X-Request-Id", second)])
    assert (response.headers["x-request-id"] == "first") == echoed


def test_each_request_is_logged_with_its_route_status_and_verdict(service: ServiceProcess, organisation: str) -> None:
    response = post(service.client, organisation)
    event = service.wait_for_event("request", request_id=response.headers["x-request-id"])
    expected = {
        "method": "POST",
        "route": "/api/appointments",
        "status": 200,
        "organisation": organisation,
        "verdict": "ok",
        "level": "debug",
    }
    assert expected.items() <= event.items()
    assert event["ms"] > 0


def test_metrics_count_requests_verdicts_and_statements(client: httpx.Client, organisation: str) -> None:
    before = metrics(client)
    post(client, organisation)
    post(client, organisation)
    post(client, organisation, id="a-2")
    client.get("/no/such/route/" + organisation)
    after = metrics(client)

    def increase(name: str) -> float:
        return after[name] - before.get(name, 0)

    requests = "http_request_duration_seconds_count"
    assert increase(f"{requests} POST /api/appointments 200") == 2
    assert increase(f"{requests} POST /api/appointments 409") == 1
    assert increase(f"{requests} GET unknown 404") == 1
    for verdict in ("ok", "stale", "conflict"):
        assert increase(f"appointment_verdicts_total {verdict}") == 1
    statement = "put_appointments" if COORDINATOR_URL or writes_by_bucket() else "upsert_appointment"
    assert increase(f"database_statement_duration_seconds_count {statement}") == 3
    assert organisation not in client.get("/metrics").text


def test_pool_gauges_follow_the_use_of_connections(service: ServiceProcess, organisation: str) -> None:
    def busy() -> float:
        return metrics(service.client)["database_pool_connections busy"]

    with ThreadPoolExecutor(1) as executor:
        with psycopg.connect(service.database_url) as session:
            session.execute("lock table appointments in access exclusive mode")
            blocked = executor.submit(listed, service.client, organisation)
            wait_until(lambda: busy() == 1)  # the gauges are sampled once a second
        assert blocked.result() == []
    wait_until(lambda: busy() == 0)
    assert 1 <= metrics(service.client)["database_pool_connections idle"] <= 10
