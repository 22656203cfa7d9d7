"""uvicorn, set up for this service: one process on a socket that is already listening."""

import gc
import logging
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from types import FrameType

import msgspec
import structlog
import uvicorn
from starlette.types import ASGIApp

from service import interruption
from service.database_url import each_host
from service.problems import StartError
from service.settings import Settings
from service.web.load_shedding import SheddingConnection

log = structlog.get_logger()

GARBAGE_OBJECTS = 20_000  # before a collection; the default of 700 costs 4 % of the time
STANDBY_MORE = 5  # connections to a standby beyond its pool: 4 for streams, 1 that is polled
DESCRIPTORS_KEPT = 190  # for refused connections, other database connections than the pool's, logs and libraries
BACKLOG = 2048  # as uvicorn's

CreateApp = Callable[[Settings], ASGIApp]


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The socket, opened before anything is started: early clients wait in its queue. Raises StartError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # two processes may bind one port, but only one may listen
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not the name of a host"
        raise StartError(
            f"Cannot listen on {settings.host}, port {settings.port}: {reason}. "
            "Stop the program that uses it (another make serve?), or set HOST or PORT."
        ) from error
    with listener:
        yield listener


def as_warning(record: logging.LogRecord) -> bool:
    """For uvicorn's log, where a list that was cut, and requests that did not end within the grace time, are errors."""
    if record.getMessage().startswith(("ASGI callable returned without completing", "Cancel ")):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


class Server(uvicorn.Server):
    """Always ends in the same way: uvicorn's own server skips the end of the lifespan at a second Ctrl-C, and raises
    the signal again at its end."""

    interrupted_by = 0  # a signal that came before the service was ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's names
        if not self.started:
            self.interrupted_by = sig
        self.should_exit = True

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        interruption.handle(self.handle_exit)  # uvicorn does not handle SIGHUP
        try:
            await super().serve(sockets)
        finally:
            interruption.ignore()


def run(create_app: CreateApp, settings: Settings, listener: socket.socket) -> None:
    """Serves until SIGINT, or SIGTERM and the drain period; then answers the requests in flight. Raises
    KeyboardInterrupt if the signal came before the service was ready."""
    gc.freeze()  # objects that exist by now stay alive, so collections need not visit them
    gc.set_threshold(GARBAGE_OBJECTS)
    settings = within_descriptors(settings)
    logging.getLogger("uvicorn.error").addFilter(as_warning)
    config = uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http=SheddingConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=ceil(settings.shutdown_grace_ms / 1e3),
    )
    server = Server(config)
    try:
        server.run(sockets=[listener])
    finally:
        if server.interrupted_by:
            raise KeyboardInterrupt(server.interrupted_by)


def within_descriptors(settings: Settings) -> Settings:
    """Raises the limit of open files as far as allowed; lowers `connections_max` to what fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    standbys = len(each_host(settings.read_database_url)) if settings.read_database_url else 0
    kept = DESCRIPTORS_KEPT + settings.pool_connections_max + standbys * (settings.pool_connections_max + STANDBY_MORE)
    wanted = settings.connections_max + kept
    possible = max(soft, wanted) if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible >= wanted:
        return settings
    room = max(possible - kept, 1)
    log.warning("fewer connections than CONNECTIONS_MAX", connections_max=room, open_files_max=hard)
    return msgspec.structs.replace(settings, connections_max=room)
