"""The turns of connections whose writes are refused, round by round of the event loop."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from uvicorn import Config
from uvicorn.server import ServerState

from service.settings import Settings
from service.web.connection import PIECE_BYTES_MAX
from service.web.cors import Cors
from service.web.load_shedding import TURNS, SheddingConnection
from service.web.turns import TURNS_PER_ROUND, Turns
from tests.hostile.raw_http import STATUS

PATH = "/writes"
WRITE = b"POST /writes HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
READ = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Transport(asyncio.Transport):
    """What a connection does to its client."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reads, self.closing = True, False

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002 - asyncio's names
        return default

    def statuses(self) -> list[bytes]:
        return STATUS.findall(self.written)


async def app(_scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def connect(admits: Callable[[], bool] = lambda: False) -> tuple[SheddingConnection, Transport]:
    state = {"connections": set(), "settings": Settings(), "cors": Cors(()), "shed_path": PATH, "admits": admits}
    connection = SheddingConnection(Config(app, log_config=None, lifespan="off"), ServerState(), state)
    transport = Transport()
    connection.connection_made(transport)
    return connection, transport


async def rounds_until(condition: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition is still false after 1,000 rounds of the event loop")


@pytest.mark.parametrize("pieces", [1, 7])
async def test_pipelined_refusals_take_turns_with_those_of_other_connections(pieces: int) -> None:
    greedy, of_greedy = connect()
    modest, of_modest = connect()
    data = WRITE * 100
    step = -(-len(data) // pieces)
    for start in range(0, len(data), step):
        greedy.data_received(data[start : start + step])
    for turn in range(1, 101):
        assert of_greedy.statuses() == [b"503"] * turn
        assert not of_greedy.reads
        if turn > 1:
            assert of_modest.reads
        modest.data_received(WRITE)
        assert len(of_modest.statuses()) == turn
        await asyncio.sleep(0)
    assert of_greedy.reads
    await asyncio.sleep(0)
    assert greedy not in TURNS.resting
    assert modest not in TURNS.resting


async def test_other_requests_behind_a_refused_write_are_answered_in_order() -> None:
    connection, transport = connect()
    connection.data_received((WRITE + READ + WRITE + WRITE) * 5 + WRITE[:-1])
    await rounds_until(lambda: len(transport.statuses()) == 20)
    assert transport.statuses() == [b"503", b"200", b"503", b"503"] * 5
    await rounds_until(lambda: transport.reads)
    connection.data_received(WRITE[-1:])
    await rounds_until(lambda: len(transport.statuses()) == 21)
    assert connection not in TURNS.resting


async def test_pipelined_requests_are_parsed_only_as_far_as_one_piece_ahead() -> None:
    """A parsed request takes many times the bytes of a small one: 20 clients once made 450 MB of what they had sent."""
    connection, transport = connect(lambda: True)
    connection.data_received(READ * 300)
    for _ in range(2):
        assert len(connection.pipeline) <= PIECE_BYTES_MAX / len(READ)
        assert not transport.reads
        connection.data_received(WRITE)
    await rounds_until(lambda: len(transport.statuses()) == 302)
    assert set(transport.statuses()) == {b"200"}
    assert transport.reads


async def test_a_write_that_waited_for_its_turn_is_admitted_if_there_is_room_by_then() -> None:
    room = [False]
    connection, transport = connect(lambda: room[0])
    connection.data_received(WRITE * 3)
    room[0] = True
    await rounds_until(lambda: len(transport.statuses()) == 3)
    assert transport.statuses() == [b"503", b"200", b"200"]


async def test_only_writes_are_counted_as_admitted_or_refused() -> None:
    asked: list[bool] = []

    def admits() -> bool:
        asked.append(True)
        return True

    connection, transport = connect(admits)
    offer = WRITE.replace(b"Host: x", b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c")
    for request in (READ, WRITE.replace(b"/writes", b"/others"), offer, WRITE):
        transport.written = b""
        connection.data_received(request)
        await rounds_until(lambda: transport.statuses() == [b"200"])
    assert len(asked) == 2


async def test_a_malformed_request_behind_an_upgrade_offer_is_refused_and_no_defect() -> None:
    connection, transport = connect()
    connection.data_received(READ[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + b"GET / HTTP/1.1\r\n\r\n")
    await rounds_until(lambda: connection.lingering)
    assert transport.statuses() == [b"200", b"400"]


async def test_a_malformed_request_behind_refused_writes_is_refused_after_them() -> None:
    connection, transport = connect()
    connection.data_received(WRITE * 3 + b"\0")
    await rounds_until(lambda: connection.lingering)
    assert transport.statuses() == [b"503", b"503", b"503", b"400"]


async def test_a_defect_while_a_head_is_read_is_logged_and_answered_as_a_defect() -> None:
    def fail() -> bool:
        raise ValueError("a defect")

    connection, transport = connect(fail)
    with capture_logs() as logs:
        connection.data_received(WRITE + WRITE)
    assert transport.statuses() == [b"500"]
    assert b'"code":"INTERNAL"' in transport.written
    assert connection.lingering
    [event] = logs
    assert (event["log_level"], str(event["exc_info"])) == ("error", "a defect")


async def test_a_connection_that_closes_has_no_more_turns() -> None:
    connection, transport = connect()
    connection.data_received(WRITE * 3)
    assert connection in TURNS.resting
    transport.close()
    connection.connection_lost(None)
    assert connection not in TURNS.resting
    await asyncio.sleep(0)
    assert transport.statuses() == [b"503"]


async def test_each_round_has_a_limited_number_of_turns_and_serves_every_connection() -> None:
    turns, taken = Turns(), []

    class Waiting:
        def take_turn(self) -> None:
            taken.append(self)
            turns.wait(self)

    waiting = [Waiting() for _ in range(3 * TURNS_PER_ROUND)]
    for connection in waiting * 2:
        turns.wait(connection)
    for number in range(1, 7):
        await asyncio.sleep(0)
        assert taken == (waiting * 2)[: number * TURNS_PER_ROUND]
    for connection in waiting:
        turns.forget(connection)
    await asyncio.sleep(0)
    turns.wait(waiting[0])
    await asyncio.sleep(0)
    assert len(taken) == 6 * TURNS_PER_ROUND + 1
    turns.forget(waiting[0])
