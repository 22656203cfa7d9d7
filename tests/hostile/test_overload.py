"""More writes than there is room for: they are refused at once, cheaply, and in the form of every refusal."""

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import msgspec
import psycopg
import pytest

from tests.databases import assert_invariants, new_database, query
from tests.hostile.test_limits import assert_refused, read_all
from tests.http.requests import assert_accepted, assert_problem, listed, payload, post
from tests.processes import ServiceProcess, running_service, wait_until

ROOM = 4
LIMITS = {
    "WRITES_WAITING_MAX": str(ROOM),
    "WRITE_WAIT_MS_MAX": "60000",
    "STATEMENT_MS_MAX": "60000",
    "BODY_MS_MAX": "1000",
    "POOL_CONNECTIONS_MAX": "1",
    "POOL_WAITING_MAX": "2",
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
    """As many writes wait as may. They are accepted once nobody holds the table any more."""
    first = {"start": "2020-10-10 10:00", "end": "2020-10-10 10:30"}
    with httpx.Client(base_url=service.url, timeout=60) as client, ThreadPoolExecutor(ROOM) as executor:
        wait_until(lambda: "writer_waiting_writes 0.0" in client.get("/metrics").text)  # it is up to a second old
        with psycopg.connect(service.database_url) as session:
            session.execute("lock table appointments in exclusive mode")
            answers = [executor.submit(post, client, f"room-{number}", **first) for number in range(ROOM)]
            wait_until(lambda: f"writer_waiting_writes {ROOM}.0" in client.get("/metrics").text)
            yield
        for answer in answers:
            assert answer.result(60).status_code == 200


def refused(client: httpx.Client) -> int:
    name = 'http_request_duration_seconds_count{method="POST",route="/api/appointments",status="503"} '
    lines = client.get("/metrics").text.splitlines()
    return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


def test_what_is_too_much_is_refused_and_its_connection_serves_on(small: ServiceProcess) -> None:
    before = refused(small.client)
    with full(small):
        for asked in ("mine", "not sane"):
            response = small.client.post("/api/appointments", json=payload("excess"), headers={"X-Request-Id": asked})
            assert_problem(response, 503, "OVERLOADED")
            assert response.headers["retry-after"] == "1"
            assert response.headers["date"]
            assert "connection" not in response.headers
            assert (response.headers["x-request-id"] == asked) == (asked == "mine")
        assert small.client.get("/livez").status_code == 200  # over the same connection
    assert refused(small.client) == before + 2
    assert listed(small.client, "excess") == []
    assert_accepted(post(small.client, "excess", cancelled=True))
    assert_invariants(small.database_url)


def test_what_is_refused_unread_is_not_logged_one_by_one(small: ServiceProcess) -> None:
    def lines(event: str) -> list[dict[str, object]]:
        return [line for line in small.events() if line["event"] == event]

    requests, reports = len(lines("request")), len(lines("too many writes"))
    with full(small):
        for _ in range(50):
            assert post(small.client, "excess").status_code == 503
        wait_until(lambda: sum(int(str(line["refused"])) for line in lines("too many writes")[reports:]) >= 50)
    assert len(lines("too many writes")) - reports < 10
    assert len(lines("request")) == requests


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_the_connection_is_closed_if_the_client_wants_it(small: ServiceProcess, version: bytes) -> None:
    head = POST.replace(b"1.1", version) + (b"Connection: close\r\n" if version == b"1.1" else b"")
    with full(small), small.connect() as connection:
        connection.sendall(head + b"\r\n" + BODY)
        answer = read_all(connection)
    assert_refused(answer, 503, "OVERLOADED")
    assert b"\r\nx-request-id: mine\r\n" in answer


def test_a_body_in_pieces_is_waited_for_and_one_that_does_not_end_is_not(small: ServiceProcess) -> None:
    with full(small), small.connect() as connection:
        for piece in (POST + b"\r\n", BODY[:9], BODY[9:]):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(piece)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 503 ")
        connection.sendall(POST + b"\r\n" + BODY[:9])
        assert_refused(read_all(connection), 408, "REQUEST_TIMEOUT")


def test_pipelined_requests_are_answered_in_order(small: ServiceProcess) -> None:
    probe = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    write = POST + b"\r\n" + BODY
    with full(small), small.connect() as connection:
        connection.sendall((probe + write + write) * 20 + POST + b"Connection: close\r\n\r\n" + BODY)
        answer = read_all(connection)
    statuses = re.findall(rb"HTTP/1.1 (\d+) ", answer)
    assert statuses == [b"200", b"503", b"503"] * 20 + [b"503"]


def test_a_client_that_asks_before_it_sends_is_told_to_wait_or_go_on(small: ServiceProcess) -> None:
    with full(small), small.connect() as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert_refused(read_all(connection), 503, "OVERLOADED")


def test_all_who_come_at_once_get_no_more_than_the_room(small: ServiceProcess) -> None:
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
        wait_until(lambda: len(answers) == 40 - ROOM)
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
    for reader in readers:
        reader.join()
    for connection in connections:
        connection.close()
    assert sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers) == ROOM
    assert query(small.database_url, "select count(*) from appointments where org_id like 'at-once-%%'") == [(ROOM,)]


def test_reads_that_find_too_many_before_them_are_refused_at_once(small: ServiceProcess) -> None:
    with psycopg.connect(small.database_url) as session, ThreadPoolExecutor(3) as executor:
        session.execute("lock table appointments in access exclusive mode")
        readers = [executor.submit(httpx.get, f"{small.url}/api/appointments", timeout=60) for _ in range(3)]
        wait_until(lambda: "database_pool_waiting_requests 2.0" in small.client.get("/metrics").text)
        response = small.client.get("/api/appointments")
        assert_problem(response, 503, "OVERLOADED")
        assert response.headers["retry-after"] == "1"
        session.rollback()
        assert [reader.result(60).status_code for reader in readers] == [200] * 3
