from collections.abc import Iterator

import pytest

from tests.databases import assert_invariants, new_database
from tests.processes import ServiceProcess, running_service


@pytest.fixture(scope="module")
def process(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("model")
    with (
        new_database(server_url, template) as url,
        running_service(directory, DATABASE_URL=url, WORKERS="2") as started,
    ):
        yield started
        assert_invariants(url)
