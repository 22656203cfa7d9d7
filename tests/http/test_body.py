"""The body of POST: syntax, media type, size, and what happens to the connection after an error."""

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from tests.http.requests import assert_accepted, assert_problem, listed, payload, post
from tests.processes import ServiceProcess, running_service, wait_until

LIMIT = 1_048_576


def valid_body(org_id: str) -> bytes:
    return httpx.Request("POST", "http://x", json=payload(org_id)).content


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nul",
        b"{'id': 1}",
        b'{"id": "a",}',
        b"[1,",
        b'{"id": "a"} x',
        b'{"x": 01}',
        b'{"x": NaN}',
        b'{"x": Infinity}',
        b'{"x": "\t"}',
        b'{"x": "\\x"}',
        b'{"x": "\xff"}',
        b'{"\xff": 1}',
        b'{"x": "\xed\xa0\x80"}',
        b'{"x": "\\ud800"}',
        b'{"x": "\\udc00 and more"}',
        b'{"x": "\\ud800\\u0041"}',
        b'{"\\ud800": 1}',
        b'"\\ud800"',
        b"\xef\xbb\xbf{}",
        b" \xef\xbb\xbf{}",
        b"{}\xef\xbb\xbf",
        b"{\xef\xbb\xbf}",
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"id": "a"}\x00',
        b"id=a-17&start=2020",
    ],
)
def test_malformed_json_is_rejected(client: httpx.Client, body: bytes) -> None:
    assert_problem(client.post("/api/appointments", content=body), 400, "INVALID_JSON")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-8-sig"])
def test_the_detail_names_the_encoding_that_is_not_accepted(client: httpx.Client, encoding: str) -> None:
    content = valid_body("o").decode().encode(encoding)
    problem = assert_problem(client.post("/api/appointments", content=content), 400, "INVALID_JSON")
    assert ("UTF-16" if "utf-8" not in encoding else "begins with a byte order mark") in problem["detail"]


@pytest.mark.parametrize("escaped", [False, True])
def test_a_byte_order_mark_in_a_string_is_a_character_like_any_other(
    client: httpx.Client, organisation: str, escaped: bool
) -> None:
    """Also at the beginning of the string, and in members that are ignored."""
    odd = "\ufeff" + organisation + "\ufeff"
    content = json.dumps(payload(odd, id=odd) | {"\ufeff": "\ufeff"}, ensure_ascii=escaped).encode()
    assert_accepted(client.post("/api/appointments", content=content))
    assert_accepted(client.post("/api/appointments", content=b" " + content), "ignored-stale")
    [row] = listed(client, odd)
    assert (row["externalId"], row["orgId"]) == (odd, odd)
    assert_problem(client.post("/api/appointments", content=content.replace(b'"2020-10-10 10:00"', b"1")),
                   400, "INVALID_DATE_FORMAT", ["start"])  # fmt: skip


@pytest.mark.parametrize("body", [b"[]", b"1", b'"a"', b"null", b"true", b" [{}] ", b"1e400"])
def test_json_other_than_an_object_is_an_invalid_request(client: httpx.Client, body: bytes) -> None:
    assert_problem(client.post("/api/appointments", content=body), 400, "INVALID_REQUEST", [""])


def test_escapes_and_whitespace_are_accepted(client: httpx.Client, organisation: str) -> None:
    body = valid_body(organisation).replace(b'"id"', b'\r\n\t "\\u0069d"').replace(b"a-1", b"\\ud83d\\ude00\\u00e9")
    assert_accepted(client.post("/api/appointments", content=b"\n " + body + b" \r\n"))
    assert listed(client, organisation)[0]["externalId"] == "😀é"


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;x=y",
        "application/json; charset=latin-1",
        "application/json;",
        'application/json; profile="a, text/plain"',
        "application/cloudevents+json",
        "application/vnd.api+json ; a=b",
    ],
)
def test_json_media_types_are_accepted(client: httpx.Client, organisation: str, media_type: str | None) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    assert_accepted(client.post("/api/appointments", content=valid_body(organisation), headers=headers))


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/xml",
        "json",
        "text/json",
        "+json",
        "application/json/x",
        "",
        "application/json, text/plain",
        "application/json;a=b, text/plain",
        'application/json;a="b',
    ],
)
def test_other_media_types_are_rejected(client: httpx.Client, organisation: str, media_type: str) -> None:
    response = client.post("/api/appointments", content=valid_body(organisation), headers={"Content-Type": media_type})
    assert_problem(response, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert listed(client, organisation) == []


APPOINTMENTS, BATCH = "/api/appointments", "/api/appointments/batch"


@pytest.mark.parametrize("path", [APPOINTMENTS, BATCH])
@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["application/json", "application/json"], 200),
        (["application/json", "text/plain"], 415),
        (["text/plain", "application/json"], 415),
        (["application/json;a=b", "application/json;a=c"], 415),
    ],
)
def test_different_content_types_are_rejected(
    client: httpx.Client, organisation: str, path: str, lines: list[str], status: int
) -> None:
    body = valid_body(organisation) if path == APPOINTMENTS else b"[" + valid_body(organisation) + b"]"
    response = client.post(path, content=body, headers=[("Content-Type", line) for line in lines])
    assert response.status_code == status
    assert len(listed(client, organisation)) == (status == 200)


@pytest.mark.parametrize("path", [APPOINTMENTS, BATCH])
@pytest.mark.parametrize(
    "codings",
    [["gzip"], ["x-gzip"], ["br"], ["identity, gzip"], ["identity", "deflate"], ["zstd", ""], ["none"], ['"']],
)
def test_a_body_with_a_content_coding_is_rejected_before_it_is_sent(
    service: ServiceProcess, path: str, codings: list[str]
) -> None:
    lines = "".join(f"Content-Encoding: {coding}\r\n" for coding in codings)
    with service.connect() as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: 5\r\n\r\n".encode())
        response = HTTPResponse(connection)
        response.begin()
        assert (response.status, json.load(response)["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
        assert response.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("path", [APPOINTMENTS, BATCH])
@pytest.mark.parametrize("codings", [["identity"], ["Identity"], [""], ["identity, identity"], ["identity", ",", ""]])
def test_the_identity_coding_is_accepted(
    client: httpx.Client, organisation: str, path: str, codings: list[str]
) -> None:
    body = valid_body(organisation) if path == APPOINTMENTS else b"[" + valid_body(organisation) + b"]"
    response = client.post(path, content=body, headers=[("Content-Encoding", coding) for coding in codings])
    assert response.status_code == 200
    assert len(listed(client, organisation)) == 1


def test_a_body_in_another_charset_is_rejected(client: httpx.Client, organisation: str) -> None:
    body = json.dumps(payload(organisation, id="\xe9"), ensure_ascii=False).encode("latin-1")
    headers = {"Content-Type": "application/json; charset=latin-1"}
    assert_problem(client.post("/api/appointments", content=body, headers=headers), 400, "INVALID_JSON")


def test_a_body_of_exactly_the_size_limit_is_accepted(client: httpx.Client, organisation: str) -> None:
    assert_accepted(client.post("/api/appointments", content=valid_body(organisation).ljust(LIMIT)))


def test_an_oversized_body_is_rejected_and_the_connection_stays_open(client: httpx.Client, organisation: str) -> None:
    response = client.post("/api/appointments", content=valid_body(organisation).ljust(LIMIT + 1))
    assert_problem(response, 413, "PAYLOAD_TOO_LARGE")
    following = post(client, organisation)
    assert_accepted(following)
    assert local_address(following) == local_address(response)


def local_address(response: httpx.Response) -> object:
    """The address of the client's end of the connection."""
    return response.extensions["network_stream"].get_extra_info("client_addr")


def test_an_oversized_chunked_body_is_rejected(client: httpx.Client, organisation: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield valid_body(organisation)
        for _ in range(40):
            yield b" " * 65_536

    response = client.post("/api/appointments", content=chunks())
    assert_problem(response, 413, "PAYLOAD_TOO_LARGE")
    assert listed(client, organisation) == []


def test_an_oversized_content_length_is_rejected_before_the_body_is_sent(service: ServiceProcess) -> None:
    with service.connect() as connection:
        connection.sendall(b"POST /api/appointments HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert read_problem(connection) == (413, "PAYLOAD_TOO_LARGE")


def read_problem(connection: socket.socket) -> tuple[int, str]:
    """The status and the problem code of the next response."""
    response = HTTPResponse(connection)
    response.begin()
    assert response.headers["Content-Type"] == "application/problem+json"
    return response.status, json.load(response)["code"]


def test_a_client_that_disconnects_mid_body_writes_nothing(service: ServiceProcess, organisation: str) -> None:
    with service.connect() as connection:
        body = valid_body(organisation)
        head = f"POST /api/appointments HTTP/1.1\r\nHost: x\r\nX-Request-Id: {organisation}\r\n"
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
    event = service.wait_for_event("request", request_id=organisation)
    assert (event["status"], event["level"]) == (499, "debug")
    assert listed(service.client, organisation) == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/appointments", (413, "PAYLOAD_TOO_LARGE")),
        ("/api/appointments?org=x", (400, "INVALID_REQUEST")),
        ("/nothing", (404, "NOT_FOUND")),
        ("/livez", (405, "METHOD_NOT_ALLOWED")),
    ],
)
@pytest.mark.parametrize(
    ("closing", "chunked"),
    [
        (b"HTTP/1.1\r\nConnection: close", True),
        (b"HTTP/1.1\r\nConnection: close", False),
        (b"HTTP/1.0", False),
        (b"HTTP/1.0\r\nConnection: keep-alive", False),
    ],
)
def test_an_error_can_be_read_even_if_the_connection_closes(
    service: ServiceProcess, path: str, expected: tuple[int, str], chunked: bool, closing: bytes
) -> None:
    """The whole body is sent before the response is read, as http.client does."""
    body = b" " * 20_000_000
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    with service.connect() as connection:
        connection.sendall(b"POST %s %s\r\nHost: x\r\n" % (path.encode(), closing))
        connection.sendall(framing + b"\r\n\r\n")
        connection.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        assert read_problem(connection) == expected
        assert connection.recv(1) == b""


def test_a_lingering_close_has_a_time_limit(database_url: str, tmp_path: Path) -> None:
    with (
        running_service(tmp_path, DATABASE_URL=database_url, LINGER_MS_MAX="100") as service,
        service.connect() as connection,
    ):
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        connection.sendall(b"Content-Length: 1000\r\n\r\nand no more")
        assert read_problem(connection) == (404, "NOT_FOUND")
        assert connection.recv(1) == b""
        wait_until(lambda: is_reset(connection), seconds=4)  # the default of LINGER_MS_MAX is 5 s


def is_reset(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


def test_the_logged_duration_does_not_include_the_lingering_close(service: ServiceProcess, organisation: str) -> None:
    with service.connect() as connection:
        head = f"POST /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: {organisation}\r\n"
        connection.sendall(head.encode() + b"Content-Length: 1000\r\n\r\nand no more")
        assert read_problem(connection) == (404, "NOT_FOUND")
        event = service.wait_for_event("request", request_id=organisation)
    assert event["status"] == 404
    assert event["ms"] < 4_000  # the service waits 5 s for the rest of the body


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"foo\r\nUpgrade: bar"])
@pytest.mark.parametrize("pieces", [1, 2, 60])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize(
    "connection_lines",
    [
        b"Connection: Upgrade, HTTP2-Settings",
        b"Connection: keep-alive\r\nConnection: Upgrade",
        b"connection: UPGRADE\r\nConnection: keep-alive",
        b"Connection: HTTP2-Settings, upgrade , keep-alive\r\nConnection:",
    ],
)
def test_an_upgrade_offer_is_ignored(
    service: ServiceProcess, organisation: str, connection_lines: bytes, chunked: bool, offer: bytes, pieces: int
) -> None:
    """The body and pipelined requests after it are still read, however the bytes are split."""
    body = valid_body(organisation)
    head = b"POST /api/appointments HTTP/1.1\r\nHost: x\r\n%s\r\n" % connection_lines
    settings = b"Upgrade: %s\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n" % offer
    if chunked:
        first = head + settings + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        first = head + settings + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    request = first + first + last
    with service.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), -(-len(request) // pieces)):
            connection.sendall(request[start : start + -(-len(request) // pieces)])
            time.sleep(0.001)  # lets the service read the pieces one by one; no assertion depends on it
        answers = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b'{"status":"ok"}') == 2
    assert answers.count(b'{"status":"ignored-stale"}') == 1
    assert listed(service.client, organisation)[0]["version"] == 1


def test_a_content_length_with_many_leading_zeros_is_read(service: ServiceProcess, organisation: str) -> None:
    body = valid_body(organisation)
    head = b"POST /api/appointments HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    with service.connect() as connection:
        connection.sendall(head + b"Content-Length: " + b"0" * 5_000 + b"%d\r\n\r\n" % len(body) + body)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'{"status":"ok"}')
