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


def cors_headers(response: httpx.Response) -> set[str]:
    return {name for name in response.headers if name.startswith("access-control-")}


def names(header: str) -> set[str]:
    return {name.strip() for name in header.split(",")}


def test_without_cors_origins_no_cross_origin_access_is_granted(client: httpx.Client, organisation: str) -> None:
    preflight = client.options("/api/appointments", headers={"Origin": APP} | PREFLIGHT)
    assert_problem(preflight, 405, "METHOD_NOT_ALLOWED")
    response = client.get("/api/appointments", headers={"Origin": APP}, params={"org": organisation})
    assert (response.status_code, response.content) == (200, b"[]")
    assert cors_headers(preflight) == cors_headers(response) == set()


@pytest.mark.parametrize("origin", [APP, "http://localhost:5173"])
def test_a_listed_origin_may_call_the_api_and_read_its_headers(
    cors_service: ServiceProcess, organisation: str, origin: str
) -> None:
    preflight = cors_service.client.options("/api/appointments", headers={"Origin": origin} | PREFLIGHT)
    assert (preflight.status_code, preflight.text) == (200, "OK")
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["x-request-id"]
    assert names(preflight.headers["access-control-allow-methods"]) == {"GET", "HEAD", "POST"}
    assert {"authorization", "content-type"} <= names(preflight.headers["access-control-allow-headers"].lower())
    assert "Origin" in names(preflight.headers["vary"])
    written = cors_service.client.post("/api/appointments", json=payload(organisation), headers={"Origin": origin})
    assert_accepted(written)
    assert written.headers["access-control-allow-origin"] == origin
    assert "Origin" in names(written.headers["vary"])
    exposed = names(written.headers["access-control-expose-headers"])
    assert exposed == {"ETag", "Link", "Retry-After", "WWW-Authenticate", "X-Changes-Cursor", "X-Request-Id"}
    assert "access-control-allow-credentials" not in preflight.headers.keys() | written.headers.keys()


def test_a_listed_origin_may_read_errors(cors_service: ServiceProcess) -> None:
    malformed = cors_service.client.post("/api/appointments", content=b"{", headers={"Origin": APP})
    unknown = cors_service.client.get("/api/nothing", headers={"Origin": APP})
    assert_problem(malformed, 400, "INVALID_JSON")
    assert_problem(unknown, 404, "NOT_FOUND")
    for response in (malformed, unknown):
        assert response.headers["access-control-allow-origin"] == APP
        assert "X-Request-Id" in names(response.headers["access-control-expose-headers"])


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"Access-Control-Request-Method": "DELETE"}, "Disallowed CORS method"),
        ({"Access-Control-Request-Headers": "authorization, x-other"}, "Disallowed CORS headers"),
    ],
)
def test_a_preflight_for_an_unsupported_method_or_header_is_refused(
    cors_service: ServiceProcess, asked: dict[str, str], reason: str
) -> None:
    preflight = cors_service.client.options("/api/appointments", headers={"Origin": APP} | PREFLIGHT | asked)
    assert (preflight.status_code, preflight.text) == (400, reason)
    assert preflight.headers["x-request-id"]


@pytest.mark.parametrize("origin", [OTHER, "null", f"{APP}.evil.example", "http://app.example", f"{APP}:8443"])
def test_an_unlisted_origin_is_granted_no_access(cors_service: ServiceProcess, organisation: str, origin: str) -> None:
    preflight = cors_service.client.options("/api/appointments", headers={"Origin": origin} | PREFLIGHT)
    assert (preflight.status_code, preflight.text) == (400, "Disallowed CORS origin")
    assert preflight.headers["x-request-id"]
    response = cors_service.client.get(f"/api/appointments?org={organisation}", headers={"Origin": origin})
    assert (response.status_code, response.content) == (200, b"[]")
    for each in (preflight, response):
        assert "access-control-allow-origin" not in each.headers
        assert "Origin" in names(each.headers["vary"])


def test_requests_without_an_origin_header_are_unaffected_by_cors(
    cors_service: ServiceProcess, organisation: str
) -> None:
    response = post(cors_service.client, organisation)
    assert_accepted(response)
    assert cors_headers(response) == set()
    assert "Origin" in names(response.headers["vary"])  # for shared caches


@pytest.mark.parametrize(
    "origins", ["app.example", f"{APP}/", f"{APP}, ftp://x", "https://*.example", "https://App.example"]
)
def test_an_origin_that_no_browser_would_send_stops_the_start(origins: str, tmp_path: Path) -> None:
    environment = clean_environment(CORS_ORIGINS=origins)
    command = [sys.executable, "-m", "service", "serve"]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: Setting CORS_ORIGINS is wrong: expected origins like https://app.example")
