"""When a standby is used: its position is dated by those of the primary, and every fault leads to the primary."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic

import httpx
import pytest
from structlog.testing import capture_logs

from service.app import open_server
from service.database import schema
from service.database.positions import PrimaryPositions
from service.database.replicas import Standby
from service.settings import Settings
from tests.databases import query
from tests.faults.server import Server, cleaned_up, create_standby, running_server
from tests.http.requests import assert_accepted, listed, metrics, post
from tests.processes import ServiceProcess, running_service, wait_until
from tests.replicas.conftest import Cluster
from tests.roles.role import url_of_role

STANDBY = "database_reads_total standby"
LISTED = """select count(*) from pg_stat_activity
    where application_name = 'appointments' and query like '-- The appointments of an organisation%'"""
SECOND = {"id": "a-2", "start": "2020-10-10 11:00", "end": "2020-10-10 11:30"}
CLUSTER, OTHER = (1, "postgres", 1), (1, "postgres", 2)


def row(position: int | None, log: tuple[int, str, int] = CLUSTER) -> dict[str, object]:
    return dict(zip(("cluster", "database", "timeline"), log, strict=True)) | {"position": position}


@pytest.mark.parametrize(
    ("samples", "asked", "moment"),
    [
        ([], row(5), -inf),
        ([(row(5), 1.0)], row(4), -inf),
        ([(row(5), 1.0)], row(5), 1.0),
        ([(row(5), 1.0)], row(9), 1.0),
        ([(row(5), 1.0), (row(5), 2.0)], row(5), 2.0),
        ([(row(5), 1.0), (row(7), 2.0)], row(6), 1.0),
        ([(row(5), 1.0), (row(7), 2.0)], row(7), 2.0),
        ([(row(5), 1.0)], row(None), -inf),
        ([(row(5), 1.0)], row(9, OTHER), -inf),
        ([(row(5), 1.0)], row(9, (2, "postgres", 1)), -inf),
        ([(row(5), 1.0)], row(9, (1, "other", 1)), -inf),
        # A fail-over of the primary: earlier positions say nothing about the new log.
        ([(row(5), 1.0), (row(6, OTHER), 2.0)], row(5), -inf),
        ([(row(5), 1.0), (row(6, OTHER), 2.0)], row(5, OTHER), -inf),
        ([(row(5), 1.0), (row(6, OTHER), 2.0)], row(6, OTHER), 2.0),
        # A primary that goes back has been restored.
        ([(row(9), 1.0), (row(6), 2.0)], row(7), 2.0),
        # Samples older than the limit are forgotten, but for one.
        ([(row(n), float(n)) for n in range(100)], row(98), 98.0),
        ([(row(n), float(n)) for n in range(100)], row(50), -inf),
    ],
)
def test_position_is_dated_by_the_latest_position_of_the_primary_that_it_includes(
    samples: list[tuple[dict[str, object], float]], asked: dict[str, object], moment: float
) -> None:
    positions = PrimaryPositions(Settings())
    for sample, asked_at in samples:
        positions.add(sample, asked_at)
    assert positions.moment_of(asked)[0] == moment


def test_number_of_samples_does_not_grow_with_the_limit() -> None:
    positions = PrimaryPositions(Settings(read_lag_ms_max=1_000_000))
    for tenth in range(100_000):
        positions.add(row(tenth), tenth / 10)
    assert len(positions._samples) < 1_100
    for tenth in (99_999, 99_998, 95_000, 90_000):
        moment, _ = positions.moment_of(row(tenth))
        assert tenth / 10 - 1.5 < moment <= tenth / 10
    assert positions.moment_of(row(80_000))[0] == -inf


@pytest.mark.parametrize(
    "course",  # position of the primary, then of the standby, whether that is used
    [
        [(5, 5, True), (6, 5, True), (6, 7, True), (8, 7, True)],  # only of an earlier sample
        [(5, 5, True), (4, 5, False)],
        [(5, 7, True), (6, 7, False), (7, 7, False), (9, 8, False)],
    ],
)
def test_standby_that_is_ahead_of_the_primary_has_another_history_for_good(course: list[tuple[int, int, bool]]) -> None:
    positions = PrimaryPositions(Settings())
    standby = Standby(Settings(database_url="postgresql://h/d"), partial(open_server, distributed=False), positions)
    for primary, replayed, used in course:
        positions.add(row(primary), monotonic())
        standby._see(row(replayed), monotonic())
        assert (standby.lag_seconds() < 1) is used


def test_standby_whose_lag_is_about_the_limit_does_not_flood_the_log() -> None:
    positions = PrimaryPositions(Settings())
    standby = Standby(Settings(database_url="postgresql://h/d"), partial(open_server, distributed=False), positions)
    positions.add(row(5), monotonic())
    with capture_logs() as lines:
        for replayed in [5, 4] * 50:
            standby._see(row(replayed), monotonic())
    assert 1 <= len(lines) < 5


@contextmanager
def reading(tmp_path: Path, primary: str, standby: str, **settings: str) -> Iterator[ServiceProcess]:
    with running_service(tmp_path / "service", DATABASE_URL=primary, READ_DATABASE_URL=standby, **settings) as service:
        yield service
        assert [event for event in service.events() if event["level"] in ("error", "critical")] == []


def is_used(service: ServiceProcess, organisation: str = "none") -> bool:
    """Whether a standby answers now. One that is behind only because the test has just begun is used soon."""
    count = metrics(service.client)[STANDBY]
    listed(service.client, organisation)
    return metrics(service.client)[STANDBY] > count


def test_standbys_take_turns(cluster: Cluster, tmp_path: Path) -> None:
    with reading(tmp_path, cluster.primary.url, cluster.read_url()) as service:
        for standby in cluster.standbys:
            service.wait_for_event("standby used", standby=f"{standby.sockets}:5432")
        wait_until(lambda: is_used(service) and all(query(each.url, LISTED) != [(0,)] for each in cluster.standbys))
        wait_until(lambda: len(lags := lags_of(service)) == 2 and max(lags) < 1)


def lags_of(service: ServiceProcess) -> list[float]:
    return [value for name, value in metrics(service.client).items() if name.startswith("database_standby_lag_seconds")]


def test_paused_standby_is_used_until_something_is_written(cluster: Cluster, tmp_path: Path, organisation: str) -> None:
    with reading(tmp_path, cluster.primary.url, cluster.read_url()) as service:
        with cluster.paused():
            wait_until(lambda: is_used(service))
            assert_accepted(post(service.client, organisation))
            wait_until(lambda: not is_used(service))
            assert len(listed(service.client, organisation)) == 1
            service.wait_for_event("standby not used", reason="it is too far behind")
        wait_until(lambda: is_used(service))
        assert len(listed(service.client, organisation)) == 1


def test_standby_that_is_cut_off_looks_idle_and_is_not_used(
    cluster: Cluster, tmp_path: Path, organisation: str
) -> None:
    one, _ = cluster.standbys
    receivers = "select count(*) from pg_stat_wal_receiver"
    with reading(tmp_path, cluster.primary.url, one.url) as service:
        wait_until(lambda: is_used(service))
        [[address]] = query(one.url, "show primary_conninfo")
        set_primary(one, "")
        try:
            wait_until(lambda: query(one.url, receivers) == [(0,)])
            assert_accepted(post(service.client, organisation))
            wait_until(lambda: not is_used(service))
            assert len(listed(service.client, organisation)) == 1
        finally:
            set_primary(one, str(address))
        wait_until(lambda: is_used(service))
        assert len(listed(service.client, organisation)) == 1


def set_primary(standby: Server, address: str) -> None:
    query(standby.url, "alter system set primary_conninfo = '{}'".format(address.replace("'", "''")))
    query(standby.url, "select pg_reload_conf()")


def other_database(cluster: Cluster) -> str:
    """The standby's copy of another database, with the same schema."""
    [[exists]] = query(cluster.primary.url, "select count(*) from pg_database where datname = 'other'")
    if not exists:
        query(cluster.primary.url, "create database other")
        schema.migrate(cluster.primary.url.replace("/postgres?", "/other?"))
        cluster.wait_for_replay()
    return url_of(cluster, "/postgres?", "/other?")


def url_of(cluster: Cluster, part: str, other: str) -> str:
    return cluster.standbys[0].url.replace(part, other)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (lambda cluster: cluster.primary.url, "it is not a standby"),
        (other_database, "it belongs to another cluster, database or timeline"),
        (lambda cluster: url_of(cluster, "/postgres?", "/template1?"), f"it lacks {', '.join(schema.KNOWN)}"),
        (lambda _: "postgresql://127.0.0.1:1/d", "ConnectionRefusedError"),
        (lambda _: "postgresql:///d?host=/nowhere", "FileNotFoundError"),
        (lambda _: "postgresql://no.such.host.invalid/d", "gaierror"),
        (lambda cluster: url_of(cluster, "postgres@", "nobody@"), "InvalidAuthorizationSpecificationError"),
        (lambda cluster: url_of(cluster, "/postgres?", "/none?"), "InvalidCatalogNameError"),
    ],
)
def test_server_that_cannot_stand_in_for_the_primary_is_not_used(
    cluster: Cluster, tmp_path: Path, organisation: str, url: Callable[[Cluster], str], reason: str
) -> None:
    with reading(tmp_path, cluster.primary.url, url(cluster)) as service:
        service.wait_for_event("standby not used", reason=reason)
        assert_accepted(post(service.client, organisation))
        assert len(listed(service.client, organisation)) == 1
        assert not is_used(service)


def test_standby_of_another_cluster_is_not_used(cluster: Cluster, tmp_path: Path) -> None:
    with running_server(tmp_path / "foreign") as foreign:
        schema.migrate(foreign.url)
        with cleaned_up(create_standby(foreign, tmp_path / "standby")) as standby:
            standby.start()
            with reading(tmp_path, cluster.primary.url, standby.url) as service:
                service.wait_for_event("standby not used", reason="it belongs to another cluster, database or timeline")
                assert not is_used(service)


def test_one_of_two_standbys_is_enough_and_the_other_is_used_once_it_starts(cluster: Cluster, tmp_path: Path) -> None:
    with cleaned_up(create_standby(cluster.primary, tmp_path / "standby")) as late:
        url = f"postgresql://postgres@/postgres?host={late.sockets},{cluster.standbys[0].sockets}"
        with reading(tmp_path, cluster.primary.url, url) as service:
            wait_until(lambda: is_used(service))
            service.wait_for_event("standby not used", standby=f"{late.sockets}:5432")
            late.start()
            service.wait_for_event("standby used", standby=f"{late.sockets}:5432")


def test_least_privilege_role_may_ask_for_the_positions(cluster: Cluster, tmp_path: Path) -> None:
    role = url_of_role(cluster.primary.url)
    cluster.wait_for_replay()
    with reading(tmp_path, role, url_of_standby(role, cluster), OWNER_DATABASE_URL=cluster.primary.url) as service:
        wait_until(lambda: is_used(service))


def url_of_standby(url: str, cluster: Cluster) -> str:
    return url.replace(str(cluster.primary.sockets), str(cluster.standbys[0].sockets))


def test_standby_that_follows_a_new_primary_is_used_once_its_control_file_says_so(tmp_path: Path) -> None:
    """Until then it may have what the new primary never had."""
    with running_server(tmp_path / "old") as old:
        schema.migrate(old.url)
        with (
            cleaned_up(create_standby(old, tmp_path / "new")) as new,
            cleaned_up(create_standby(old, tmp_path / "standby")) as standby,
        ):
            new.start()
            standby.start()
            primaries = f"postgresql://postgres@/postgres?host={old.sockets},{new.sockets}"
            with reading(tmp_path, primaries, standby.url) as service:
                wait_until(lambda: is_used(service))
                old.kill()
                query(new.url, "select pg_promote()")
                wait_until(lambda: service.client.get("/readyz").status_code == 200)
                service.wait_for_event("standby not used", reason="it belongs to another cluster, database or timeline")
                assert_accepted(post(service.client, "o"))
                assert not is_used(service)
                set_primary(standby, f"host={new.sockets} user=postgres")
                assert_accepted(post(service.client, "o", **SECOND))
                wait_until(lambda: query(standby.url, "select count(*) from appointments") == [(2,)])
                query(standby.url, "checkpoint")
                wait_until(lambda: is_used(service))
                assert len(listed(service.client, "o")) == 2


def test_standby_of_a_primary_that_was_restored_from_a_copy_is_not_used(tmp_path: Path) -> None:
    """Such a primary goes on in the same timeline."""
    with running_server(tmp_path / "primary") as primary:
        schema.migrate(primary.url)
        primary.stop()
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", str(primary.data), str(copy)], check=True)
        primary.start()
        with cleaned_up(create_standby(primary, tmp_path / "standby")) as standby:
            standby.start()
            with reading(tmp_path, primary.url, standby.url) as service:
                assert_accepted(post(service.client, "o"))
                wait_until(lambda: is_used(service))
                primary.stop()
                shutil.rmtree(primary.data)
                copy.rename(primary.data)
                primary.start()
                service.wait_for_event("standby not used", reason="it is ahead of the primary")
                wait_until(lambda: status(service.client) == 200)
                assert listed(service.client, "o") == []
                assert not is_used(service)


def test_no_standby_is_used_while_the_primary_is_down(tmp_path: Path) -> None:
    """The limit of the lag is a promise that cannot be kept then."""
    with running_server(tmp_path / "primary") as primary:
        schema.migrate(primary.url)
        with cleaned_up(create_standby(primary, tmp_path / "standby")) as standby:
            standby.start()
            with reading(tmp_path, primary.url, standby.url) as service:
                wait_until(lambda: is_used(service))
                primary.stop()
                wait_until(lambda: status(service.client) == 503)
                primary.start()
                wait_until(lambda: status(service.client) == 200)
                wait_until(lambda: is_used(service))


def status(client: httpx.Client) -> int:
    return client.get("/api/appointments").status_code
