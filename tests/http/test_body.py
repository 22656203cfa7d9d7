"""The body of POST: JSON or not, of which type, how large."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.http.requests import assert_accepted, assert_problem, listed, payload, post
from tests.processes import ServiceProcess, running_service

LIMIT = 1_048_576


def sound(org_id: str) -> bytes:
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
        b'{"x": "\xef\xbb\xbf"}',
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"id": "a"}\x00',
        b"id=a-17&start=2020",
    ],
)
def test_what_is_no_json_is_refused(client: httpx.Client, body: bytes) -> None:
    assert_problem(client.post("/api/appointments", content=body), 400, "INVALID_JSON")


@pytest.mark.parametrize("body", [b"[]", b"1", b'"a"', b"null", b"true", b" [{}] ", b"1e400"])
def test_json_that_is_no_object_is_an_invalid_request(client: httpx.Client, body: bytes) -> None:
    assert_problem(client.post("/api/appointments", content=body), 400, "INVALID_REQUEST", [""])


def test_escapes_and_white_space_are_json(client: httpx.Client, organisation: str) -> None:
    body = sound(organisation).replace(b'"id"', b'\r\n\t "\\u0069d"').replace(b"a-1", b"\\ud83d\\ude00\\u00e9")
    assert_accepted(client.post("/api/appointments", content=b"\n " + body + b" \r\n"))
    assert listed(client, organisation)[0]["externalId"] == "😀é"


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;x=y",
        "application/cloudevents+json",
        "application/vnd.api+json ; a=b",
    ],
)
def test_json_media_types_are_taken(client: httpx.Client, organisation: str, media_type: str | None) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    assert_accepted(client.post("/api/appointments", content=sound(organisation), headers=headers))


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
    ],
)
def test_other_media_types_are_refused(client: httpx.Client, organisation: str, media_type: str) -> None:
    response = client.post("/api/appointments", content=sound(organisation), headers={"Content-Type": media_type})
    assert_problem(response, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert listed(client, organisation) == []


def test_a_body_of_exactly_the_limit_is_taken(client: httpx.Client, organisation: str) -> None:
    assert_accepted(client.post("/api/appointments", content=sound(organisation).ljust(LIMIT)))


def test_a_larger_body_is_refused_and_the_connection_lives_on(client: httpx.Client, organisation: str) -> None:
    response = client.post("/api/appointments", content=sound(organisation).ljust(LIMIT + 1))
    assert_problem(response, 413, "PAYLOAD_TOO_LARGE")
    assert_accepted(post(client, organisation))


def test_a_larger_body_without_a_length_is_refused(client: httpx.Client, organisation: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield sound(organisation)
        for _ in range(40):
            yield b" " * 65_536

    response = client.post("/api/appointments", content=chunks())
    assert_problem(response, 413, "PAYLOAD_TOO_LARGE")
    assert listed(client, organisation) == []


def test_a_declared_length_over_the_limit_is_refused_before_the_body(service: ServiceProcess) -> None:
    with service.connect() as connection:
        connection.sendall(b"POST /api/appointments HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_leaves_in_the_middle_of_its_body_writes_nothing(
    service: ServiceProcess, organisation: str
) -> None:
    with service.connect() as connection:
        body = sound(organisation)
        head = f"POST /api/appointments HTTP/1.1\r\nHost: x\r\nX-Request-Id: {organisation}\r\n"
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
    event = service.wait_for_event("request", request_id=organisation)
    assert (event["status"], event["level"]) == (499, "debug")
    assert listed(service.client, organisation) == []


@pytest.mark.parametrize("path", ["/api/appointments", "/api/appointments?org=x", "/nothing", "/livez"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_refusal_can_be_read_even_where_the_connection_closes(
    service: ServiceProcess, path: str, chunked: bool
) -> None:
    """All of the body is sent before the answer is read, as http.client does."""
    body = b" " * 20_000_000
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    with service.connect() as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" % path.encode())
        connection.sendall(framing + b"\r\n\r\n")
        connection.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer[9:12] in (b"400", b"404", b"405", b"413")
    assert answer.endswith(b"}")


def test_a_closing_connection_does_not_linger_for_ever(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, LINGER_MS_MAX="100") as service:
        with service.connect() as connection:
            connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
            connection.sendall(b"Content-Length: 1000\r\n\r\nand no more")
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"foo"])
@pytest.mark.parametrize("pieces", [1, 2, 60])
def test_an_offer_to_upgrade_is_ignored(service: ServiceProcess, organisation: str, offer: bytes, pieces: int) -> None:
    """However the request is cut, with its body and with what is pipelined behind it."""
    body = sound(organisation)
    head = b"POST /api/appointments HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    settings = b"Upgrade: %s\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n" % offer
    first = head + settings + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    request = first + first + last
    with service.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), -(-len(request) // pieces)):
            connection.sendall(request[start : start + -(-len(request) // pieces)])
            time.sleep(0.001)
        answers = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b'{"status":"ok"}') == 2
    assert answers.count(b'{"status":"ignored-stale"}') == 1
    assert listed(service.client, organisation)[0]["version"] == 1
