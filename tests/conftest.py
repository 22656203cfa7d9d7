import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from service.database import embedded
from service.database.pool import Database, open_database
from service.settings import Settings
from tests.cluster import COORDINATOR_URL, DISTRIBUTED
from tests.databases import migrated_template, new_database
from tests.launcher import GRANTS_BY_BUCKET
from tests.processes import ServiceProcess, running_service, writes_by_bucket


@pytest.fixture(scope="session", autouse=True)
def tested_writer() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if writes_by_bucket():
            patch.setattr("service.writing.writer.ALWAYS_BY_BUCKET", True)
            patch.setattr("service.database.statements.DISTRIBUTED_GRANTS", GRANTS_BY_BUCKET)
        yield


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The PostgreSQL server of TEST_DATABASE_URL, or an embedded one for this test session."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    directory = Path(tempfile.mkdtemp(prefix="appointments-tests-", dir="/tmp"))
    try:
        with embedded.running(directory) as url:
            yield url
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """What `new_database` makes a migrated, empty database from."""
    if COORDINATOR_URL:
        yield DISTRIBUTED
        return
    with migrated_template(server_url) as name:
        yield name


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """A migrated, empty database for one test."""
    with new_database(server_url, template) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    settings = Settings(database_url=database_url)
    async with open_database(settings, distributed=bool(COORDINATOR_URL)) as opened:
        yield opened


@pytest.fixture(scope="session")
def service(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service shared by all tests of a pytest worker that need no more isolation than their own organisation."""
    directory = tmp_path_factory.mktemp("service")
    with (
        new_database(server_url, template) as url,
        running_service(directory, DATABASE_URL=url, LOG_LEVEL="debug") as process,
    ):
        yield process
        assert [event for event in process.events() if event["level"] in ("error", "critical")] == []


@pytest.fixture
def client(service: ServiceProcess) -> httpx.Client:
    return service.client


@pytest.fixture
def organisation() -> str:
    return f"org-{uuid4().hex}"
