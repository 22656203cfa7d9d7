"""Pages of other origins: only those of the origins listed in CORS_ORIGINS may read answers, and write."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.databases import new_database
from tests.http.requests import assert_accepted, assert_problem, listed, metrics, payload, post
from tests.processes import ServiceProcess, clean_environment, running_service

APP = "https://app.example"
OTHER = "https://other.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture(scope="module")
def cors_service(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    origins = f"{APP}, http://localhost:5173"
    with (
        new_database(server_url, template) as url,
        running_service(
            tmp_path_factory.mktemp("cors"), DATABASE_URL=url, CORS_ORIGINS=origins, LOG_LEVEL="debug"
        ) as process,
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


@pytest.mark.parametrize("asked", ["traceparent", "x-a,TraceParent , baggage", None, "", "a" * 20_000])
def test_a_preflight_may_name_any_request_header(cors_service: ServiceProcess, asked: str | None) -> None:
    headers = {"Origin": APP, "Access-Control-Request-Method": "GET"}
    headers |= {} if asked is None else {"Access-Control-Request-Headers": asked}
    preflight = cors_service.client.options("/api/nothing", headers=headers)
    assert (preflight.status_code, preflight.text) == (200, "OK")
    assert preflight.headers.get("access-control-allow-headers") == (asked or None)


def test_a_preflight_may_name_request_headers_on_several_lines(cors_service: ServiceProcess) -> None:
    lines = [("Origin", APP), *PREFLIGHT.items(), ("Access-Control-Request-Headers", "traceparent")]
    preflight = cors_service.client.options("/api/appointments", headers=lines)
    assert names(preflight.headers["access-control-allow-headers"]) == {"authorization", "content-type", "traceparent"}


def test_a_preflight_from_a_listed_origin_may_ask_for_private_network_access(cors_service: ServiceProcess) -> None:
    headers = {"Origin": APP, "Access-Control-Request-Private-Network": "true"} | PREFLIGHT
    assert cors_service.client.options("/api/appointments", headers=headers).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "post", "*"])
def test_a_preflight_for_another_method_is_refused(cors_service: ServiceProcess, method: str) -> None:
    headers = {"Origin": APP} | PREFLIGHT | {"Access-Control-Request-Method": method}
    preflight = cors_service.client.options("/api/appointments", headers=headers)
    assert_problem(preflight, 405, "METHOD_NOT_ALLOWED")
    assert names(preflight.headers["allow"]) == {"GET", "HEAD", "POST"}
    assert not cors_headers(preflight) & {"access-control-allow-methods", "access-control-allow-headers"}


@pytest.mark.parametrize(("origin", "status"), [(APP, 200), (OTHER, 403)])
def test_a_preflight_is_logged_and_counted(cors_service: ServiceProcess, origin: str, status: int) -> None:
    name = f"http_request_duration_seconds_count OPTIONS /api/appointments {status}"
    before = metrics(cors_service.client).get(name, 0)
    headers = {"Origin": origin, "X-Request-Id": f"preflight-{status}"} | PREFLIGHT
    response = cors_service.client.options("/api/appointments", headers=headers)
    assert (response.status_code, response.headers["x-request-id"]) == (status, f"preflight-{status}")
    event = cors_service.wait_for_event("request", request_id=f"preflight-{status}")
    assert (event["method"], event["route"], event["status"]) == ("OPTIONS", "/api/appointments", status)
    assert metrics(cors_service.client)[name] == before + 1


@pytest.mark.parametrize("headers", [{}, {"Origin": APP}, {"Access-Control-Request-Method": "POST"}])
def test_options_that_is_no_preflight_is_not_allowed(cors_service: ServiceProcess, headers: dict[str, str]) -> None:
    response = cors_service.client.options("/api/appointments", headers=headers)
    assert_problem(response, 405, "METHOD_NOT_ALLOWED")
    assert names(response.headers["allow"]) == {"GET", "HEAD", "POST"}


def test_a_listed_origin_may_read_what_the_connection_refuses(cors_service: ServiceProcess) -> None:
    lines = {"Origin": APP, "X-Long": "x" * 40_000}
    response = cors_service.client.get("/api/appointments", headers=lines)
    assert_problem(response, 431, "HEADERS_TOO_LARGE")
    assert response.headers["access-control-allow-origin"] == APP
    assert "Origin" in names(response.headers["vary"])


def test_a_connection_too_many_is_refused_before_its_origin_is_known(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, CORS_ORIGINS=APP, CONNECTIONS_MAX="1") as process:
        with process.connect() as connection:
            answer = connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nvary: Origin\r\n" in answer
        assert [event for event in process.events() if event["level"] == "error"] == []


@pytest.mark.parametrize("origin", [OTHER, "null", f"{APP}.evil.example", "http://app.example", f"{APP}:8443"])
def test_an_unlisted_origin_is_granted_no_access(cors_service: ServiceProcess, organisation: str, origin: str) -> None:
    preflight = cors_service.client.options("/api/appointments", headers={"Origin": origin} | PREFLIGHT)
    assert_problem(preflight, 403, "FOREIGN_ORIGIN")
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


HOST = "api.example:3000"
CROSS_SITE, SAME_SITE, SAME_ORIGIN, NO_SITE = (
    ("Sec-Fetch-Site", site) for site in ("cross-site", "same-site", "same-origin", "none")
)


def write(service: ServiceProcess, organisation: str, path: str, *lines: tuple[str, str]) -> httpx.Response:
    """As `fetch` with `no-cors` sends it: without a Content-Type."""
    item = httpx.Request("POST", "http://x", json=payload(organisation)).content
    host = [] if any(name == "Host" for name, _ in lines) else [("Host", HOST)]
    content = b"[" + item + b"]" if path.endswith("batch") else item
    return service.client.post(path, content=content, headers=[*host, *lines])


@pytest.mark.parametrize("path", ["/api/appointments", "/api/appointments/batch"])
@pytest.mark.parametrize(
    "lines",
    [
        [("Origin", OTHER)],
        [("Origin", OTHER), CROSS_SITE],
        [("Origin", OTHER), NO_SITE],
        [("Origin", "null")],
        [("Origin", "null"), CROSS_SITE],
        [("Origin", "")],
        [("Origin", "http://api.example:3001")],
        [("Origin", "http://api.example:3001"), SAME_SITE],
        [("Origin", "http://www.api.example:3000")],
        [("Origin", "http://api.example:3000.evil.example")],
        [("Origin", "http://evil@api.example:3000")],
        [("Origin", "http://api.example:3000/")],
        [("Origin", "ftp://api.example:3000")],
        [("Origin", "api.example:3000")],
        [("Origin", "http://api.example")],
        [("Origin", "http://api.example:3000"), ("Origin", OTHER)],
        [("Origin", OTHER), ("Origin", "http://api.example:3000")],
        [("Origin", f"http://api.example:3000, {OTHER}")],
        [("Origin", "http://api.example:3000"), CROSS_SITE],
        [CROSS_SITE],
        [SAME_SITE],
        [CROSS_SITE, SAME_ORIGIN],
        [SAME_ORIGIN, CROSS_SITE],
        [("Sec-Fetch-Site", "Cross-Site")],
        [("Origin", "https://api.example:8443"), ("Host", "api.example")],
        [("Origin", "https://[::2]"), ("Host", "[::1]")],
    ],
)
def test_a_page_of_another_origin_may_not_write(
    client: httpx.Client, service: ServiceProcess, organisation: str, path: str, lines: list[tuple[str, str]]
) -> None:
    response = write(service, organisation, path, *lines)
    assert_problem(response, 403, "FOREIGN_ORIGIN")
    assert cors_headers(response) == set()
    assert listed(client, organisation) == []


@pytest.mark.parametrize("path", ["/api/appointments", "/api/appointments/batch"])
@pytest.mark.parametrize(
    "lines",
    [
        [],
        [NO_SITE],
        [("Origin", "http://api.example:3000")],
        [("Origin", "https://API.example:3000"), SAME_ORIGIN],
        [("Origin", "https://api.example:3000"), ("Origin", "https://api.example:3000")],
        [("Origin", "https://api.example"), ("Host", "Api.Example")],
        [("Origin", "https://api.example"), ("Host", "api.example:443")],
        [("Origin", "https://api.example:443"), ("Host", "api.example")],
        [("Origin", "http://api.example"), ("Host", "api.example:80")],
        [("Origin", "http://[::1]:3000"), ("Host", "[::1]:3000")],
        [("Origin", "http://[::80]"), ("Host", "[::80]")],
        [("Origin", "https://public.example"), SAME_ORIGIN],
    ],
)
def test_a_page_of_the_service_itself_may_write(
    service: ServiceProcess, organisation: str, path: str, lines: list[tuple[str, str]]
) -> None:
    response = write(service, organisation, path, *lines)
    assert (response.status_code, cors_headers(response)) == (200, set())
    assert [row["externalId"] for row in listed(service.client, organisation)] == ["a-1"]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([("Origin", APP), CROSS_SITE], 200),
        ([("Origin", APP), SAME_SITE], 200),
        ([("Origin", f"http://{HOST}")], 200),
        ([("Origin", OTHER), CROSS_SITE], 403),
        ([("Origin", "null")], 403),
        ([("Origin", APP), ("Origin", OTHER)], 403),
        ([CROSS_SITE], 403),
    ],
)
def test_a_page_of_a_listed_origin_may_write(
    cors_service: ServiceProcess, organisation: str, lines: list[tuple[str, str]], status: int
) -> None:
    response = write(cors_service, organisation, "/api/appointments", *lines)
    assert response.status_code == status
    assert len(listed(cors_service.client, organisation)) == (status == 200)
    allowed = dict(lines).get("Origin") if lines[0] == ("Origin", APP) and status == 200 else None
    assert response.headers.get("access-control-allow-origin") == allowed


def test_a_foreign_write_is_refused_before_its_body_is_sent(service: ServiceProcess) -> None:
    with service.connect() as connection:
        head = b"POST /api/appointments HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nContent-Type: text/plain\r\n"
        connection.sendall(head + b"Origin: https://other.example\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 403 ")


def test_preflights_and_foreign_writes_are_answered_before_authentication(database_url: str, tmp_path: Path) -> None:
    access = {"AUTH_SECRET": "s" * 32, "AUTH_AUDIENCE": "appointments", "AUTH_ISSUER": "https://issuer.example"}
    with running_service(tmp_path, DATABASE_URL=database_url, CORS_ORIGINS=APP, **access) as process:
        assert process.client.options("/api/appointments", headers={"Origin": APP} | PREFLIGHT).status_code == 200
        foreign = write(process, "o", "/api/appointments", ("Origin", OTHER))
        listed_origin = write(process, "o", "/api/appointments", ("Origin", APP))
    assert_problem(foreign, 403, "FOREIGN_ORIGIN")
    assert_problem(listed_origin, 401, "UNAUTHENTICATED")
    assert listed_origin.headers["access-control-allow-origin"] == APP


def test_all_pages_may_write_if_every_origin_is_allowed(database_url: str, organisation: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, CORS_ORIGINS="*") as process:
        for origin in (OTHER, "null"):
            preflight = process.client.options("/api/appointments", headers={"Origin": origin} | PREFLIGHT)
            response = write(process, organisation, "/api/appointments", ("Origin", origin), CROSS_SITE)
            for each in (preflight, response):
                assert each.status_code == 200
                assert each.headers["access-control-allow-origin"] == "*"
                assert "Origin" in names(each.headers["vary"])


@pytest.mark.parametrize(
    "origins", ["app.example", f"{APP}/", f"{APP}, ftp://x", "https://*.example", "https://App.example"]
)
def test_an_origin_that_no_browser_would_send_stops_the_start(origins: str, tmp_path: Path) -> None:
    environment = clean_environment(CORS_ORIGINS=origins)
    command = [sys.executable, "-m", "service", "serve"]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: Setting CORS_ORIGINS is wrong: expected origins like https://app.example")
