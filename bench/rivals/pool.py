"""Rival b: the service's own statement over a plain asyncpg pool, one statement per request.

Settings: DATABASE_URL, POOL (connections). It handles only the requests of the benchmark.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from service.database.buckets import bucket_of
from service.database.statements import UPSERT_APPOINTMENT

ANSWERS = {"ok": (200, {"status": "ok"}), "stale": (200, {"status": "ignored-stale"}), "conflict": (409, {})}

VERDICT = 1  # the column's index


class Payload(msgspec.Struct, rename="camel"):
    id: str
    start: str
    end: str
    created_at: str
    updated_at: str
    org_id: str = "default"


DECODER = msgspec.json.Decoder(Payload)


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def post_appointment(request: Request) -> JSONResponse:
    p = DECODER.decode(await request.body())
    instants = map(instant, (p.start, p.end, p.created_at, p.updated_at))
    arguments = (p.org_id, p.id, *instants, False, uuid4(), bucket_of(p.org_id))
    verdict = await decide(request.state.pool, arguments)
    while verdict == "busy":
        await asyncio.sleep(0.001)
        verdict = await decide(request.state.pool, arguments)
    status, body = ANSWERS[verdict]
    return JSONResponse(body, status)


async def decide(pool: asyncpg.Pool, arguments: tuple[object, ...]) -> str:
    try:
        arrays = [[argument] for argument in arguments]
        return str(await pool.fetchval(UPSERT_APPOINTMENT.text, *arrays, column=VERDICT))
    except asyncpg.ExclusionViolationError:
        return "conflict"


async def keep_session(_: asyncpg.Connection) -> None:
    """Replaces asyncpg's reset of the session, which would double the round trips."""


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, asyncpg.Pool]]:
    size = int(os.environ["POOL"])
    settings = {"plan_cache_mode": "force_generic_plan", "jit": "off"}
    async with asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=size, max_size=size, reset=keep_session, server_settings=settings
    ) as pool:
        yield {"pool": pool}


app = Starlette(routes=[Route("/api/appointments", post_appointment, methods=["POST"])], lifespan=lifespan)
