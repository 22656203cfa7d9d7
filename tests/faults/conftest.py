from collections.abc import Iterator
from pathlib import Path

import pytest

from service.database import schema
from tests.faults.server import Server, running_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A PostgreSQL server for one test, with a migrated database."""
    with running_server(tmp_path / "server") as started:
        schema.migrate(started.url)
        yield started
