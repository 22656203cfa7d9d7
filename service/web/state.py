"""What the application holds for this package; service/app.py puts the whole state together."""

from collections.abc import Callable
from typing import TypedDict

from service.access.tokens import Tokens
from service.database.pool import Database
from service.settings import Settings
from service.web.connection import Connection
from service.web.endpoint import BodyRoom
from service.web.shutdown import Shutdown


class WebState(TypedDict):
    settings: Settings
    connections: set[Connection]
    shed_path: str  # a POST to it is refused unread
    admits: Callable[[], bool]  # unless this says that there is room
    tokens: Tokens | None
    body_room: BodyRoom
    probe_database: Database
    shutdown: Shutdown
