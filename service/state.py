"""What the application holds for its handlers."""

from typing import TypedDict

from starlette.requests import Request

from service.access import Guard
from service.body import Bodies
from service.database import Database
from service.readiness import Shutdown
from service.settings import Settings
from service.waiters import Waiters
from service.writer import Writer


class State(TypedDict):
    settings: Settings
    guard: Guard
    bodies: Bodies
    database: Database
    stream_database: Database
    probe_database: Database
    writer: Writer
    waiters: Waiters
    shutdown: Shutdown


def state_of(request: Request) -> State:
    """`request.state` would wrap it anew for each request, which costs as much as decoding a body."""
    state: State = request.scope["state"]
    return state
