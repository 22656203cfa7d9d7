"""uvicorn, set up for this service."""

import gc
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from types import FrameType

import asyncpg
import msgspec
import structlog
import uvicorn

from service.admission import AdmittingProtocol
from service.app import create_app
from service.database import open_database
from service.expiry import cut_unread, expire_slow, limits
from service.settings import Settings, StartError

log = structlog.get_logger()

GARBAGE_OBJECTS = 20_000  # that may gather; looking for it after each 700 takes 4 % of the time
DESCRIPTORS_KEPT = 200  # for the database, logs, and what a library may open
EXPIRY_TICKS = 5  # of uvicorn's ten a second
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
    """Ends slow connections, and itself in one way only: uvicorn's own skips the lifespan's end at a
    second Ctrl-C, and raises the signal once more when all is done."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._limits = limits(settings)
        self._buffer_bytes_max = settings.buffer_bytes_max

    async def on_tick(self, counter: int) -> bool:
        if counter % EXPIRY_TICKS == 0:
            expire_slow(self.server_state.connections, self._limits)  # type: ignore[arg-type]
            cut_unread(self.server_state.connections, self._buffer_bytes_max)  # type: ignore[arg-type]
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's names
        self.should_exit = True


async def check_database(settings: Settings) -> None:
    """Raises StartError if no connection can be opened; within the server that would be a traceback."""
    try:
        async with open_database(settings):
            pass
    except (OSError, asyncpg.InterfaceError, asyncpg.PostgresError, ValueError) as error:
        raise StartError(f"The database refuses: {' '.join(str(error).split())}") from error


def within_descriptors(settings: Settings) -> Settings:
    """Lets the process open as many files as its connections need, or else allows fewer connections."""
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.connections_max + DESCRIPTORS_KEPT
    possible = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    if few != resource.RLIM_INFINITY and few < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, most))
    if possible == wanted:
        return settings
    room = possible - DESCRIPTORS_KEPT
    log.warning("fewer connections than CONNECTIONS_MAX", connections_max=room, open_files_max=most)
    return msgspec.structs.replace(settings, connections_max=room)


def run(settings: Settings, listener: socket.socket) -> None:
    """Serves until SIGINT, or SIGTERM and the drain time; then answers what is in flight."""
    gc.freeze()  # what is loaded by now stays, and need not be looked through again and again
    gc.set_threshold(GARBAGE_OBJECTS)
    settings = within_descriptors(settings)
    config = uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http=AdmittingProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=ceil(settings.shutdown_grace_ms / 1e3),
    )
    server = Server(config, settings)
    try:
        server.run(sockets=[listener])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # what follows is the clean-up
            signal.signal(number, signal.SIG_IGN)
