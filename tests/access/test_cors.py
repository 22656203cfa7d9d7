"""CORS: only pages of the origins listed in CORS_ORIGINS may call the API."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.databases import new_database
from tests.http.requests import assert_accepted, assert_problem, payload, post
from tests.processes import ServiceProcess, clean_environment, running_service

APP = "https://app.example"
OTHER = "https://other.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture(scope="module")
def cors_service(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    origins = f"{APP}, http://localhost:5173"
    with (
        new_database(server_url, template) as url,
        running_service(tmp_path_factory.mktemp("cors"), DATABASE_URL=url, CORS_ORIGINS=origins) as process,
    ):
        yield process


def allowed_origin(response: httpx.Response) -> str | None:
    origin: str | None = response.headers.get("access-control-allow-origin")
    return origin


def test_without_cors_origins_no_cross_origin_access_is_granted(client: httpx.Client, organisation: str) -> None:
    preflight = client.options("/api/appointments", headers={"Origin": APP} | PREFLIGHT)
    assert_problem(preflight, 405, "METHOD_NOT_ALLOWED")
    response = client.get("/api/appointments", headers={"Origin": APP}, params={"org": organisation})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origin", [APP, "http://localhost:5173"])
def test_a_listed_origin_may_call_the_api_and_read_its_headers(
    cors_service: ServiceProcess, organisation: str, origin: str
) -> None:
    preflight = cors_service.client.options("/api/appointments", headers={"Origin": origin} | PREFLIGHT)
    assert preflight.status_code == 200
    assert allowed_origin(preflight) == origin
    assert preflight.headers["x-request-id"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    assert "Origin" in preflight.headers["vary"].split(", ")
    written = cors_service.client.post("/api/appointments", json=payload(organisation), headers={"Origin": origin})
    assert_accepted(written)
    assert allowed_origin(written) == origin
    shown = {name.strip() for name in written.headers["access-control-expose-headers"].split(",")}
    assert shown == {"ETag", "Link", "Retry-After", "WWW-Authenticate", "X-Changes-Cursor", "X-Request-Id"}
    assert "access-control-allow-credentials" not in written.headers


def test_a_listed_origin_may_read_errors(cors_service: ServiceProcess) -> None:
    for response in (
        cors_service.client.post("/api/appointments", content=b"{", headers={"Origin": APP}),
        cors_service.client.get("/api/nothing", headers={"Origin": APP}),
    ):
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-request-id"]
        assert allowed_origin(response) == APP


@pytest.mark.parametrize("origin", [OTHER, "null", f"{APP}.evil.example", "http://app.example", f"{APP}:8443"])
def test_an_unlisted_origin_is_granted_no_access(cors_service: ServiceProcess, origin: str) -> None:
    preflight = cors_service.client.options("/api/appointments", headers={"Origin": origin} | PREFLIGHT)
    assert preflight.status_code == 400
    assert allowed_origin(preflight) is None
    assert allowed_origin(cors_service.client.get("/api/appointments", headers={"Origin": origin})) is None


def test_requests_without_an_origin_header_are_unaffected_by_cors(
    cors_service: ServiceProcess, organisation: str
) -> None:
    response = post(cors_service.client, organisation)
    assert_accepted(response)
    assert allowed_origin(response) is None


@pytest.mark.parametrize(
    "origins", ["app.example", f"{APP}/", f"{APP}, ftp://x", "https://*.example", "https://App.example"]
)
def test_an_origin_that_no_browser_would_send_stops_the_start(origins: str, tmp_path: Path) -> None:
    environment = clean_environment(CORS_ORIGINS=origins)
    command = [sys.executable, "-m", "service", "serve"]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: Setting CORS_ORIGINS is wrong: expected origins like https://app.example")
