"""Limits of connections: time, number, size of the head, memory."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.databases import new_database
from tests.hostile.raw_http import GET, POST, STATUS, assert_refused, read_all, write_of
from tests.http.requests import assert_accepted, post
from tests.processes import ServiceProcess, running_service, wait_until

LIMITS = {
    "CONNECTIONS_MAX": "40",
    "KEEP_ALIVE_MS_MAX": "1500",
    "HEADER_BYTES_MAX": "4096",
    "HEADER_MS_MAX": "1000",
    "BODY_MS_MAX": "1000",
    "STREAM_MS_MAX": "2000",
    "LINGER_MS_MAX": "500",
    "FRAMED_BODY_BYTES_MAX": "800000",
    "BUFFER_BYTES_MAX": "200000",
}
SLACK_SECONDS = 3  # the limits are checked twice a second, on a machine that may be busy


@pytest.fixture(scope="module")
def limited(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with (
        new_database(server_url, template) as url,
        running_service(tmp_path_factory.mktemp("limited"), DATABASE_URL=url, **LIMITS) as started,
    ):
        yield started
        wait_until(lambda: connections(started) == 0)  # no connection is leaked
        assert [event for event in started.events() if event["level"] in ("error", "critical")] == []


def connections(process: ServiceProcess) -> int:
    return sum(each.status == "ESTABLISHED" for each in psutil.Process(process.process.pid).net_connections("tcp"))


@pytest.mark.parametrize("start", [b"", b"\r\n", b"GET", GET, POST + b"Content-Length: 5\r\n"])
def test_an_incomplete_head_times_out(limited: ServiceProcess, start: bytes) -> None:
    with limited.connect() as connection:
        connection.sendall(start)
        began = time.monotonic()
        answer = read_all(connection)
        assert time.monotonic() - began < 1 + SLACK_SECONDS
    if start.strip():
        assert_refused(answer, 408, "REQUEST_TIMEOUT")
    else:
        assert answer == b""


def test_a_head_sent_byte_by_byte_gets_no_extra_time(limited: ServiceProcess) -> None:
    began = time.monotonic()
    with limited.connect() as connection:
        connection.sendall(GET)
        with suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() - began < 10:
                connection.sendall(b"x")
                time.sleep(0.1)
    assert time.monotonic() - began < 1.5 + SLACK_SECONDS


@pytest.mark.parametrize("framing", [b"Content-Length: 500\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
@pytest.mark.parametrize("path", [b"/api/appointments", b"/api/appointments/batch"])
def test_an_incomplete_body_times_out(limited: ServiceProcess, path: bytes, framing: bytes) -> None:
    with limited.connect() as connection:
        connection.sendall(POST.replace(b"/api/appointments", path) + framing)
        assert_refused(read_all(connection), 408, "REQUEST_TIMEOUT")


def test_the_rest_of_a_refused_body_times_out(limited: ServiceProcess) -> None:
    with limited.connect() as connection:
        connection.sendall(POST + b"Content-Type: text/plain\r\nContent-Length: 500\r\n\r\n{")
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 415 ")


@pytest.mark.parametrize(
    ("later", "rest", "statuses"),
    [(b"\0\r\n", b"", [b"200"]), (POST + b"Content-Length: 2\r\n\r\n", b"{}", [b"200", b"400"])],
    ids=["malformed request", "incomplete request"],
)
def test_a_pending_answer_is_not_cut_off_by_later_bytes(
    limited: ServiceProcess, organisation: str, later: bytes, rest: bytes, statuses: list[bytes]
) -> None:
    """Even if the answer takes longer than the time limits of a body and of a lingering close."""
    with psycopg.connect(limited.database_url) as session, limited.connect() as connection:
        session.execute("lock table appointments in exclusive mode")
        connection.sendall(write_of(organisation) + later)
        time.sleep(2.5)  # a body may take one second, a refused client lingers for half of one
        session.rollback()
        connection.sendall(rest)
        answer = read_all(connection)
    assert STATUS.findall(answer) == statuses, answer


def test_an_idle_connection_is_closed_after_the_keep_alive_time(limited: ServiceProcess) -> None:
    with limited.connect() as connection:
        for _ in range(3):
            connection.sendall(GET + b"\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.7)  # less than the limit, each time
        began = time.monotonic()
        assert read_all(connection) == b""
        assert time.monotonic() - began < 1.5 + SLACK_SECONDS


@pytest.mark.parametrize("pieces", [1, 2, 7, 5000])
def test_a_head_of_exactly_the_size_limit_is_accepted_and_no_longer_one(limited: ServiceProcess, pieces: int) -> None:
    for size, status in ((4096, 200), (4097, 431), (20_000, 431)):
        head = GET + b"X: " + b"a" * (size - len(GET) - 7) + b"\r\n\r\n"
        with limited.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            step = -(-len(head) // pieces)
            for start in range(0, len(head), step):
                connection.sendall(head[start : start + step])
            if status == 200:
                assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
            else:
                assert_refused(read_all(connection), 431, "HEADERS_TOO_LARGE")


@pytest.mark.parametrize("line", [b"X: a\r\n", b"a:\r\n"])
def test_many_short_headers_count_towards_the_size_limit(limited: ServiceProcess, line: bytes) -> None:
    with limited.connect() as connection:
        connection.sendall(GET + line * 100_000)
        assert_refused(read_all(connection), 431, "HEADERS_TOO_LARGE")


def test_a_long_path_counts_towards_the_size_limit(limited: ServiceProcess) -> None:
    with limited.connect() as connection:
        connection.sendall(b"GET /" + b"a" * 100_000)
        assert_refused(read_all(connection), 431, "HEADERS_TOO_LARGE")


def test_the_size_limit_applies_to_later_requests_of_a_connection(limited: ServiceProcess) -> None:
    with limited.connect() as connection:
        connection.sendall((GET + b"\r\n") * 3 + GET + b"X: " + b"a" * 50_000)
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert answer.count(b"HTTP/1.1 431 ") <= 1


def test_pipelined_requests_may_together_exceed_the_size_limit_of_a_head(limited: ServiceProcess) -> None:
    with limited.connect() as connection:
        connection.sendall((GET + b"\r\n") * 500 + GET + b"Connection: close\r\n\r\n")
        assert read_all(connection).count(b"HTTP/1.1 200 ") == 501


@pytest.mark.parametrize("trailer", [b"X: " + b"a" * 1000 + b"\r\n", b"X: a\r\n"])
def test_endless_trailers_are_not_kept_in_memory(limited: ServiceProcess, trailer: bytes) -> None:
    before = psutil.Process(limited.process.pid).memory_info().rss
    with limited.connect() as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(20_000_000 // len(trailer)):
                connection.sendall(trailer)
    assert psutil.Process(limited.process.pid).memory_info().rss < before + 16_000_000


def test_a_connection_beyond_the_limit_is_refused_until_another_one_closes(limited: ServiceProcess) -> None:
    with ExitStack() as stack:
        held = []
        for _ in range(39):  # `client` has one more
            connection = stack.enter_context(limited.connect())
            connection.sendall(POST + b"Content-Length: 500\r\n\r\n{")
            held.append(connection)
        assert_accepted(post(limited.client, "o", id="held"), "ok")
        with limited.connect() as refused:
            answer = read_all(refused)
        assert_refused(answer, 503, "OVERLOADED")
        assert b"retry-after: 1" in answer.lower()
        held[0].close()

        def is_accepted() -> bool:
            with limited.connect() as another:
                another.sendall(GET + b"\r\n")
                return another.recv(65_536).startswith(b"HTTP/1.1 200 ")

        wait_until(is_accepted)


def test_incomplete_bodies_share_a_memory_limit(limited: ServiceProcess) -> None:
    head = POST.replace(b"appointments", b"appointments/batch") + b"Content-Length: 90000\r\n\r\n"
    with ExitStack() as stack:
        held = [stack.enter_context(limited.connect()) for _ in range(3)]
        for connection in held:
            connection.sendall(head + b" " * 80_000)
        answers = [read_all(connection) for connection in held]
    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503 ")]
    assert len(refused) == 1
    assert b"OVERLOADED" in refused[0]
    assert b"retry-after: 1" in refused[0].lower()
    for answer in answers:
        if answer is not refused[0]:  # the others time out
            assert_refused(answer, 408, "REQUEST_TIMEOUT")
    whole = limited.client.post("/api/appointments/batch", content=b"[" + b" " * 90_000 + b"]")
    assert (whole.status_code, whole.json()) == (200, {"results": []})


def test_clients_that_together_leave_too_much_unread_are_cut_off(database_url: str, tmp_path: Path) -> None:
    """Each connection buffers at least 64 KiB, the mark above which the server stops writing to it."""
    request = b"GET /api/docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with (
        running_service(tmp_path, DATABASE_URL=database_url, BUFFER_BYTES_MAX="400000") as process,
        ExitStack() as stack,
    ):
        for _ in range(8):
            slow_reader = stack.enter_context(process.connect())
            slow_reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow_reader.sendall(request * 10)
        refused = 'http_connections_refused_total{code="OVERLOADED"}'
        wait_until(lambda: refused in process.client.get("/metrics").text)
        assert_accepted(post(process.client, "o"))


def test_a_client_that_does_not_read_its_answers_is_cut_off(limited: ServiceProcess) -> None:
    with limited.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        began = time.monotonic()
        connection.settimeout(1)
        with suppress(ConnectionResetError, BrokenPipeError):
            while time.monotonic() - began < 30:
                with suppress(TimeoutError):
                    connection.sendall(b"GET /api/docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
                time.sleep(0.2)
        assert time.monotonic() - began < 2 + SLACK_SECONDS + 2


def test_the_connection_limit_is_lowered_to_the_limit_of_open_files(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, CONNECTIONS_MAX="2000000000") as process:
        warned = process.wait_for_event("fewer connections than CONNECTIONS_MAX")
        assert warned["connections_max"] < warned["open_files_max"]
        most, _ = psutil.Process(process.process.pid).rlimit(psutil.RLIMIT_NOFILE)
        assert most == warned["open_files_max"]


def test_refused_connections_are_counted(limited: ServiceProcess) -> None:
    figures = limited.client.get("/metrics").text
    for code in ("REQUEST_TIMEOUT", "HEADERS_TOO_LARGE", "OVERLOADED"):
        assert f'http_connections_refused_total{{code="{code}"}}' in figures
