"""The line between the service and its database, in our hands."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

SYNC = b"S\x00\x00\x00\x04"  # ends a pipeline, and so its transaction
CHUNK_BYTES = 65_536
Stage = Literal["before", "between", "after"]


class Line:
    """Connections on 127.0.0.1 that lead to the socket at `target`, which may be changed.

    `seconds` is how long each piece takes on its way; while `stalled`, none arrives. `cut_at` cuts the next
    request at a stage: before it reaches the server, between the server's work and its answer, or after.
    `halves` is what the request holds that is to arrive but for its end, and nothing after it.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.seconds = 0.0
        self.stalled = False
        self.refuses = False
        self.cut_at: Stage | None = None
        self.halves: bytes | None = None
        self.cuts = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()

    def cut(self) -> None:
        """All connections, in the middle of whatever they do."""
        self._loop.call_soon_threadsafe(self._cut_all)

    def _cut_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, ended: asyncio.Event, started: threading.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await ended.wait()
        server.close()
        self._cut_all()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_unix_connection(self.target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, to_server}
        self._writers |= both
        fate = Fate()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._upwards(reader, to_server, fate))
                group.create_task(self._downwards(from_server, writer, fate))
        except* OSError:
            pass
        finally:
            self._writers -= both
            for each in both:
                each.transport.abort()

    async def _upwards(self, client: asyncio.StreamReader, server: asyncio.StreamWriter, fate: "Fate") -> None:
        async for piece in self._arriving(client):
            if self.cut_at and is_request(piece):
                fate.stage, self.cut_at = self.cut_at, None
                self.cuts += 1
                if fate.stage == "before":
                    raise ConnectionError
            if self.halves and self.halves in piece:
                assert piece.endswith(SYNC)
                self.halves = None
                server.write(piece.removesuffix(SYNC))
                await asyncio.Event().wait()
            server.write(piece)
            await server.drain()

    async def _downwards(self, server: asyncio.StreamReader, client: asyncio.StreamWriter, fate: "Fate") -> None:
        async for piece in self._arriving(server):
            if fate.stage != "between":
                client.write(piece)
                await client.drain()
            if fate.stage:
                raise ConnectionError

    async def _arriving(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """Raises ConnectionError at the end: half a line is none."""
        while piece := await reader.read(CHUNK_BYTES):
            await asyncio.sleep(self.seconds)
            while self.stalled:
                await asyncio.sleep(0.01)
            yield piece
        raise ConnectionError


class Fate:
    """Where one connection is to be cut, once that is decided."""

    stage: Stage | None = None


def is_request(piece: bytes) -> bool:
    """Whether it binds the parameters of a statement (PostgreSQL's protocol, message Bind)."""
    return piece[:1] == b"B"


@contextmanager
def line_to(target: str) -> Iterator[Line]:
    line, started = Line(target), threading.Event()
    ended = asyncio.Event()
    thread = threading.Thread(target=line._loop.run_until_complete, args=(line.serve(ended, started),))
    thread.start()
    assert started.wait(10)
    try:
        yield line
    finally:
        line._loop.call_soon_threadsafe(ended.set)
        thread.join()
        with suppress(RuntimeError):
            line._loop.close()
