"""What the application holds for this package."""

from typing import TypedDict

from service.database.pool import Database
from service.reading.change_poller import ChangePoller
from service.settings import Settings


class ReadingState(TypedDict):
    settings: Settings
    database: Database
    stream_database: Database
    change_poller: ChangePoller
