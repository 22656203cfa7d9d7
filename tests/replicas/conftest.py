"""A primary with two hot standbys."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from service.database import schema
from tests.databases import query
from tests.faults.server import Server, cleaned_up, create_standby, running_server
from tests.http.requests import assert_accepted, post
from tests.processes import ServiceProcess, running_service, wait_until

REPLAYED = "select coalesce(pg_last_wal_replay_lsn() >= %s::pg_lsn, false)"


class Cluster(NamedTuple):
    primary: Server
    standbys: list[Server]

    def read_url(self) -> str:
        hosts = ",".join(str(standby.sockets) for standby in self.standbys)
        return f"postgresql://postgres@/postgres?host={hosts}&port=5432"

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The standbys stay as they are now: they have all that the primary has, and get no more."""
        self.wait_for_replay()
        for standby in self.standbys:
            query(standby.url, "select pg_wal_replay_pause()")
            wait_for(standby, "select pg_get_wal_replay_pause_state() = 'paused'")
        try:
            yield
        finally:
            for standby in self.standbys:
                query(standby.url, "select pg_wal_replay_resume()")

    def wait_for_replay(self) -> None:
        [[position]] = query(self.primary.url, "select pg_current_wal_flush_lsn()::text")
        for standby in self.standbys:
            wait_for(standby, REPLAYED, position)


def wait_for(server: Server, condition: str, *arguments: object) -> None:
    wait_until(lambda: query(server.url, condition, *arguments) == [(True,)])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("cluster")
    with running_server(directory / "primary") as primary:
        schema.migrate(primary.url)
        with (
            cleaned_up(create_standby(primary, directory / "standby-1")) as one,
            cleaned_up(create_standby(primary, directory / "standby-2")) as two,
        ):
            one.start()
            two.start()
            yield Cluster(primary, [one, two])


@pytest.fixture(scope="session")
def tolerant(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that reads from standbys however far they are behind, so that a paused one shows what it answered."""
    settings = {"DATABASE_URL": cluster.primary.url, "READ_DATABASE_URL": cluster.read_url()}
    with running_service(tmp_path_factory.mktemp("tolerant"), READ_LAG_MS_MAX="3600000", **settings) as service:
        for standby in cluster.standbys:
            service.wait_for_event("standby used", standby=f"{standby.sockets}:5432")
        yield service
        assert [event for event in service.events() if event["level"] in ("error", "critical")] == []


@pytest.fixture
def paused(cluster: Cluster, tolerant: ServiceProcess, organisation: str) -> Iterator[ServiceProcess]:
    """The standbys have appointment a-1 of the organisation, and not what is written from now on."""
    assert_accepted(post(tolerant.client, organisation))
    with cluster.paused():
        yield tolerant
