"""Pages of other origins: none may call the API, but those that CORS_ORIGINS names."""

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
ASKING = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture(scope="module")
def friendly(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    origins = f"{APP}, http://localhost:5173"
    with (
        new_database(server_url, template) as url,
        running_service(tmp_path_factory.mktemp("cors"), DATABASE_URL=url, CORS_ORIGINS=origins) as started,
    ):
        yield started


def allowed(response: httpx.Response) -> str | None:
    origin: str | None = response.headers.get("access-control-allow-origin")
    return origin


def test_without_the_setting_no_page_may_call(client: httpx.Client, organisation: str) -> None:
    preflight = client.options("/api/appointments", headers={"Origin": APP} | ASKING)
    assert_problem(preflight, 405, "METHOD_NOT_ALLOWED")
    response = client.get("/api/appointments", headers={"Origin": APP}, params={"org": organisation})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origin", [APP, "http://localhost:5173"])
def test_a_page_that_is_named_may_call_and_read_what_matters(
    friendly: ServiceProcess, organisation: str, origin: str
) -> None:
    preflight = friendly.client.options("/api/appointments", headers={"Origin": origin} | ASKING)
    assert preflight.status_code == 200
    assert allowed(preflight) == origin
    assert preflight.headers["x-request-id"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    assert "Origin" in preflight.headers["vary"].split(", ")
    written = friendly.client.post("/api/appointments", json=payload(organisation), headers={"Origin": origin})
    assert_accepted(written)
    assert allowed(written) == origin
    shown = {name.strip() for name in written.headers["access-control-expose-headers"].split(",")}
    assert shown == {"ETag", "Link", "Retry-After", "WWW-Authenticate", "X-Changes-Cursor", "X-Request-Id"}
    assert "access-control-allow-credentials" not in written.headers


def test_a_page_can_read_errors_too(friendly: ServiceProcess) -> None:
    for response in (
        friendly.client.post("/api/appointments", content=b"{", headers={"Origin": APP}),
        friendly.client.get("/api/nothing", headers={"Origin": APP}),
    ):
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-request-id"]
        assert allowed(response) == APP


@pytest.mark.parametrize("origin", [OTHER, "null", f"{APP}.evil.example", "http://app.example", f"{APP}:8443"])
def test_no_other_page_may(friendly: ServiceProcess, origin: str) -> None:
    preflight = friendly.client.options("/api/appointments", headers={"Origin": origin} | ASKING)
    assert preflight.status_code == 400
    assert allowed(preflight) is None
    assert allowed(friendly.client.get("/api/appointments", headers={"Origin": origin})) is None


def test_who_is_no_page_notices_nothing(friendly: ServiceProcess, organisation: str) -> None:
    response = post(friendly.client, organisation)
    assert_accepted(response)
    assert allowed(response) is None


@pytest.mark.parametrize(
    "origins", ["app.example", f"{APP}/", f"{APP}, ftp://x", "https://*.example", "https://App.example"]
)
def test_what_no_browser_would_send_is_refused_at_the_start(origins: str, tmp_path: Path) -> None:
    environment = clean_environment(CORS_ORIGINS=origins)
    command = [sys.executable, "-m", "service", "serve"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Setting CORS_ORIGINS is wrong: expected origins like https://app.example")
