"""The application, put together."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import structlog
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from service import VERSION, docs, handlers
from service.database import open_database
from service.endpoint import Endpoint, StaticRouter
from service.handlers import State
from service.linger import Linger
from service.metrics import sampled
from service.observe import Observe
from service.readiness import Shutdown, draining
from service.settings import Settings
from service.writer import open_writer

log = structlog.get_logger()

ROUTES = [
    Route("/api/appointments", Endpoint(handlers.list_appointments, handlers.post_appointment)),
    Route("/livez", Endpoint(handlers.livez)),
    Route("/readyz", Endpoint(handlers.readyz)),
    Route("/metrics", Endpoint(handlers.metrics)),
    *docs.ROUTES,
]


def create_app(settings: Settings) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(_: Router) -> AsyncIterator[State]:
        shutdown = Shutdown()
        # The probe has a connection of its own: a busy pool is no reason to be taken out of service.
        alone = msgspec.structs.replace(settings, pool_connections_max=1)
        async with (
            open_database(settings) as database,
            open_database(alone) as probe_database,
            open_writer(settings) as writer,
            sampled(database.pool, writer.waiting),
        ):
            with draining(shutdown, settings.shutdown_drain_ms):
                where = addresses(settings)
                log.info("started", version=VERSION, process=os.getpid(), **where, settings=settings.masked())
                yield State(
                    settings=settings,
                    database=database,
                    probe_database=probe_database,
                    writer=writer,
                    shutdown=shutdown,
                )
        log.info("stopped", process=os.getpid())

    # The router alone: Starlette's middleware would handle exceptions twice more, and Observe does.
    router = StaticRouter(ROUTES, lifespan)
    return Linger(Observe(router, frozenset(route.path for route in ROUTES)), settings.linger_ms_max)


def addresses(settings: Settings) -> dict[str, str]:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    base = f"http://{host}:{settings.port}/api"
    return {"api": f"{base}/appointments", "docs": f"{base}/docs"}
