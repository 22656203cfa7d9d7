"""uvicorn, set up for this service."""

import gc
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from types import FrameType

import asyncpg
import uvicorn

from service.app import create_app
from service.database import open_database
from service.protocol import Protocol
from service.settings import Settings, StartError

GARBAGE_OBJECTS = 20_000  # that may gather; looking for it after each 700 takes 4 % of the time
BACKLOG = 2048  # as uvicorn's


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The socket, taken before anything is started: clients wait in its queue. Raises StartError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # two may bind one port, but only one may listen
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not the name of a host"
        raise StartError(
            f"Cannot listen on {settings.host}, port {settings.port}: {reason}. "
            "Stop what is there (another make serve?), or set HOST or PORT."
        ) from error
    with listener:
        yield listener


class Server(uvicorn.Server):
    """Ends in one way only. uvicorn's own skips the lifespan's end at a second Ctrl-C, and raises
    the signal once more when all is done."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's names
        self.should_exit = True


async def check_database(settings: Settings) -> None:
    """Raises StartError if no connection can be opened; within the server that would be a traceback."""
    try:
        async with open_database(settings):
            pass
    except (OSError, asyncpg.InterfaceError, asyncpg.PostgresError, ValueError) as error:
        raise StartError(f"The database refuses: {' '.join(str(error).split())}") from error


def run(settings: Settings, listener: socket.socket) -> None:
    """Serves until SIGINT, or SIGTERM and the drain time; then answers what is in flight."""
    gc.freeze()  # what is loaded by now stays, and need not be looked through again and again
    gc.set_threshold(GARBAGE_OBJECTS)
    server = Server(
        uvicorn.Config(
            create_app(settings),
            loop="uvloop",
            http=Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=ceil(settings.shutdown_grace_ms / 1e3),
        )
    )
    try:
        server.run(sockets=[listener])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # what follows is the clean-up
            signal.signal(number, signal.SIG_IGN)
