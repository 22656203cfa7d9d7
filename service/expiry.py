"""Limits that are looked at from outside, for all connections at once: a timer for each request would cost
every one of them."""

from collections.abc import Iterable, Mapping
from math import inf
from time import monotonic

from service.metrics import REFUSALS
from service.protocol import Protocol
from service.settings import Settings


def limits(settings: Settings) -> Mapping[str, float]:
    """How many seconds a connection may be in a phase; as long as it likes in those that are missing."""
    return {
        "refused": settings.linger_ms_max / 1e3,
        "head": settings.header_ms_max / 1e3,
        "body": settings.body_ms_max / 1e3,
        "writing": settings.stream_ms_max / 1e3,
        "idle": settings.keep_alive_ms_max / 1e3,
    }


def expire_slow(connections: Iterable[Protocol], seconds_max: Mapping[str, float]) -> None:
    """To be called again and again; a limit is exceeded by the time between two calls at most."""
    now = monotonic()
    for connection in list(connections):
        progress = connection.progress()
        _, phase = progress
        if progress != connection.noted:
            connection.noted, connection.noted_at = progress, now
        elif now - connection.noted_at > seconds_max.get(phase, inf):
            connection.expire(phase)


def cut_unread(connections: Iterable[Protocol], bytes_max: int) -> None:
    """Cuts off those who leave the most unread, until what waits for its readers is no more than that."""
    unread = {connection: connection.transport.get_write_buffer_size() for connection in connections}
    excess = sum(unread.values()) - bytes_max
    for connection in sorted(unread, key=lambda each: unread[each], reverse=True):
        if excess <= 0:
            break
        excess -= unread[connection]
        REFUSALS.labels("OVERLOADED").inc()
        connection.transport.abort()
