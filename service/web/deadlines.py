"""Time limits of connections, checked twice a second for all of them: a timer for each would make requests slower."""

import asyncio
from collections.abc import Collection
from math import inf
from time import monotonic
from typing import Literal

from service.metrics import REFUSALS
from service.problems import ProblemError
from service.settings import Settings
from service.web.connection import Connection

CHECK_SECONDS = 0.5  # a limit is exceeded by this much at most
HEAD_MS_MAX = 10_000  # also the time in which a new connection must send something
BODY_MS_MAX = 60_000
LINGER_MS_MAX = 5_000

Phase = Literal["head", "body", "busy", "writing", "idle", "lingering"]


async def keep_deadlines(connections: Collection[Connection], settings: Settings) -> None:
    """Runs until it is cancelled."""
    ms_max: dict[Phase, int] = {
        "head": HEAD_MS_MAX,
        "body": BODY_MS_MAX,
        "writing": settings.stream_ms_max,
        "idle": settings.keep_alive_ms_max,
        "lingering": LINGER_MS_MAX,
    }
    while True:
        now = monotonic()
        for connection in list(connections):
            phase = phase_of(connection)
            progress = connection.messages, phase
            if progress != connection.last_progress:
                connection.last_progress, connection.last_progress_at = progress, now
            elif (now - connection.last_progress_at) * 1e3 > ms_max.get(phase, inf):
                expire(connection, phase)
        end_unread(connections, settings.buffer_bytes_max)
        await asyncio.sleep(CHECK_SECONDS)


def phase_of(connection: Connection) -> Phase:
    if connection.wire.get_write_buffer_size():
        return "writing"
    if connection.lingering:
        return "lingering"
    if connection.reading == "body" and not connection.is_pipelined():
        return "body"
    if connection.owes_answer():
        return "busy"
    return "head" if connection.reading == "head" or not connection.messages else "idle"


def expire(connection: Connection, phase: Phase) -> None:
    if phase == "head" and connection.messages:
        connection.refuse(ProblemError("REQUEST_TIMEOUT", "The request line and headers took too long."))
    elif phase == "body" and connection.is_unanswered():
        connection.refuse(ProblemError("REQUEST_TIMEOUT", "The body took too long; nothing was written."))
    elif phase in ("head", "idle"):
        connection.wire.close()
    else:
        connection.wire.abort()


def end_unread(connections: Collection[Connection], bytes_max: int) -> None:
    """Aborts the connections with the most unread data until all of them together hold no more than the limit."""
    unread = {connection: connection.wire.get_write_buffer_size() for connection in connections}
    excess = sum(unread.values()) - bytes_max
    for connection in sorted(unread, key=lambda each: unread[each], reverse=True):
        if excess <= 0:
            break
        excess -= unread[connection]
        REFUSALS.labels("OVERLOADED").inc()
        connection.wire.abort()
