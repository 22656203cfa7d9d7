"""Long lists and slow or disconnecting readers: a response is complete, or its connection is cut."""

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx
import psutil
import psycopg
import pytest

from service.database_url import parse
from service.reading.stream_places import GRACE_SECONDS, StreamPlaces
from tests.cluster import not_on_citus
from tests.databases import new_database, query
from tests.http.requests import assert_problem, payload
from tests.processes import ServiceProcess, running_service, wait_until, writes_by_bucket

pytestmark = not_on_citus

ROWS = 150_000  # far more than fits into the buffers of a connection
FILL = f"""
insert into appointments
    (bucket, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version)
select organisation_bucket(org), org, n, tstzrange(start, start + interval '1 hour'), start, start, start, 1
from
    (select n, timestamptz '2000-01-01Z' + n * interval '1 hour' as start from generate_series(1, {ROWS}) as n) as s,
    (values ('long', {ROWS}), ('other', 5000)) as organisations (org, rows)
where n <= rows
"""
STREAMING = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in %'"
SESSIONS = """select count(*) from pg_stat_activity
    where application_name = 'appointments' and datname = current_database()"""
URL = "/api/appointments?org=long"
OTHER = URL.replace("long", "other")
GROWTH_MB_MAX = 32
LAST_CHUNK = b"\r\n0\r\n\r\n"
DEFAULTS = {"STREAM_CONNECTIONS_MAX": "4", "POOL_WAIT_MS_MAX": "2000"}


@pytest.fixture(scope="module")
def filled(server_url: str, template: str) -> Iterator[str]:
    """The name of a database with ROWS appointments, to clone for each test."""
    with new_database(server_url, template) as url:
        query(url, FILL)
        query(url, "analyze")
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture
def database_url(server_url: str, filled: str) -> Iterator[str]:
    with new_database(server_url, filled) as url:
        yield url


@pytest.fixture
def process(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[ServiceProcess]:
    limits = {"STREAM_CONNECTIONS_MAX": "1", "POOL_WAIT_MS_MAX": "200"} | getattr(request, "param", {})
    with running_service(tmp_path, DATABASE_URL=database_url, **limits) as started:
        yield started


def connect(process: ServiceProcess, *headers: bytes, method: bytes = b"GET") -> socket.socket:
    """Asks for the whole list as a client of HTTP/1.0."""
    connection = process.connect()
    lines = [b"%s %s HTTP/1.0" % (method, URL.encode()), *headers, b"", b""]
    connection.sendall(b"\r\n".join(lines))
    return connection


def read_to_the_end(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head and what follows it. Raises ConnectionResetError."""
    with connection:
        head, _, body = b"".join(iter(lambda: connection.recv(1_000_000), b"")).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"\r\nconnection: close" in head
    return head, body


def wait_until_no_stream_is_open(url: str) -> None:
    wait_until(lambda: query(url, STREAMING) == [(0,)])


def test_streaming_a_long_list_uses_little_memory(process: ServiceProcess) -> None:
    assert process.client.get(URL + "&limit=1000").status_code == 200
    memory = psutil.Process(process.process.pid).memory_info
    before, size, peak = memory().rss, 0, 0
    with process.client.stream("GET", URL) as response:
        for chunk in response.iter_bytes():
            size += len(chunk)
            peak = max(peak, memory().rss)
    assert size > 200 * ROWS
    assert peak - before < GROWTH_MB_MAX * 1e6


@pytest.mark.parametrize("process", [{"STREAM_MS_MAX": "300"}], indirect=True)
def test_a_slow_reader_is_cut_off_and_its_database_connection_released(process: ServiceProcess) -> None:
    with process.client.stream("GET", URL) as response:
        assert response.status_code == 200
        process.wait_for_event("list cut: it took too long")
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            response.read()
    wait_until_no_stream_is_open(process.database_url)
    assert process.client.get(URL + "&limit=1000").status_code == 200


@pytest.mark.parametrize("headers", [[], [b"Connection: keep-alive"], [b"Host: x", b"Accept: application/x-ndjson"]])
def test_http_1_0_gets_a_list_without_chunks(process: ServiceProcess, headers: list[bytes]) -> None:
    accept = {"Accept": "application/x-ndjson"} if len(headers) == 2 else {}
    expected = process.client.get(URL, headers=accept).content
    head, body = read_to_the_end(connect(process, *headers))
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == expected


def test_http_1_0_gets_no_body_where_there_is_none(process: ServiceProcess) -> None:
    head, body = read_to_the_end(connect(process, method=b"HEAD"))
    assert (head.split()[1], body) == (b"200", b"")
    tag = process.client.get(URL + "&limit=1").headers["etag"]
    head, body = read_to_the_end(connect(process, b"If-None-Match: " + tag.encode()))
    assert (head.split()[1], body) == (b"304", b"")


@pytest.mark.parametrize("process", [{"STREAM_MS_MAX": "300"}, {"BUFFER_BYTES_MAX": "1"}], indirect=True)
@pytest.mark.parametrize("more", [b"", b"\0 more bytes, for which the service would linger"])
def test_http_1_0_can_tell_a_list_that_was_cut(process: ServiceProcess, more: bytes) -> None:
    """By a reset, since the end of the connection is the end of a complete list."""
    connection = connect(process)
    connection.sendall(more)
    assert connection.recv(1) == b"H"  # from here on it does not read until the service has let it go
    port, sockets = connection.getsockname()[1], psutil.Process(process.process.pid).net_connections
    wait_until(lambda: all(each.raddr.port != port for each in sockets("tcp") if each.raddr))
    with pytest.raises(ConnectionResetError):
        read_to_the_end(connection)


def test_http_1_0_can_tell_a_list_that_was_cut_by_a_kill(process: ServiceProcess) -> None:
    connection = connect(process)
    assert connection.recv(1) == b"H"
    process.kill()
    with pytest.raises(ConnectionResetError):
        read_to_the_end(connection)


def test_streams_beyond_the_limit_are_refused_and_short_lists_are_not(process: ServiceProcess) -> None:
    with process.client.stream("GET", URL):
        assert_problem(process.client.get(URL), 503, "OVERLOADED")
        assert process.client.get(URL + "&limit=1000").status_code == 200


def test_a_disconnecting_reader_releases_the_database_connection(process: ServiceProcess) -> None:
    with process.client.stream("GET", URL):
        wait_until(lambda: query(process.database_url, STREAMING) == [(1,)])
    wait_until_no_stream_is_open(process.database_url)
    assert process.client.get(URL).status_code == 200


def test_a_list_whose_database_connection_breaks_is_cut(process: ServiceProcess) -> None:
    stalled = STREAMING + " and state_change < now() - interval '0.3 s'"
    with process.client.stream("GET", URL) as response:
        wait_until(lambda: query(process.database_url, stalled) == [(1,)])
        query(process.database_url, stalled.replace("count(*)", "pg_terminate_backend(pid)"))
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            response.read()
    wait_until(lambda: process.client.get(URL).status_code == 200)


def slow_readers(process: ServiceProcess, count: int, path: str) -> list[socket.socket]:
    """Connections whose answers are not read. Returns once all places but the last are taken."""
    readers = [process.connect() for _ in range(count)]
    for reader in readers:
        reader.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    wait_until(lambda: query(process.database_url, STREAMING) == [(count - 1,)])
    return readers


def read_chunks(reader: socket.socket) -> bytes:
    data = bytearray()
    with reader:
        while piece := reader.recv(1_000_000):
            data += piece
            if data.endswith(LAST_CHUNK):
                break
    return bytes(data)


@pytest.mark.parametrize("process", [DEFAULTS], indirect=True)
@pytest.mark.parametrize("path", [URL, "/api/appointments.ics?org=long"])
def test_slow_readers_of_one_organisation_do_not_delay_another(process: ServiceProcess, path: str) -> None:
    readers = slow_readers(process, 4, path)
    found = process.client.get(OTHER)
    assert (found.status_code, len(found.json())) == (200, 5000)
    for reader in readers:
        reader.close()
    wait_until_no_stream_is_open(process.database_url)


@pytest.mark.parametrize("process", [DEFAULTS], indirect=True)
def test_slow_readers_are_cut_while_others_wait(process: ServiceProcess) -> None:
    readers = slow_readers(process, 4, URL)
    found = process.client.get(URL)
    assert (found.status_code, len(found.json())) == (200, ROWS)
    process.wait_for_event("list cut: others were waiting")
    complete = [read_chunks(reader).endswith(LAST_CHUNK) for reader in readers]
    assert complete.count(False) in (1, 2)  # for `found`, and for the last of the slow readers
    wait_until_no_stream_is_open(process.database_url)
    assert [event for event in process.events() if event["level"] == "error"] == []


@pytest.mark.skipif(writes_by_bucket(), reason="the number is that of the plain writer")
@pytest.mark.parametrize("hosts", [1, 2])
def test_a_process_opens_as_many_connections_as_documented(database_url: str, tmp_path: Path, hosts: int) -> None:
    """All of its kinds of work at once. Its connections stay open, so those that it opened one after another count."""
    place = {"host": "", "port": "5432"} | parse(database_url)
    several = place | {name: ",".join([place[name]] * hosts) for name in ("host", "port")}
    settings = {"DATABASE_URL": f"postgresql:///?{urlencode(several)}", "POOL_CONNECTIONS_MAX": "3"}
    expected = 3 + 11 + (hosts if hosts > 1 else 0)

    def count() -> int:
        [[sessions]] = query(database_url, SESSIONS)
        return int(str(sessions))

    with running_service(tmp_path, **settings) as process, ThreadPoolExecutor(20) as executor:
        process.database_url = database_url
        readers = slow_readers(process, 4, URL)
        assert process.client.get(OTHER).status_code == 200  # the last place
        for reader in readers:
            reader.close()
        wait_until_no_stream_is_open(database_url)
        assert process.client.get("/readyz").status_code == 200
        with psycopg.connect(database_url) as session:
            session.execute("lock table appointments in access exclusive mode")
            for _ in range(3):
                executor.submit(process.client.get, OTHER)
            organisations = iter(range(50))
            while count() < expected:  # contended writes wait in groups at first, and then alone
                body = [payload(str(next(organisations)))]
                executor.submit(process.client.post, "/api/appointments/batch", json=body)
                time.sleep(0.1)
        wait_until(lambda: process.client.get(OTHER).status_code == 200)
        assert count() == expected


@pytest.mark.parametrize("process", [DEFAULTS | {"STREAM_CONNECTIONS_MAX": "1"}], indirect=True)
def test_reader_that_keeps_reading_is_not_cut_while_others_wait(process: ServiceProcess) -> None:
    """It takes longer than a reader may pause."""
    with ThreadPoolExecutor(1) as threads, process.client.stream("GET", URL) as response:
        chunks = response.iter_bytes(1_000_000)
        size = len(next(chunks))
        waiting = threads.submit(httpx.get, process.url + OTHER, timeout=60)
        began = time.monotonic()
        for chunk in chunks:
            size += len(chunk)
            if time.monotonic() - began < 2 * GRACE_SECONDS:
                time.sleep(0.3)  # a reader with a limited rate; not a wait
        assert size > 200 * ROWS
        assert waiting.result().status_code in (200, 503)
    assert [event for event in process.events() if event["event"].startswith("list cut")] == []


async def read_in_turn(places: StreamPlaces, organisation: str, order: list[str]) -> None:
    async with places.place(organisation):
        order.append(organisation)


async def test_freed_place_goes_to_the_waiting_organisation_with_the_fewest_streams() -> None:
    places = StreamPlaces(2)
    order: list[str] = []
    async with asyncio.TaskGroup() as group, places.place("a"):
        async with places.place("b"):
            for organisation in ("a", "c"):
                group.create_task(read_in_turn(places, organisation, order))
            await asyncio.sleep(0)
            assert order == []
        while not order:
            await asyncio.sleep(0)
        assert order == ["c"]
    assert order == ["c", "a"]


async def test_organisation_that_has_had_a_turn_waits_behind_those_that_came_later() -> None:
    places = StreamPlaces(1)
    order: list[str] = []
    async with asyncio.TaskGroup() as group, places.place("a"):
        for organisation in ("a", "a", "b", "c"):
            group.create_task(read_in_turn(places, organisation, order))
        await asyncio.sleep(0)
    assert order == ["b", "c", "a", "a"]


async def test_request_that_stops_waiting_leaves_its_place_to_others() -> None:
    places = StreamPlaces(1)
    async with places.place("a"):
        waiting = asyncio.create_task(places.place("b").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
    async with asyncio.timeout(1), places.place("c"):
        pass
