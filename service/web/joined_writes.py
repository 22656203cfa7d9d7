"""A transport that writes the head and the body of an answer together."""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any


class JoinedWrites:
    """uvloop makes a system call of each write, which is a tenth of a small request's time. `lingers` is asked before
    the connection is closed; if it returns true, the connection is closed later."""

    def __init__(self, transport: asyncio.Transport, lingers: Callable[[], bool]) -> None:
        self._transport, self._lingers = transport, lingers
        self._pieces: list[bytes] = []
        self._delimits = self._incomplete = False
        self._call_soon = asyncio.get_running_loop().call_soon
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:  # the rest of the answer may come much later
            self._call_soon(self.flush)
        self._pieces.append(data)

    def delimit(self, *, complete: bool) -> None:
        """The end of the connection is the end of the answer, so until that is complete, any end is a reset, even that
        of the process: the client must not take a part for the whole."""
        self._delimits, self._incomplete = True, not complete
        self._end_with_reset(self._incomplete)

    def _end_with_reset(self, on: bool) -> None:
        if not self.is_closing():
            linger = struct.pack("ii", on, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def abort(self) -> None:
        if self._delimits and self._transport.get_write_buffer_size():
            self._end_with_reset(True)
        self._transport.abort()

    def close(self) -> None:
        self.flush()
        if self._incomplete:
            self.abort()
        elif not self._lingers():
            self._transport.close()

    def write_eof(self) -> None:
        self.flush()
        if not self.is_closing():
            self._transport.write_eof()

    def flush(self) -> None:
        if self._pieces:
            if not self.is_closing():  # the client may have reset a connection that the protocol believes open
                self._transport.write(b"".join(self._pieces))
            self._pieces.clear()
