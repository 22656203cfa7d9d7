"""`python -m service distribute` on a Citus cluster: its result, repeated, interrupted, beside a running service."""

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from uuid import uuid4

import httpx
import psycopg
import pytest
import yaml  # type: ignore[import-untyped]

from service import ROOT
from service.database import schema
from service.database.buckets import BUCKETS, bucket_of
from service.database.failures import RESTART
from tests.cluster import EXTENSIONS, Cluster, needs_citus, run
from tests.databases import assert_invariants, query, wait_until_blocked
from tests.http.requests import assert_accepted, assert_problem, listed, post
from tests.processes import clean_environment, running_service, wait_until
from tests.roles.role import ROLE, url_of_role

pytestmark = needs_citus

TABLES = ["appointments", "appointment_versions"]
APPLIED_AND_DISTRIBUTED = f"distribute: {', '.join(schema.KNOWN + TABLES)}\n"
DISTRIBUTED_NOW = f"distribute: {', '.join(TABLES)}\n"
REPEATED = "distribute: nothing to do\n"
STATE = """select table_name::text, distribution_column::text, shard_count::int, colocation_id from citus_tables
    order by table_name::text"""
SHARDS = (
    """select nodeport, count(*) from citus_shards where table_name = 'appointments'::regclass group by 1 order by 1"""
)
FUNCTIONS = """select p.proname::text, coalesce(o.force_delegation, false)
    from pg_dist_object as o join pg_proc as p on p.oid = o.objid and o.classid = 'pg_proc'::regclass order by 1"""
ALL_FUNCTIONS = [
    ("appointment_members", False),
    ("change_cursor", False),
    ("instant_text", False),
    ("organisation_bucket", False),
    ("put_appointments", True),
    ("version_json", False),
]
READS = [
    "/api/appointments?org={org}",
    "/api/appointments?org={org}&limit=1",
    "/api/appointments?org={org}&includeCancelled=true",
    "/api/appointments?org={org}&asOf=2020-01-01",
    "/api/appointments.ics?org={org}",
    "/api/appointments/versions?org={org}&id=s-1",
    "/api/appointments/changes?org={org}",
    "/api/availability?org={org}&from=2020-10-10&to=2020-10-11",
]
LOCAL_ROWS = "select pg_relation_size('appointments') + pg_relation_size('appointment_versions')"


def start(url: str, directory: Path, command: str = "distribute", **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "service", command],
        cwd=directory,
        env=clean_environment(DATABASE_URL=url, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def assert_distributed(url: str) -> None:
    state = query(url, STATE)
    assert [row[:3] for row in state] == [(name, "bucket", 16) for name in sorted(TABLES)]
    assert len({row[3] for row in state}) == 1, "not colocated"
    assert query(url, FUNCTIONS) == ALL_FUNCTIONS
    assert query(url, LOCAL_ROWS) == [(0,)]


def assert_serves(directory: Path, url: str, **settings: str) -> None:
    organisation = f"org-{uuid4().hex}"
    with running_service(directory, DATABASE_URL=url, **settings) as service:
        assert_accepted(post(service.client, organisation, id="s-1"))
        assert_accepted(post(service.client, organisation, id="s-1", updatedAt="2020-09-29"))
        assert_accepted(post(service.client, organisation, id="s-1"), "ignored-stale")
        assert_problem(post(service.client, organisation, id="s-2"), 409, "TIME_RANGE_UNAVAILABLE")
        assert [row["version"] for row in listed(service.client, organisation)] == [2]
        for path in (*READS, "/readyz"):
            answer = service.client.get(path.format(org=organisation))
            assert answer.status_code == 200, answer.text


def fill(url: str, directory: Path, count: int) -> None:
    """As the service writes, while the tables are not distributed."""
    items = [
        {"id": f"a-{n}", "orgId": f"org-{n % 50}", "start": f"{2000 + n // 50}-01-01", "end": f"{2000 + n // 50}-01-02"}
        | {"createdAt": "2020-01-01", "updatedAt": "2020-01-01"}
        for n in range(count)
    ]
    with running_service(directory, DATABASE_URL=url) as service:
        for first in range(0, count, 500):
            answer = service.client.post("/api/appointments/batch", json=items[first : first + 500])
            assert [result["status"] for result in answer.json()["results"]] == ["ok"] * len(items[first : first + 500])


def test_empty_database_is_migrated_and_distributed_in_16_shards_over_the_workers(
    cluster: Cluster, tmp_path: Path
) -> None:
    assert ended(start(cluster.url, tmp_path)) == (0, APPLIED_AND_DISTRIBUTED, "")
    assert_distributed(cluster.url)
    workers = cluster.nodes[1:]
    assert query(cluster.url, SHARDS) == [(port, 16 // len(workers)) for _, _, port in workers]
    assert ended(start(cluster.url, tmp_path)) == (0, REPEATED, "")
    assert_distributed(cluster.url)
    assert_serves(tmp_path, cluster.url)


def test_each_bucket_has_a_shard_of_its_own(cluster: Cluster) -> None:
    schema.migrate(cluster.url, distribute=True)
    shard = "select get_shard_id_for_distribution_column('appointments', %s)"
    assert len({query(cluster.url, shard, bucket)[0] for bucket in BUCKETS}) == 16


def test_appointment_in_another_bucket_is_refused(cluster: Cluster) -> None:
    schema.migrate(cluster.url, distribute=True)
    insert = """insert into appointments (bucket, org_id, external_id, during, payload_created_at, payload_updated_at,
        received_at, version) values (%s, 'o', 'a', '[2020-01-01,2020-01-02)', now(), now(), now(), 1)"""
    query(cluster.url, insert, bucket_of("o"))
    for bucket in set(range(-1, 60)) - {bucket_of("o")}:
        with pytest.raises(psycopg.errors.CheckViolation):
            query(cluster.url, insert, bucket)


def test_rows_are_moved_and_no_local_copy_stays(cluster: Cluster, tmp_path: Path) -> None:
    schema.migrate(cluster.url)
    fill(cluster.url, tmp_path / "filling", 1_000)
    before = rows(cluster.url)
    assert len(before["appointments"]) == len(before["appointment_versions"]) == 1_000
    assert ended(start(cluster.url, tmp_path)) == (0, DISTRIBUTED_NOW, "")
    assert_distributed(cluster.url)
    assert rows(cluster.url) == before
    assert_serves(tmp_path, cluster.url)
    with running_service(tmp_path / "again", DATABASE_URL=cluster.url) as service:
        moved = {"start": "2000-01-05", "end": "2000-01-06", "updatedAt": "2020-09-29"}
        assert_accepted(post(service.client, "org-0", id="a-0", **moved))
        changes = service.client.get("/api/appointments/changes", params={"org": "org-0"}).json()["changes"]
        assert len(changes) == 21
        assert (changes[-1]["externalId"], changes[-1]["version"]) == ("a-0", 2)
    assert_invariants(cluster.url)


def rows(url: str) -> dict[str, list[tuple[object, ...]]]:
    return {name: sorted(query(url, f"select t::text from {name} as t")) for name in TABLES}


def test_extension_may_be_created_after_the_migrations(bare_cluster: Cluster, tmp_path: Path) -> None:
    url = bare_cluster.url
    schema.migrate(url)
    bare_cluster.run_on_each("create extension citus")
    bare_cluster.register_nodes()
    assert ended(start(url, tmp_path)) == (0, DISTRIBUTED_NOW, "")
    assert_distributed(url)
    assert_serves(tmp_path, url)


def test_without_workers_the_shards_stay_on_the_coordinator(bare_cluster: Cluster, tmp_path: Path) -> None:
    bare_cluster.run_on_each("create extension citus")
    assert ended(start(bare_cluster.url, tmp_path)) == (0, APPLIED_AND_DISTRIBUTED, "")
    assert_distributed(bare_cluster.url)
    assert query(bare_cluster.url, "select count(*) from pg_dist_node") == [(1,)]
    assert_serves(tmp_path, bare_cluster.url)


def test_commands_of_compose_register_the_nodes_and_can_be_repeated(bare_cluster: Cluster, tmp_path: Path) -> None:
    """With the addresses of this cluster."""
    composed = yaml.safe_load((ROOT / "compose.citus.yaml").read_text(encoding="utf-8"))
    commands = "\n".join(composed["services"]["register"]["command"])
    for name, (_, host, port) in zip(("coordinator", "worker-1", "worker-2"), bare_cluster.nodes, strict=False):
        commands = commands.replace(f"'{name}', 5432", f"'{host}', {port}")
    bare_cluster.run_on_each(*EXTENSIONS)
    for repeated in (False, True):
        run(bare_cluster.url, *(found for found in re.findall("--command=(.*)", commands) if "5432" not in found))
        workers = query(bare_cluster.url, "select nodeport from pg_dist_node where shouldhaveshards order by nodeport")
        assert workers == [(port,) for _, _, port in bare_cluster.nodes[1:3]]
        assert ended(start(bare_cluster.url, tmp_path)) == (0, REPEATED if repeated else APPLIED_AND_DISTRIBUTED, "")


def test_worker_refers_to_the_coordinator(cluster: Cluster, tmp_path: Path) -> None:
    status, output, errors = ended(start(cluster.urls[1], tmp_path))
    assert (status, output) == (1, "")
    assert errors.startswith("error: The database refuses: operation is not allowed on this node")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("migrated_first", [False, True])
def test_least_privilege_role_serves_and_has_no_more_privileges(
    cluster: Cluster, tmp_path: Path, migrated_first: bool
) -> None:
    role = url_of_role(cluster.url)
    if migrated_first:
        schema.migrate(cluster.url, ROLE)
    status, _, errors = ended(start(role, tmp_path, OWNER_DATABASE_URL=cluster.url))
    assert (status, errors) == (0, "")
    assert_serves(tmp_path / "with the owner", role, OWNER_DATABASE_URL=cluster.url)
    assert_serves(tmp_path / "alone", role)
    for statement in ("delete from appointments", "update appointment_versions set version = 1"):
        with psycopg.connect(role) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(statement.encode())
    status, output, errors = ended(start(role, tmp_path))
    assert (status, output) == (1, "")
    assert errors.startswith("error: The database refuses: ")
    assert errors.endswith(" Set OWNER_DATABASE_URL.\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_run_changes_nothing_and_can_be_repeated(
    cluster: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    schema.migrate(cluster.url)
    fill(cluster.url, tmp_path / "filling", 500)
    before = rows(cluster.url)
    # The shards are there and hold the rows, and the run waits before it makes a note of the table.
    with psycopg.connect(cluster.url) as holder:
        holder.execute("lock table pg_dist_object in share mode")
        process = start(cluster.url, tmp_path)
        wait_until_blocked(cluster.url)
        process.send_signal(number)
        assert ended(process)[0] == -number
    assert rows(cluster.url) == before
    assert query(cluster.url, STATE) == []
    assert ended(start(cluster.url, tmp_path)) == (0, DISTRIBUTED_NOW, "")
    assert_distributed(cluster.url)
    assert rows(cluster.url) == before


def test_running_service_is_unavailable_until_it_is_restarted_and_loses_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    schema.migrate(cluster.url)
    accepted: list[str] = []
    refused = Event()

    def write(client: httpx.Client, number: int) -> None:
        while not refused.is_set():
            identifier = f"w-{number}-{len(accepted)}"
            response = post(client, f"writer-{identifier}", id=identifier)
            if response.status_code == 200:
                accepted.append(identifier)
            else:
                assert_problem(response, 503, "DATABASE_UNAVAILABLE")
                if query(cluster.url, STATE):
                    refused.set()

    with running_service(tmp_path / "before", DATABASE_URL=cluster.url) as service, ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(write, service.client, number) for number in range(4)]
        try:
            wait_until(lambda: len(accepted) >= 100)
            assert ended(start(cluster.url, tmp_path)) == (0, DISTRIBUTED_NOW, "")
            wait_until(refused.is_set)
        finally:
            refused.set()
        for writer in writers:
            writer.result(timeout=60)
        for path in READS:
            assert_problem(service.client.get(path.format(org="default")), 503, "DATABASE_UNAVAILABLE")
        problem = assert_problem(service.client.get("/readyz"), 503, "NOT_READY")
        assert problem["detail"] == "The tables are now distributed by Citus; restart the service."
        service.wait_for_event("database unavailable", cause=f"FeatureNotSupportedError: {RESTART}")
    stored = {row[0] for row in query(cluster.url, "select external_id from appointments")}
    assert set(accepted) <= stored
    assert query(cluster.url, "select count(*) from appointment_versions") == [(len(stored),)]
    assert_invariants(cluster.url)
    assert_serves(tmp_path / "after", cluster.url)


def test_session_that_uses_both_tables_does_not_deadlock_with_a_run(cluster: Cluster, tmp_path: Path) -> None:
    """Lists and writes lock the appointments first, and then the versions."""
    schema.migrate(cluster.url)
    with psycopg.connect(cluster.url) as session:
        session.execute("select from appointments")
        process = start(cluster.url, tmp_path)
        wait_until_blocked(cluster.url)
        session.execute("select from appointment_versions")
    assert ended(process) == (0, DISTRIBUTED_NOW, "")


def test_numbers_of_changes_continue_where_a_dump_is_restored_without_citus(cluster: Cluster, tmp_path: Path) -> None:
    """There the identity gives the numbers again, from its value in the dump on. A number lower than the last one would
    be skipped by every cursor."""
    schema.migrate(cluster.url)
    fill(cluster.url, tmp_path / "filling", 3)
    assert ended(start(cluster.url, tmp_path)) == (0, DISTRIBUTED_NOW, "")
    with running_service(tmp_path / "distributed", DATABASE_URL=cluster.url) as service:
        assert_accepted(post(service.client, "org-2", id="a-2", updatedAt="2020-09-29"))
    numbers = query(cluster.url, "select sequence_number from appointment_versions order by 1")
    assert numbers == [(1,), (2,), (3,), (4,)]
    identity = "pg_get_serial_sequence('appointment_versions', 'sequence_number')"
    assert query(cluster.url, f"select nextval({identity})") > [(10**12,)]


def test_function_is_delegated_again_after_it_was_rolled_back(cluster: Cluster, tmp_path: Path) -> None:
    schema.migrate(cluster.url, distribute=True)
    assert ended(start(cluster.url, tmp_path, "rollback")) == (0, "rollback: 0006.put-appointments\n", "")
    assert ended(start(cluster.url, tmp_path, "migrate")) == (0, "migrate: 0006.put-appointments\n", "")
    assert_distributed(cluster.url)


def test_rollback_of_the_buckets_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    schema.migrate(cluster.url, distribute=True)
    assert ended(start(cluster.url, tmp_path, "rollback"))[0] == 0
    status, output, errors = ended(start(cluster.url, tmp_path, "rollback"))
    assert (status, output) == (1, "")
    assert errors.startswith("error: The database refuses: ")
    assert errors.count("\n") == 1
    run(cluster.url, "select bucket from appointments")
    assert ended(start(cluster.url, tmp_path)) == (0, "distribute: 0006.put-appointments\n", "")
    assert_serves(tmp_path, cluster.url)
