"""The application, put together: routes, state and lifespan."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from service import VERSION, metrics
from service.access.tokens import open_tokens
from service.contract import body, items
from service.database import schema
from service.database.pool import Database, open_database
from service.database.replicas import Server, open_replicas
from service.reading import handlers as reading
from service.reading.change_poller import open_change_poller
from service.reading.stream_places import StreamPlaces
from service.settings import Settings
from service.supervisor import supervised
from service.web import docs, probes
from service.web.connection import Connection
from service.web.cors import Cors
from service.web.deadlines import keep_deadlines
from service.web.endpoint import BodyRoom, Endpoint, not_found
from service.web.request_context import RequestContext
from service.writing import handlers as writing
from service.writing.writer import open_writer

APPOINTMENTS = "/api/appointments"
STREAM_CONNECTIONS_MAX = 4  # lists of more than 1,000 rows in progress
STREAM_SLACK_MS = 1_000  # the service cuts a stream before the database does

log = structlog.get_logger()


def routes(settings: Settings) -> list[Route]:
    return [
        Route(APPOINTMENTS, Endpoint(reading.list_appointments, (writing.post_appointment, body.APPOINTMENT))),
        Route("/api/appointments/batch", Endpoint(post=(writing.post_batch, items.BATCH))),
        Route("/api/appointments/versions", Endpoint(reading.list_versions)),
        Route("/api/appointments/changes", Endpoint(reading.list_changes)),
        Route("/api/appointments.ics", Endpoint(reading.calendar)),
        Route("/api/availability", Endpoint(reading.list_availability)),
        Route("/livez", Endpoint(probes.livez, guarded=False)),
        Route("/readyz", Endpoint(probes.readyz, guarded=False)),
        Route("/metrics", Endpoint(probes.metrics, guarded=not settings.metrics_open)),
        *docs.routes(guarded=not settings.docs_open),
    ]


def create_app(settings: Settings) -> ASGIApp:
    found = routes(settings)
    # The router alone: Starlette's middleware would handle exceptions twice more, and RequestContext does.
    router = Router(found, default=not_found, redirect_slashes=False, lifespan=lambda _: lifespan(settings))
    return RequestContext(router, {route.path: route.app for route in found})


@asynccontextmanager
async def open_server(settings: Settings, *, distributed: bool) -> AsyncIterator[Server]:
    """The pools of a server that reads go to."""
    ms_max = settings.stream_ms_max + STREAM_SLACK_MS
    async with (
        open_database(settings, distributed=distributed) as database,
        open_database(
            settings, distributed=distributed, connections_max=STREAM_CONNECTIONS_MAX, transaction_ms_max=ms_max
        ) as stream_database,
    ):
        yield Server(database, stream_database)


@asynccontextmanager
async def open_probe(settings: Settings) -> AsyncIterator[tuple[Database, bool]]:
    """A connection of its own, since a busy pool does not make the service unready; and whether Citus has distributed
    the tables."""
    async with open_database(settings, connections_max=1) as database:
        yield database, await schema.are_distributed(database)


@asynccontextmanager
async def lifespan(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    shutdown = probes.Shutdown()
    connections: set[Connection] = set()
    async with (
        open_probe(settings) as (probe_database, distributed),
        open_server(settings, distributed=distributed) as primary,
        open_replicas(settings, partial(open_server, distributed=distributed)) as replicas,
        open_change_poller(primary.database, distributed=distributed) as change_poller,
        open_writer(settings, distributed=distributed) as writer,
        open_tokens(settings) as tokens,
    ):
        levels = {
            metrics.POOL_CONNECTIONS.labels("idle"): primary.database.idle,
            metrics.POOL_CONNECTIONS.labels("busy"): primary.database.busy,
            metrics.REQUESTS_WAITING: primary.database.waiting,
            metrics.WRITES_WAITING: writer.waiting,
        }
        async with supervised(
            deadlines=lambda: keep_deadlines(connections, settings), gauges=lambda: metrics.sample(levels)
        ):
            with probes.draining(shutdown, settings.shutdown_drain_ms, change_poller.end_waits):
                where = {"api": f"{settings.url()}{APPOINTMENTS}", "docs": f"{settings.url()}/api/docs"}
                log.info(
                    "started",
                    version=VERSION,
                    process=os.getpid(),
                    distributed=distributed,
                    settings=settings.masked(),
                    **where,
                )
                yield {  # what the handlers and the connections find in `scope["state"]`
                    "settings": settings,
                    "connections": connections,
                    "shed_path": APPOINTMENTS,  # a POST to it is refused unread
                    "admits": writer.admits,  # unless this says that there is room
                    "cors": Cors(settings.origins()),
                    "tokens": tokens,
                    "body_room": BodyRoom(settings.buffer_bytes_max),
                    "primary": primary,
                    "replicas": replicas,
                    "probe_database": probe_database,
                    "stream_places": StreamPlaces(STREAM_CONNECTIONS_MAX),
                    "change_poller": change_poller,
                    "writer": writer,
                    "shutdown": shutdown,
                    "distributed": distributed,
                }
    log.info("stopped", process=os.getpid())
