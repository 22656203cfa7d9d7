"""Open-loop load: requests are sent on schedule, however slow the answers are, so that queueing is measured."""

import asyncio
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from time import perf_counter
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import uvloop

CONNECTIONS = 512
ORGANISATIONS = 1000
TICK_SECONDS = 0.001
ANSWER_SECONDS_MAX = 30
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Latencies(NamedTuple):
    """Times from a request's scheduled instant to the end of its answer. Answers with a status above 399 are
    `refused`, and their latencies are in `refused_p50_ms` only. Requests without an answer are `lost`."""

    answers: int
    refused: int
    lost: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    refused_p50_ms: float


def load(url: str, rate: float, seconds: float, connections: int = CONNECTIONS) -> Latencies:
    """Sends `rate` new appointments per second, evenly spaced, for 1,000 organisations."""
    return uvloop.run(run(url, rate, seconds, connections))


class Connection(asyncio.Protocol):
    """A connection with at most one request in flight."""

    def __init__(self, schedule: "Schedule") -> None:
        self._schedule = schedule
        self._received = b""
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._schedule.free(self)

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if separator and length and len(body) >= int(length[1]):
            self._received = b""
            assert head[9:12] != b"503" or b"retry-after: 1" in head, head
            self._schedule.answered(int(head[9:12]), perf_counter() - self._due)
            self._schedule.free(self)

    def close(self) -> None:
        self._transport.close()


class Schedule:
    """Matches due requests with free connections, and records the latencies in seconds."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self._free: deque[Connection] = deque()
        self._due: deque[float] = deque()
        self._last, self._done = -1, asyncio.Event()
        self.accepted: list[float] = []
        self.refused: list[float] = []

    def due(self, at: float) -> None:
        self._due.append(at)
        self._match()

    def free(self, connection: Connection) -> None:
        self._free.append(connection)
        self._match()

    def _match(self) -> None:
        while self._due and self._free:
            self._free.popleft().send(next(self._requests), self._due.popleft())

    async def all_answered(self, count: int) -> None:
        self._last = count
        if self.answers() < count:
            await self._done.wait()

    def answers(self) -> int:
        return len(self.accepted) + len(self.refused)

    def answered(self, status: int, seconds: float) -> None:
        (self.accepted if status < 400 else self.refused).append(seconds)
        if self.answers() == self._last:
            self._done.set()


async def run(url: str, rate: float, seconds: float, connections: int) -> Latencies:
    schedule = Schedule(appointments(ORGANISATIONS))
    loop, parts = asyncio.get_running_loop(), urlsplit(url)
    opened = [
        await loop.create_connection(lambda: Connection(schedule), parts.hostname or "", parts.port or 0)
        for _ in range(connections)
    ]
    count, sent, start = round(rate * seconds), 0, perf_counter()
    while sent < count:
        while sent < count and start + sent / rate <= perf_counter():
            schedule.due(start + sent / rate)
            sent += 1
        await asyncio.sleep(TICK_SECONDS)
    with suppress(TimeoutError):
        await asyncio.wait_for(schedule.all_answered(count), ANSWER_SECONDS_MAX)
    for _, connection in opened:
        connection.close()
    accepted, refused = sorted(schedule.accepted), sorted(schedule.refused)
    p50, p99 = (accepted[int(len(accepted) * share)] * 1e3 for share in (0.5, 0.99))
    refused_p50 = refused[len(refused) // 2] * 1e3 if refused else 0
    lost = count - schedule.answers()
    return Latencies(schedule.answers(), len(refused), lost, p50, p99, accepted[-1] * 1e3, refused_p50)


def appointments(organisations: int) -> Iterator[bytes]:
    """Requests for appointments that do not overlap."""
    run = uuid4().hex[:8]
    for number in range(organisations * 27 * 12 * 8000):
        slot = number // organisations
        day = f"{2000 + slot // 324:04d}-{slot % 324 // 27 + 1:02d}-"
        body = (
            f'{{"id":"{run}-{number}","start":"{day}{slot % 27 + 1:02d}","end":"{day}{slot % 27 + 2:02d}",'
            f'"createdAt":"2000-01-01","updatedAt":"2000-01-01","orgId":"o-{number % organisations}"}}'
        )
        yield (
            "POST /api/appointments HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
