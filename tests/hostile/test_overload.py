"""Load shedding: writes beyond the limit are refused at once, as complete problem documents."""

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import msgspec
import psycopg
import pytest

from tests.databases import assert_invariants, new_database, query
from tests.hostile.raw_http import assert_problem_bytes, assert_refused, read_all
from tests.http.requests import assert_accepted, assert_problem, listed, payload, post
from tests.processes import ServiceProcess, running_service, wait_until

WRITES_MAX = 4
LIMITS = {
    "WRITES_WAITING_MAX": str(WRITES_MAX),
    "WRITE_WAIT_MS_MAX": "60000",
    "STATEMENT_MS_MAX": "60000",
    "BODY_MS_MAX": "1000",
    "POOL_CONNECTIONS_MAX": "1",
    "POOL_WAITING_MAX": str(WRITES_MAX),  # by bucket, each write may wait for a connection
    "POOL_WAIT_MS_MAX": "60000",
}
BODY = msgspec.json.encode(payload("excess"))
POST = b"POST /api/appointments HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\nContent-Length: %d\r\n" % len(BODY)


@pytest.fixture(scope="module")
def small(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with (
        new_database(server_url, template) as url,
        running_service(tmp_path_factory.mktemp("small"), DATABASE_URL=url, **LIMITS) as started,
    ):
        yield started
        assert [event for event in started.events() if event["level"] in ("error", "critical")] == []


@contextmanager
def full(service: ServiceProcess) -> Iterator[None]:
    """While inside, the limit of waiting writes is reached, because the table is locked. Afterwards they succeed."""
    with httpx.Client(base_url=service.url, timeout=60) as client, ThreadPoolExecutor(WRITES_MAX) as executor:
        # The gauge is sampled once a second, so it may still show the writes of an earlier test.
        wait_until(lambda: "writer_waiting_writes 0.0" in client.get("/metrics").text)
        with psycopg.connect(service.database_url) as session:
            session.execute("lock table appointments in exclusive mode")
            answers = [executor.submit(post, client, uuid4().hex) for _ in range(WRITES_MAX)]
            wait_until(lambda: f"writer_waiting_writes {WRITES_MAX}.0" in client.get("/metrics").text)
            yield
        for answer in answers:
            assert_accepted(answer.result(60))


def refusals(client: httpx.Client) -> int:
    name = 'http_request_duration_seconds_count{method="POST",route="/api/appointments",status="503"} '
    lines = client.get("/metrics").text.splitlines()
    return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


def test_excess_writes_are_refused_and_their_connection_stays_open(small: ServiceProcess) -> None:
    before = refusals(small.client)
    with full(small):
        for request_id in ("mine", "not valid"):
            response = small.client.post(
                "/api/appointments", json=payload("excess"), headers={"X-Request-Id": request_id}
            )
            assert_problem(response, 503, "OVERLOADED")
            assert response.headers["retry-after"] == "1"
            assert response.headers["date"]
            assert "connection" not in response.headers
            assert (response.headers["x-request-id"] == request_id) == (request_id == "mine")
        assert small.client.get("/livez").status_code == 200  # over the same connection
    assert refusals(small.client) == before + 2
    assert listed(small.client, "excess") == []
    assert_accepted(post(small.client, "excess", cancelled=True))
    assert_invariants(small.database_url)


def test_refused_writes_share_a_log_line(small: ServiceProcess) -> None:
    def lines(event: str) -> list[dict[str, object]]:
        return [line for line in small.events() if line["event"] == event]

    requests, reports = len(lines("request")), len(lines("too many writes"))
    with full(small):
        for _ in range(50):
            assert post(small.client, "excess").status_code == 503
        wait_until(lambda: sum(int(str(line["refused"])) for line in lines("too many writes")[reports:]) >= 50)
    assert len(lines("too many writes")) - reports < 10
    assert len(lines("request")) == requests


@pytest.mark.parametrize("allowed", ["", "https://app.example"])
def test_an_origin_does_not_lead_around_load_shedding(database_url: str, tmp_path: Path, allowed: str) -> None:
    """A body that is refused unread cannot be found malformed."""
    with running_service(tmp_path, DATABASE_URL=database_url, **LIMITS, CORS_ORIGINS=allowed) as service, full(service):
        for origin in ("https://app.example", "https://other.example", "null", service.url):
            response = service.client.post("/api/appointments", content=b"{", headers={"Origin": origin})
            assert_problem(response, 503, "OVERLOADED")
            assert response.headers.get("access-control-allow-origin") == (origin if origin == allowed else None)
            assert response.headers.get("vary") == ("Origin" if allowed else None)
        with service.connect() as connection:
            writes = [
                POST + b"Origin: %s\r\n\r\n" % origin + BODY
                for origin in (b"https://app.example", b"https://other.example")
            ]
            connection.sendall(b"".join(writes) + POST + b"Connection: close\r\n\r\n" + BODY)
            answers = read_all(connection).split(b"HTTP/1.1 503 ")[1:]
        assert [b"access-control-allow-origin" in answer for answer in answers] == [bool(allowed), False, False]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_refused_write_closes_the_connection_on_request(small: ServiceProcess, version: bytes) -> None:
    head = POST.replace(b"1.1", version) + (b"Connection: close\r\n" if version == b"1.1" else b"")
    with full(small), small.connect() as connection:
        connection.sendall(head + b"\r\n" + BODY)
        answer = read_all(connection)
    assert_refused(answer, 503, "OVERLOADED")
    assert b"\r\nx-request-id: mine\r\n" in answer


def test_a_refused_write_may_send_its_body_in_pieces_but_not_too_slowly(small: ServiceProcess) -> None:
    with full(small), small.connect() as connection:
        for piece in (POST + b"\r\n", BODY[:9], BODY[9:]):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(piece)
        headers = assert_problem_bytes(connection.recv(65_536), 503, "OVERLOADED")
        assert b"connection" not in headers
        connection.sendall(POST + b"\r\n" + BODY[:9])
        assert_refused(read_all(connection), 408, "REQUEST_TIMEOUT")


def test_pipelined_requests_are_answered_in_order_under_overload(small: ServiceProcess) -> None:
    probe = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    write = POST + b"\r\n" + BODY
    with full(small), small.connect() as connection:
        connection.sendall((probe + write + write) * 20 + POST + b"Connection: close\r\n\r\n" + BODY)
        answer = read_all(connection)
    statuses = re.findall(rb"HTTP/1.1 (\d+) ", answer)
    assert statuses == [b"200", b"503", b"503"] * 20 + [b"503"]


def test_expect_100_continue_is_answered_before_the_write_is_refused(small: ServiceProcess) -> None:
    with full(small), small.connect() as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{" * len(BODY))  # a body that is refused unread cannot be found malformed
        assert_refused(read_all(connection), 503, "OVERLOADED")


@pytest.mark.parametrize(
    "target", [b"/api/appointments?", b"/api/appointments?x=1", b"/%61pi/appointments", b"http://x/api/appointments"]
)
def test_no_spelling_of_the_target_leads_around_load_shedding(small: ServiceProcess, target: bytes) -> None:
    head = POST.replace(b"/api/appointments", target) + b"Connection: close\r\n\r\n"
    with full(small), small.connect() as connection:
        connection.sendall(head + b"{" * len(BODY))
        assert_refused(read_all(connection), 503, "OVERLOADED")


def test_writes_that_arrive_at_once_do_not_exceed_the_limit(small: ServiceProcess) -> None:
    with psycopg.connect(small.database_url) as session:
        session.execute("lock table appointments in exclusive mode")
        connections = [small.connect() for _ in range(40)]
        for number, connection in enumerate(connections):
            body = msgspec.json.encode(payload(f"at-once-{number}"))
            connection.sendall(b"POST /api/appointments HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
            connection.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        answers: list[bytes] = []
        readers = [
            threading.Thread(target=lambda c=connection: answers.append(read_all(c))) for connection in connections
        ]
        for reader in readers:
            reader.start()
        wait_until(lambda: len(answers) == 40 - WRITES_MAX)
        for answer in answers:
            assert_refused(answer, 503, "OVERLOADED")
    for reader in readers:
        reader.join()
    for connection in connections:
        connection.close()
    assert sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers) == WRITES_MAX
    assert query(small.database_url, "select count(*) from appointments where org_id like 'at-once-%%'") == [
        (WRITES_MAX,)
    ]


def test_reads_beyond_the_limit_of_waiting_reads_are_refused_at_once(small: ServiceProcess) -> None:
    with psycopg.connect(small.database_url) as session, ThreadPoolExecutor(WRITES_MAX + 1) as executor:
        session.execute("lock table appointments in access exclusive mode")
        readers = [
            executor.submit(httpx.get, f"{small.url}/api/appointments", timeout=60) for _ in range(WRITES_MAX + 1)
        ]
        wait_until(lambda: f"database_pool_waiting_requests {WRITES_MAX}.0" in small.client.get("/metrics").text)
        response = small.client.get("/api/appointments")
        assert_problem(response, 503, "OVERLOADED")
        assert response.headers["retry-after"] == "1"
        session.rollback()
        assert [reader.result(60).status_code for reader in readers] == [200] * (WRITES_MAX + 1)
