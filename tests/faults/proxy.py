"""A TCP proxy between the service and its database that can delay, stall and cut connections."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from tests.processes import wait_until

SYNC = b"S\x00\x00\x00\x04"  # PostgreSQL's message Sync: ends a pipeline and commits its implicit transaction
CHUNK_BYTES = 65_536
Stage = Literal["before", "between", "after"]


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards to the Unix socket `target`, which may be changed at any time.

    `delay_seconds` is added to each chunk in each direction. While `stalled`, nothing is forwarded, and
    `stalled_chunks` counts the chunks that are held back. A pipeline that contains `unfinished` is forwarded without
    its final Sync, and nothing after it.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.delay_seconds = 0.0
        self.stalled = False
        self.stalled_chunks = 0
        self.refuses_connections = False
        self._cut_stage: Stage | None = None
        self.unfinished: bytes | None = None
        self._cuts = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()

    def cut_next_request(self, stage: Stage) -> None:
        """Waits for the next request on any connection and cuts that connection: before the request is forwarded,
        between the server's work and its answer, or after the answer."""
        cuts = self._cuts
        self._cut_stage = stage
        wait_until(lambda: self._cuts > cuts)

    def cut_all(self) -> None:
        """Cuts all connections, whatever they are doing."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def _abort_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, stop: asyncio.Event, started: threading.Event) -> None:
        server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()
        self._abort_all()

    async def _on_connection(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self.refuses_connections:
            to_client.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_unix_connection(self.target)
        except OSError:
            to_client.transport.abort()
            return
        writers = {to_client, to_server}
        self._writers |= writers
        planned = PlannedCut()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward_requests(from_client, to_server, planned))
                group.create_task(self._forward_answers(from_server, to_client, planned))
        except* OSError:
            pass
        finally:
            self._writers -= writers
            for writer in writers:
                writer.transport.abort()

    async def _forward_requests(
        self, from_client: asyncio.StreamReader, to_server: asyncio.StreamWriter, planned: "PlannedCut"
    ) -> None:
        async for chunk in self._chunks(from_client):
            if self._cut_stage and is_request(chunk):
                planned.stage, self._cut_stage = self._cut_stage, None
                self._cuts += 1
                if planned.stage == "before":
                    raise ConnectionError
            if self.unfinished and self.unfinished in chunk:
                assert chunk.endswith(SYNC)
                self.unfinished = None
                to_server.write(chunk.removesuffix(SYNC))
                await asyncio.Event().wait()
            to_server.write(chunk)
            await to_server.drain()

    async def _forward_answers(
        self, from_server: asyncio.StreamReader, to_client: asyncio.StreamWriter, planned: "PlannedCut"
    ) -> None:
        async for chunk in self._chunks(from_server):
            if planned.stage != "between":
                to_client.write(chunk)
                await to_client.drain()
            if planned.stage:
                raise ConnectionError

    async def _chunks(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """Raises ConnectionError at the end of the stream, so that the other direction is closed as well."""
        while chunk := await reader.read(CHUNK_BYTES):
            await asyncio.sleep(self.delay_seconds)
            if self.stalled:
                self.stalled_chunks += 1
            while self.stalled:
                await asyncio.sleep(0.01)
            yield chunk
        raise ConnectionError


class PlannedCut:
    """Where one connection will be cut, shared by its two directions."""

    stage: Stage | None = None


def is_request(chunk: bytes) -> bool:
    """Whether the chunk executes a prepared statement: it starts with PostgreSQL's message Bind."""
    return chunk[:1] == b"B"


@contextmanager
def running_proxy(target: str) -> Iterator[Proxy]:
    proxy, started = Proxy(target), threading.Event()
    stop = asyncio.Event()
    thread = threading.Thread(target=proxy._loop.run_until_complete, args=(proxy.serve(stop, started),))
    thread.start()
    assert started.wait(10)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(stop.set)
        thread.join()
        with suppress(RuntimeError):
            proxy._loop.close()
