"""Limits of connections: time, number, size of the head, memory."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import psycopg
import pytest

from tests.cluster import not_on_citus
from tests.databases import new_database, wait_until_blocked
from tests.hostile.raw_http import GET, POST, STATUS, assert_problem_bytes, assert_refused, read_all, write_of
from tests.http.requests import assert_accepted, metrics, post
from tests.processes import ServiceProcess, running_service, wait_until

LIMITS = {
    "CONNECTIONS_MAX": "40",
    "KEEP_ALIVE_MS_MAX": "1500",
    "HEADER_BYTES_MAX": "4096",
    "HEADER_MS_MAX": "1000",
    "BODY_MS_MAX": "1000",
    "LINGER_MS_MAX": "500",
    "FRAMED_BODY_BYTES_MAX": "800000",
    "BUFFER_BYTES_MAX": "200000",
}
BOUND_SECONDS = 8  # less than any of these time limits by default, and much more than LIMITS on a busy machine
REFUSALS = "http_connections_refused_total"


@pytest.fixture(scope="module")
def limited(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with (
        new_database(server_url, template) as url,
        running_service(tmp_path_factory.mktemp("limited"), DATABASE_URL=url, **LIMITS) as started,
    ):
        started.client.close()  # it keeps idle connections, which this service may be closing just as one is reused
        started.client = httpx.Client(
            base_url=started.url, timeout=30, limits=httpx.Limits(max_keepalive_connections=0)
        )
        yield started
        wait_until(lambda: connections(started) == 0)  # no connection is leaked
        assert [event for event in started.events() if event["level"] in ("error", "critical")] == []


def connections(process: ServiceProcess) -> int:
    port = urlsplit(process.url).port
    sockets = psutil.Process(process.process.pid).net_connections("tcp")
    return sum(each.status == "ESTABLISHED" and each.laddr.port == port for each in sockets)


@pytest.mark.parametrize("start", [b"", b"\r\n", b"GET", GET, POST + b"Content-Length: 5\r\n"])
def test_an_incomplete_head_times_out(limited: ServiceProcess, start: bytes) -> None:
    with limited.connect() as connection:
        connection.sendall(start)
        began = time.monotonic()
        answer = read_all(connection)
        assert 0.9 < time.monotonic() - began < BOUND_SECONDS
    if start.strip():
        assert_refused(answer, 408, "REQUEST_TIMEOUT")
    else:
        assert answer == b""


def test_a_head_sent_byte_by_byte_gets_no_extra_time(limited: ServiceProcess) -> None:
    with limited.connect() as connection:
        connection.sendall(GET)
        began = time.monotonic()
        connection.settimeout(0.1)  # the pace of the bytes
        answer = b""
        while not answer and time.monotonic() - began < BOUND_SECONDS:
            with suppress(TimeoutError):
                answer = connection.recv(65_536)
            if not answer:
                connection.sendall(b"x")
    assert_refused(answer, 408, "REQUEST_TIMEOUT")


@pytest.mark.parametrize("framing", [b"Content-Length: 500\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
@pytest.mark.parametrize("path", [b"/api/appointments", b"/api/appointments/batch"])
def test_an_incomplete_body_times_out(limited: ServiceProcess, path: bytes, framing: bytes) -> None:
    with limited.connect() as connection:
        connection.sendall(POST.replace(b"/api/appointments", path) + framing)
        assert_refused(read_all(connection), 408, "REQUEST_TIMEOUT")


def test_the_rest_of_a_refused_body_times_out(limited: ServiceProcess) -> None:
    with limited.connect() as connection:
        connection.sendall(POST + b"Content-Type: text/plain\r\nContent-Length: 500\r\n\r\n{")
        assert_problem_bytes(read_all(connection), 415, "UNSUPPORTED_MEDIA_TYPE")


@not_on_citus  # the write waits on a worker, where the test does not look
@pytest.mark.parametrize(
    ("later", "rest", "statuses"),
    [
        (b"\0\r\n", b"", [b"200", b"400"]),
        (POST + b"Connection: close\r\nContent-Length: 2\r\n\r\n", b"{}", [b"200", b"400"]),
    ],
    ids=["malformed request", "incomplete request"],
)
def test_a_pending_answer_is_not_cut_off_by_later_bytes(
    limited: ServiceProcess, organisation: str, later: bytes, rest: bytes, statuses: list[bytes]
) -> None:
    """Even if the answer takes longer than the time limits of a body and of a lingering close."""
    with psycopg.connect(limited.database_url) as session, limited.connect() as connection, limited.connect() as slower:
        session.execute("lock table appointments in exclusive mode")
        connection.sendall(write_of(organisation) + later)
        wait_until_blocked(limited.database_url)
        slower.sendall(POST + b"Content-Length: 2\r\n\r\n")
        # A body that begins later times out, so the limits have passed (that of a lingering close is shorter).
        assert_refused(read_all(slower), 408, "REQUEST_TIMEOUT")
        session.rollback()
        connection.sendall(rest)
        answer = read_all(connection)
    assert STATUS.findall(answer) == statuses, answer


def test_an_idle_connection_is_closed_after_the_keep_alive_time(limited: ServiceProcess) -> None:
    """Counted from the latest request: a count from the first one would end within 1.1 s after the last."""
    with limited.connect() as connection:
        for pause in (0, 0.7, 0.7):
            time.sleep(pause)  # idle, but for less than the limit
            connection.sendall(GET + b"\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        assert read_all(connection) == b""
        assert 1.4 < time.monotonic() - began < BOUND_SECONDS


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
        for _ in range(3):
            connection.sendall(GET + b"\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(GET + b"X: " + b"a" * 50_000)
        assert_refused(read_all(connection), 431, "HEADERS_TOO_LARGE")


@pytest.mark.parametrize(
    ("size", "rest"),
    [(50_000, b""), (4097, b"\r\n\r\n"), (7000, b"\r\n\r\n"), (4096, b"\r\nConnection: close\r\n\r\n")],
    ids=["endless", "a little too large", "too large", "too large with its last header"],
)
def test_the_size_limit_applies_to_pipelined_requests(limited: ServiceProcess, size: int, rest: bytes) -> None:
    """Wherever the head begins in the bytes that are read at once, and after the earlier answers."""
    before = refusals(limited, "HEADERS_TOO_LARGE")
    for earlier in (3, 80):  # fewer and more than fit into one head
        with limited.connect() as connection:
            head = GET + b"X: "
            connection.sendall((GET + b"\r\n") * earlier + head + b"a" * (size - len(head) - 4) + rest)
            answer = read_all(connection)
        assert STATUS.findall(answer) == [b"200"] * earlier + [b"431"]
        assert_refused(answer[answer.rindex(b"HTTP/1.1 431") :], 431, "HEADERS_TOO_LARGE")
    assert refusals(limited, "HEADERS_TOO_LARGE") == before + 2


def test_a_pipelined_head_of_exactly_the_size_limit_is_accepted(limited: ServiceProcess) -> None:
    head = GET + b"Connection: close\r\nX: "
    for earlier in (3, 80):
        with limited.connect() as connection:
            connection.sendall((GET + b"\r\n") * earlier + head + b"a" * (4096 - len(head) - 4) + b"\r\n\r\n")
            assert STATUS.findall(read_all(connection)) == [b"200"] * (earlier + 1)


def test_pipelined_requests_may_together_exceed_the_size_limit_of_a_head(limited: ServiceProcess) -> None:
    with limited.connect() as connection:
        connection.sendall((GET + b"\r\n") * 500 + GET + b"Connection: close\r\n\r\n")
        assert read_all(connection).count(b"HTTP/1.1 200 ") == 501


@pytest.mark.parametrize(("line", "size"), [(b"X: " + b"a" * 1000 + b"\r\n", 30_000_000), (b"X: a\r\n", 20_000_000)])
def test_trailers_are_not_kept_in_memory(service: ServiceProcess, line: bytes, size: int) -> None:
    """They stay below the default size limit of a body; socket buffers hold a few megabytes of them."""
    process = psutil.Process(service.process.pid)
    before = process.memory_info().rss
    block = line * (65_536 // len(line))
    with service.connect() as connection:
        connection.sendall(POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        for _ in range(size // len(block)):
            connection.sendall(block)
        assert process.memory_info().rss < before + 16_000_000
        connection.sendall(b"\r\n")
        assert_refused(read_all(connection), 400, "INVALID_JSON")


@pytest.mark.parametrize("line", [b"X: " + b"a" * 1000 + b"\r\n", b"X: a\r\n"])
def test_trailers_count_towards_the_size_limit_of_a_body(limited: ServiceProcess, line: bytes) -> None:
    with limited.connect() as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        connection.sendall(line * (1_000_000 // len(line)))
        assert_refused(read_all(connection), 413, "PAYLOAD_TOO_LARGE")


def test_a_connection_beyond_the_limit_is_refused_until_another_one_closes(database_url: str, tmp_path: Path) -> None:
    """No connection times out meanwhile: a body may take 60 s by default."""
    with running_service(tmp_path, DATABASE_URL=database_url, CONNECTIONS_MAX="40") as process, ExitStack() as stack:
        held = [stack.enter_context(process.connect()) for _ in range(39)]  # `client` has one more
        for connection in held:
            connection.sendall(POST + b"Content-Length: 500\r\n\r\n{")
        assert_accepted(post(process.client, "o"))
        with process.connect() as refused:
            assert_refused(read_all(refused), 503, "OVERLOADED")
        assert refusals(process, "OVERLOADED") == 1
        held[0].close()

        def is_accepted() -> bool:
            with process.connect() as another:
                another.sendall(GET + b"\r\n")
                return another.recv(65_536).startswith(b"HTTP/1.1 200 ")

        wait_until(is_accepted)


def test_a_flood_of_connections_leaves_descriptors_to_the_database(database_url: str, tmp_path: Path) -> None:
    """The clients that are refused never close, and the service may keep no more open files than it asked for."""
    limits = {"CONNECTIONS_MAX": "40", "LINGER_MS_MAX": "60000"}
    with running_service(tmp_path, DATABASE_URL=database_url, **limits) as process, ExitStack() as stack:
        psutil.Process(process.process.pid).rlimit(psutil.RLIMIT_NOFILE, (240, 240))
        held = [stack.enter_context(process.connect()) for _ in range(39)]
        for connection in held:
            connection.sendall(GET + b"\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        flood = [stack.enter_context(process.connect()) for _ in range(400)]
        wait_until(lambda: refusals(process, "OVERLOADED") == 400)
        with psycopg.connect(database_url, autocommit=True) as session:  # each statement needs a new connection
            session.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        wait_until(lambda: process.client.get("/readyz").status_code == 200)
        assert_accepted(post(process.client, "o"))
        answers = [read_all(connection) for connection in flood[:20]]
        for answer in answers:
            assert_refused(answer, 503, "OVERLOADED")
        assert read_all(flood[-1]) == b""
        held[0].close()
        wait_until(lambda: connections(process) < 40 + 60)
        with process.connect() as another:
            another.sendall(GET + b"\r\n")
            assert another.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert [event for event in process.events() if event["level"] in ("error", "critical")] == []


def test_incomplete_bodies_share_a_memory_limit(limited: ServiceProcess) -> None:
    head = POST.replace(b"appointments", b"appointments/batch") + b"Content-Length: 90000\r\n\r\n"
    with ExitStack() as stack:
        held = [stack.enter_context(limited.connect()) for _ in range(3)]
        for connection in held:
            connection.sendall(head + b" " * 80_000)
        answers = [read_all(connection) for connection in held]
    [overloaded] = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503 ")]
    assert_problem_bytes(overloaded, 503, "OVERLOADED")
    for answer in answers:
        if answer is not overloaded:  # the others time out
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
        wait_until(lambda: refusals(process, "OVERLOADED") > 0)
        assert_accepted(post(process.client, "o"))


def test_a_client_that_does_not_read_its_answers_is_cut_off(database_url: str, tmp_path: Path) -> None:
    """By the time limit alone: the default of BUFFER_BYTES_MAX is far from reached."""
    with (
        running_service(tmp_path, DATABASE_URL=database_url, STREAM_MS_MAX="1000") as process,
        process.connect() as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)

        def is_cut_off() -> bool:
            try:
                connection.send(b"GET /api/docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
            except BlockingIOError:
                return False
            except (ConnectionResetError, BrokenPipeError):
                return True
            return False

        wait_until(is_cut_off)  # within 30 s; the default limit is 60 s
        assert refusals(process, "OVERLOADED") == 0


def test_the_connection_limit_is_lowered_to_the_limit_of_open_files(database_url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, CONNECTIONS_MAX="2000000000") as process:
        warned = process.wait_for_event("fewer connections than CONNECTIONS_MAX")
        # 200 files are kept for the database, logs and libraries.
        assert warned["connections_max"] == warned["open_files_max"] - 200
        most, _ = psutil.Process(process.process.pid).rlimit(psutil.RLIMIT_NOFILE)
        assert most == warned["open_files_max"]


@pytest.mark.parametrize(
    ("start", "code"),
    [(GET, "REQUEST_TIMEOUT"), (GET + b"X: " + b"a" * 5000, "HEADERS_TOO_LARGE"), (b"\0\r\n", "INVALID_HTTP")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_connections_are_counted(limited: ServiceProcess, start: bytes, code: str) -> None:
    before = refusals(limited, code)
    with limited.connect() as connection:
        connection.sendall(start)
        read_all(connection)
    assert refusals(limited, code) == before + 1


def refusals(process: ServiceProcess, code: str) -> float:
    return metrics(process.client).get(f"{REFUSALS} {code}", 0)
