"""The application, put together."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import structlog
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from service import VERSION, docs, handlers, reads
from service.body import Bodies
from service.cors import Cors
from service.database import open_database
from service.endpoint import Endpoint, StaticRouter
from service.linger import Linger
from service.metrics import sampled
from service.observe import Observe
from service.readiness import Shutdown, draining
from service.settings import Settings
from service.state import State
from service.tokens import open_guard
from service.waiters import open_waiters
from service.writer import open_writer

STREAM_SLACK_MS = 1_000  # the service cuts a stream before the database does

log = structlog.get_logger()


def routes(settings: Settings) -> list[Route]:
    return [
        Route("/api/appointments", Endpoint(reads.list_appointments, handlers.post_appointment)),
        Route("/api/appointments/batch", Endpoint(post=handlers.post_batch)),
        Route("/api/appointments/versions", Endpoint(reads.list_versions)),
        Route("/api/appointments/changes", Endpoint(reads.list_changes)),
        Route("/api/appointments.ics", Endpoint(reads.calendar)),
        Route("/api/availability", Endpoint(reads.list_availability)),
        Route("/livez", Endpoint(handlers.livez, guarded=False)),
        Route("/readyz", Endpoint(handlers.readyz, guarded=False)),
        Route("/metrics", Endpoint(handlers.metrics, guarded=not settings.metrics_open)),
        *docs.routes(guarded=not settings.docs_open),
    ]


def create_app(settings: Settings) -> ASGIApp:
    @asynccontextmanager
    async def lifespan(_: Router) -> AsyncIterator[State]:
        shutdown = Shutdown()
        # The probe has a connection of its own: a busy pool is no reason to be taken out of service.
        alone = msgspec.structs.replace(settings, pool_connections_max=1)
        streams = msgspec.structs.replace(settings, pool_connections_max=settings.stream_connections_max)
        async with (
            open_database(settings) as database,
            open_database(alone) as probe_database,
            open_database(streams, transaction_ms_max=settings.stream_ms_max + STREAM_SLACK_MS) as stream_database,
            open_waiters(database, shutdown, settings) as waiters,
            open_writer(settings) as writer,
            open_guard(settings) as guard,
            sampled(database.pool, database.waiting, writer.waiting),
        ):
            with draining(shutdown, settings.shutdown_drain_ms):
                where = {"api": f"{settings.url()}/api/appointments", "docs": f"{settings.url()}/api/docs"}
                log.info("started", version=VERSION, process=os.getpid(), **where, settings=settings.masked())
                yield State(
                    settings=settings,
                    guard=guard,
                    bodies=Bodies(settings.buffer_bytes_max),
                    database=database,
                    probe_database=probe_database,
                    stream_database=stream_database,
                    writer=writer,
                    waiters=waiters,
                    shutdown=shutdown,
                )
        log.info("stopped", process=os.getpid())

    # The router alone: Starlette's middleware would handle exceptions twice more, and Observe does.
    found = routes(settings)
    router = StaticRouter(found, lifespan)
    app = Linger(Observe(router, frozenset(route.path for route in found)), settings.linger_ms_max)
    origins = settings.origins()
    return Cors(app, origins) if origins else app
