"""Malformed and unusual HTTP: each request gets a proper answer, and the service keeps running."""

import asyncio
import re
import socket
import struct
from random import Random

import pytest
import uvloop

from service.web.joined_writes import JoinedWrites
from tests.hostile.raw_http import GET, POST, STATUS, assert_refused, read_all, write_of
from tests.http.requests import listed
from tests.processes import ServiceProcess, wait_until

HOST = b"Host: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n"
BODY = b'{"id":"a"}'
UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
BYTE_BY_BYTE = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)

REFUSED = {
    "a chunk size that is not a number": POST + CHUNKED + b"\r\nxyz\r\n{}\r\n0\r\n\r\n",
    "a negative chunk size": POST + CHUNKED + b"\r\n-1\r\n{}\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": POST + CHUNKED + b"\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than its size": POST + CHUNKED + b"\r\n1\r\n{}\r\n0\r\n\r\n",
    "two lengths": POST + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
    "two equal lengths": POST + LENGTH + LENGTH + b"\r\n" + BODY,
    "a list of lengths": POST + b"Content-Length: 10, 10\r\n\r\n" + BODY,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length with a sign": POST + b"Content-Length: +10\r\n\r\n" + BODY,
    "a length in hexadecimal": POST + b"Content-Length: 0xa\r\n\r\n" + BODY,
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\n" + BODY,
    "a length before chunked coding": POST + LENGTH + CHUNKED + b"\r\n0\r\n\r\n",
    "a length after chunked coding": POST + CHUNKED + LENGTH + b"\r\n0\r\n\r\n",
    "chunked is not the last coding": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "NUL in the path": b"GET /api/appointments\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in a header name": GET + b"X\x00Y: 1\r\n\r\n",
    "NUL in a header value": GET + b"X: a\x00b\r\n\r\n",
    "a non-ASCII letter in the path": "GET /é HTTP/1.1\r\n".encode() + HOST + b"\r\n",
    "a space in a header name": GET + b"X Y: 1\r\n\r\n",
    "a space before the colon": GET + b"X : 1\r\n\r\n",
    "a header without a colon": GET + b"nonsense\r\n\r\n",
    "a header without a name": GET + b": 1\r\n\r\n",
    "a folded header": GET + b"X: 1\r\n  2\r\n\r\n",
    "a carriage return in a header": GET + b"X: a\rb\r\n\r\n",
    "an unknown method": b"BREW /livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in lower case": b"get /livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "an unknown version": b"GET /livez HTTP/9.9\r\n" + HOST + b"\r\n",
    "HTTP/2 by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9,
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(range(200)),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a header before the request line": b"Host: x\r\nGET / HTTP/1.1\r\n\r\n",
    "only NULs": b"\x00" * 1000,
    "no spaces": b"GET/livezHTTP/1.1\r\n\r\n",
    "bare LF line endings": b"GET /livez HTTP/1.1\nHost: x\n\n",
    "no path": b"GET http://other.example HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT other.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an impossible port": b"GET http://x:99999999/livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "an unterminated IPv6 authority": b"GET http://[::1/livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "a length without digits": POST + b"Content-Length: \r\n\r\n",
    "a length with a space inside": POST + b"Content-Length: 1 0\r\n\r\n" + BODY,
    "a fractional length": POST + b"Content-Length: 10.0\r\n\r\n" + BODY,
    "a length and an unknown coding": POST + LENGTH + b"Transfer-Encoding: gzip\r\n\r\n" + BODY,
    "chunked is not on the last line": POST + CHUNKED + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "a coding that only ends in chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "another coding before chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "another coding on a line before chunked": POST + b"Transfer-Encoding: gzip\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": POST.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n",
    "an empty coding": POST + b"Transfer-Encoding:\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "an Upgrade with two framings": POST + UPGRADE + CHUNKED + LENGTH + b"\r\n0\r\n\r\n",
    "an Upgrade with an unknown coding": POST + UPGRADE + b"Transfer-Encoding: gzip\r\n\r\n" + BODY,
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "no Host, but an absolute URI": b"GET http://x/livez HTTP/1.1\r\n\r\n",
    "no Host, on a route that does not exist": b"DELETE /nothing HTTP/1.1\r\n\r\n",
    "no Host, and a body": POST.replace(HOST, b"") + LENGTH + b"\r\n" + BODY,
    "no Host, and an Upgrade": POST.replace(HOST, b"") + UPGRADE + LENGTH + b"\r\n" + BODY,
    "two Host headers": GET + b"Accept: */*\r\nhost: y\r\n\r\n",
    "two equal Host headers": GET + HOST + b"\r\n",
    "two Host headers in HTTP/1.0": b"GET /livez HTTP/1.0\r\n" + HOST + HOST + b"\r\n",
    "two Host headers, one of them empty": GET + b"Host:\r\n\r\n",
    "two hosts in one header": GET.replace(b"x\r\n", b"x, y\r\n") + b"\r\n",
    "two hosts without a space": GET.replace(b"x\r\n", b"x,y\r\n") + b"\r\n",
    "a space in the host": GET.replace(b"x\r\n", b"x y\r\n") + b"\r\n",
    "a path in the host": GET.replace(b"x\r\n", b"x/y\r\n") + b"\r\n",
    "a user in the host": GET.replace(b"x\r\n", b"me@x\r\n") + b"\r\n",
    "a scheme in the host": GET.replace(b"x\r\n", b"http://x\r\n") + b"\r\n",
    "a port that is not a number": GET.replace(b"x\r\n", b"x:http\r\n") + b"\r\n",
    "an unterminated IPv6 host": GET.replace(b"x\r\n", b"[::1\r\n") + b"\r\n",
    "a non-ASCII host": GET.replace(b"x\r\n", "é\r\n".encode()) + b"\r\n",
    "an invalid escape in the host": GET.replace(b"x\r\n", b"%zz\r\n") + b"\r\n",
    "HTTP/2.0 without its preface": b"GET /livez HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/1.2": b"GET /livez HTTP/1.2\r\n" + HOST + b"\r\n",
}
ANSWERED = {
    "an absolute URI": (b"GET http://other.example/livez HTTP/1.1\r\n" + HOST + b"\r\n", b"200"),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "HTTP/0.9": (b"GET /livez\r\n\r\n", b"200"),
    "a path of slashes": (b"GET //////// HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "path traversal": (b"GET /api/../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "path traversal with escapes": (b"GET /api/docs/%2e%2e%2f%2e%2e/Makefile HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "invalid escapes": (b"GET /api/%zz%c3%28 HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "an escaped NUL": (b"GET /api/appointments?org=%00 HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
    "an empty host": (GET.replace(b"x\r\n", b"\r\n") + b"\r\n", b"200"),
    "a host with a port": (GET.replace(b"x\r\n", b"a_b-c.example:3000\r\n") + b"\r\n", b"200"),
    "a host with an empty port": (GET.replace(b"x\r\n", b"x:\r\n") + b"\r\n", b"200"),
    "an IPv6 host": (GET.replace(b"x\r\n", b"[::1]:3000\r\n") + b"\r\n", b"200"),
    "an escaped host": (GET.replace(b"x\r\n", b"%C3%A9\r\n") + b"\r\n", b"200"),
    "white space around the host": (GET.replace(b"x\r\n", b"\t x \t\r\n") + b"\r\n", b"200"),
    "HTTP/1.0 without a host": (b"GET /livez HTTP/1.0\r\n\r\n", b"200"),
    "chunks of one byte": (POST + CHUNKED + b"\r\n" + BYTE_BY_BYTE + b"0\r\n\r\n", b"400"),
    "a chunk with an extension": (POST + CHUNKED + b'\r\n2;a="b"\r\n{}\r\n0\r\n\r\n', b"400"),
    "trailers": (POST + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nContent-Length: 7\r\nX-Request-Id: late\r\n\r\n", b"400"),
    "a GET with a body": (GET + LENGTH + b"\r\n" + BODY, b"200"),
    "an Upgrade with a body": (POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + LENGTH + b"\r\n" + BODY, b"400"),
    "an unknown expectation": (GET + b"Expect: miracles\r\n\r\n", b"200"),
    "empty lines before the request": (b"\r\n\r\n" + GET + b"\r\n", b"200"),
    "an unsupported content coding": (POST + b"Content-Encoding: gzip\r\n" + LENGTH + b"\r\n" + BODY, b"415"),
}  # fmt: skip


def assert_alive(service: ServiceProcess) -> None:
    with service.connect() as connection:
        connection.sendall(GET + CLOSE + b"\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
def test_malformed_http_is_a_400_and_closes_the_connection(service: ServiceProcess, request_: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(request_)
        answer = read_all(connection)
    assert_refused(answer, 400, "INVALID_HTTP")
    assert_alive(service)


@pytest.mark.parametrize(("request_", "status"), ANSWERED.values(), ids=ANSWERED)
def test_unusual_requests_are_answered(service: ServiceProcess, request_: bytes, status: bytes) -> None:
    line, _, rest = request_.lstrip().partition(b"\r\n")
    with service.connect() as connection:
        connection.sendall(request_[: -len(line + rest) - 2] + line + b"\r\n" + CLOSE + rest)
        answer = read_all(connection)
    assert STATUS.findall(answer) == [status], answer
    if status == b"200":
        assert answer.endswith(b'\r\n\r\n{"status":"ok"}'), answer
    else:
        assert b"\r\ncontent-type: application/problem+json\r\n" in answer
        assert b'"status":%s,' % status in answer
    assert_alive(service)


def test_any_number_of_pipelined_upgrade_offers_is_answered(service: ServiceProcess) -> None:
    offers = 1_000
    with service.connect() as connection:
        connection.sendall((GET + UPGRADE + b"\r\n") * offers + GET + CLOSE + b"\r\n")
        assert STATUS.findall(read_all(connection)) == [b"200"] * (offers + 1)


def test_garbage_after_a_request_does_not_withhold_its_answer(service: ServiceProcess, organisation: str) -> None:
    with service.connect() as connection:
        connection.sendall(write_of(organisation) + b"\x00garbage\r\n\r\n")
        answer = read_all(connection)
    assert STATUS.findall(answer) == [b"200", b"400"], answer
    assert [row["externalId"] for row in listed(service.client, organisation)] == ["a-1"]


@pytest.mark.parametrize(
    "later",
    [POST + CHUNKED + b"\r\nxyz\r\n", b"\0\r\n", b"GET /livez HTTP/1.1\r\n\r\n" + GET + b"\r\n"],
    ids=["body", "head", "host"],
)
@pytest.mark.parametrize("writes", [1, 2, 5])
def test_a_malformed_pipelined_request_is_refused_after_the_earlier_answers(
    service: ServiceProcess, organisation: str, writes: int, later: bytes
) -> None:
    """And nothing behind it is read."""
    with service.connect() as connection:
        connection.sendall(distinct_writes(organisation, writes) + later)
        answer = read_all(connection)
    assert STATUS.findall(answer) == [b"200"] * writes + [b"400"], answer
    assert_refused(answer[answer.rindex(b"HTTP/1.1 400") :], 400, "INVALID_HTTP")
    assert len(listed(service.client, organisation)) == writes


@pytest.mark.parametrize(
    "closing",
    [CLOSE, b"Connection: keep-alive\r\n" + CLOSE, CLOSE + b"Connection: keep-alive\r\n", b"connection: x, CLOSE\r\n"],
)
def test_no_request_after_the_last_one_is_processed(service: ServiceProcess, organisation: str, closing: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(write_of(organisation, closing) + write_of(organisation, id="late") + b"\0")
        answer = read_all(connection)
    assert STATUS.findall(answer) == [b"200"], answer
    assert b"\r\nconnection: close\r\n" in answer
    assert [row["externalId"] for row in listed(service.client, organisation)] == ["a-1"]


@pytest.mark.parametrize(
    "expectation", [b"100-continue", b"100-Continue ", b"other, 100-continue", b"other\r\nExpect: 100-continue"]
)
def test_the_body_is_asked_for_if_the_client_waits_for_that(
    service: ServiceProcess, organisation: str, expectation: bytes
) -> None:
    head, separator, body = write_of(organisation, CLOSE + b"Expect: " + expectation + b"\r\n").partition(b"\r\n\r\n")
    with service.connect() as connection:
        connection.sendall(head + separator)
        assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert STATUS.findall(read_all(connection)) == [b"200"]


def test_http_1_0_has_no_interim_answers(service: ServiceProcess, organisation: str) -> None:
    request = write_of(organisation, b"Expect: 100-continue\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
    with service.connect() as connection:
        connection.sendall(request)
        assert STATUS.findall(read_all(connection)) == [b"200"]


def test_a_request_answered_before_its_body_turns_out_malformed_gets_one_answer(service: ServiceProcess) -> None:
    with service.connect() as connection:
        connection.sendall(POST + b"Content-Type: text/plain\r\n" + CHUNKED + b"\r\n")
        answer = connection.recv(65_536)
        connection.sendall(b"xyz\r\n")
        answer += read_all(connection)
    assert STATUS.findall(answer) == [b"415"], answer


def test_a_write_is_committed_although_the_client_half_closes_its_connection(
    service: ServiceProcess, organisation: str
) -> None:
    with service.connect() as connection:
        connection.sendall(write_of(organisation, CLOSE))
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert STATUS.findall(answer) in ([b"200"], [])  # the server may take a half-close for a disconnect
    wait_until(lambda: len(listed(service.client, organisation)) == 1)


@pytest.mark.parametrize("end", range(0, 301, 20))
def test_a_connection_reset_within_a_request_writes_nothing(
    service: ServiceProcess, organisation: str, end: int
) -> None:
    write = write_of(organisation)
    assert len(write) > 240
    with service.connect() as connection:
        connection.sendall(write[:end])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    assert_alive(service)
    if end < len(write):
        assert listed(service.client, organisation) == []


def test_300_pipelined_writes_are_answered_in_order(service: ServiceProcess, organisation: str) -> None:
    with service.connect() as connection:
        connection.sendall(distinct_writes(organisation, 300) + GET + CLOSE + b"\r\n")
        answer = read_all(connection)
    assert STATUS.findall(answer) == [b"200"] * 301
    assert re.findall(rb"x-request-id: r(\d+)\r", answer) == [b"%d" % number for number in range(300)]
    assert len(listed(service.client, organisation)) == 300


def distinct_writes(organisation: str, count: int) -> bytes:
    """Pipelined writes of appointments in successive hours, with request ids r0, r1 and so on."""
    requests = []
    for number in range(count):
        hour = f"2020-10-{number // 24 + 1:02d} {number % 24:02d}"
        times = {"start": f"{hour}:00", "end": f"{hour}:30"}
        requests.append(write_of(organisation, b"X-Request-Id: r%d\r\n" % number, id=f"{number}", **times))
    return b"".join(requests)


def test_writing_to_an_aborted_transport_is_not_an_error() -> None:
    """A client may reset its connection just before its last answer is written."""

    class Closing(asyncio.Protocol):
        lost = asyncio.Event()

        def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's names
            self.lost.set()

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(Closing, ours)
        joined = JoinedWrites(transport, lambda: False)
        transport.abort()
        await asyncio.wait_for(protocol.lost.wait(), 10)
        joined.write(b"late")
        joined.write_eof()
        with theirs:
            assert theirs.recv(10) == b""

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("seed", range(20))
def test_mutated_requests_never_cause_a_server_error(service: ServiceProcess, seed: int) -> None:
    """Valid requests with some bytes replaced, removed or inserted."""
    random = Random(seed)
    answered = 0
    valid = [POST + LENGTH + b"\r\n" + BODY, GET + b"\r\n", POST + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n"]
    for _ in range(20):
        request = bytearray(random.choice(valid) * random.randint(1, 3))
        for _ in range(random.randint(1, 6)):
            at = random.randrange(len(request))
            request[at : at + random.randint(0, 3)] = random.randbytes(random.randint(0, 3))
        with service.connect() as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            statuses = {int(status) for status in STATUS.findall(read_all(connection))}
        answered += bool(statuses)
        assert max(statuses, default=0) < 500, bytes(request)
    assert answered > 10  # most of them, although some mutations leave a request incomplete
    assert_alive(service)
