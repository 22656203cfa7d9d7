"""Requests and responses as bytes on a socket, for clients that do not follow HTTP."""

import re
import socket

import msgspec

from tests.http.requests import payload

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/appointments HTTP/1.1\r\nHost: x\r\n"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection, or its reset."""
    received = b""
    try:
        while piece := connection.recv(65_536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def write_of(organisation: str, headers: bytes = b"", **changes: str) -> bytes:
    """A complete POST of a valid appointment."""
    body = msgspec.json.encode(payload(organisation, **changes))
    return POST + headers + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def assert_refused(answer: bytes, status: int, code: str) -> None:
    """A complete problem document that announces the end of the connection."""
    assert assert_problem_bytes(answer, status, code)[b"connection"] == b"close"


def assert_problem_bytes(answer: bytes, status: int, code: str) -> dict[bytes, bytes]:
    """Check body, status and headers of the one response in `answer`; returns the headers in lower case."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"x-request-id"]
    assert headers.get(b"retry-after") == (b"1" if status == 503 else None)
    assert int(headers[b"content-length"]) == len(body)
    problem = msgspec.json.decode(body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["detail"]
    return headers
