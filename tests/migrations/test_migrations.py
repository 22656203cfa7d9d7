"""Migrations: forwards and backwards with rows in the tables, concurrently, and on unusable databases."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from service import ROOT
from service.database import schema
from service.database.buckets import bucket_of
from service.problems import StartError
from tests.databases import new_database, query, wait_until_blocked
from tests.processes import clean_environment

CATALOGUE = """
select 'column', table_name || '.' || column_name, data_type || coalesce(column_default, '') || is_nullable
    || coalesce(collation_name, '') || ordinal_position
from information_schema.columns where table_schema = 'public' and table_name not like '%yoyo%'
union all select 'index', indexname::text, indexdef from pg_indexes
where schemaname = 'public' and tablename not like '%yoyo%'
union all select 'constraint', conname::text, pg_get_constraintdef(oid) from pg_constraint
where conrelid::regclass::text in ('appointments', 'appointment_versions')
union all select 'function', proname::text, pg_get_functiondef(p.oid) from pg_proc as p
where proname in ('instant_text', 'appointment_members', 'version_json', 'change_cursor',
    'organisation_bucket', 'put_appointments')
order by 1, 2, 3"""
ROWS = """
insert into appointments
    (bucket, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version)
values (organisation_bucket('o'), 'o', 'a', '[2020-01-01,2020-01-02)', now(), now(), now(), 1);
insert into appointment_versions
    (bucket, org_id, appointment_id, external_id, during, payload_created_at, payload_updated_at, received_at,
    version, cancelled)
select bucket, org_id, id, external_id, during, payload_created_at, payload_updated_at, received_at,
    version, cancelled
from appointments;"""


@pytest.fixture
def empty_url(server_url: str) -> Iterator[str]:
    with new_database(server_url) as url:
        yield url


def test_rollback_of_everything_and_a_new_migration_give_the_same_schema(empty_url: str) -> None:
    assert schema.migrate(empty_url) == schema.KNOWN
    first = query(empty_url, CATALOGUE)
    assert len(first) > 20
    with psycopg.connect(empty_url) as session:
        session.execute(ROWS)
    taken_back = [name for _ in schema.KNOWN for name in schema.rollback(empty_url)]
    assert taken_back == schema.KNOWN[::-1]
    assert query(empty_url, CATALOGUE) == []
    assert schema.rollback(empty_url) == []
    assert schema.migrate(empty_url) == schema.KNOWN
    assert query(empty_url, CATALOGUE) == first


ROWS_WITHOUT_BUCKETS = """
insert into appointments
    (org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version)
select org_id, 'a', '[2020-01-01,2020-01-02)', now(), now(), now(), 1
from unnest(array['o', 'default', 'back\\slash', 'clinic-4', 'Zürich']) as org_id;
insert into appointment_versions
    (org_id, appointment_id, external_id, during, payload_created_at, payload_updated_at, received_at, version,
    cancelled)
select org_id, id, external_id, during, payload_created_at, payload_updated_at, received_at, version, cancelled
from appointments;"""
NEXT_VERSION = """
insert into appointment_versions
    ({bucket} org_id, appointment_id, external_id, during, payload_created_at, payload_updated_at, received_at,
    version, cancelled)
select {bucket} org_id, id, external_id, during, payload_created_at, payload_updated_at, clock_timestamp(), {version},
    cancelled
from appointments where org_id = 'o'
returning sequence_number"""
WITHOUT_BUCKETS = """
select to_jsonb(a) - 'bucket', to_jsonb(v) - 'bucket'
from appointments as a join appointment_versions as v on v.appointment_id = a.id order by v.sequence_number
"""


def test_rows_are_carried_into_their_buckets_and_back(empty_url: str) -> None:
    def roll_back() -> None:
        while schema.rollback(empty_url) != ["0005.buckets"]:
            pass

    schema.migrate(empty_url)
    roll_back()
    query(empty_url, ROWS_WITHOUT_BUCKETS)
    before = query(empty_url, WITHOUT_BUCKETS)
    assert len(before) == 5
    schema.migrate(empty_url)
    assert query(empty_url, WITHOUT_BUCKETS) == before
    for table in ("appointments", "appointment_versions"):
        rows = query(empty_url, f"select org_id, bucket from {table}")
        assert rows == [(name, bucket_of(str(name))) for name, _ in rows]
    assert query(empty_url, NEXT_VERSION.format(bucket="bucket,", version=2)) == [(6,)]
    after = query(empty_url, WITHOUT_BUCKETS)
    roll_back()
    assert query(empty_url, WITHOUT_BUCKETS) == after
    assert query(empty_url, NEXT_VERSION.format(bucket="", version=3)) == [(7,)]


@pytest.mark.parametrize("change", [schema.migrate, schema.rollback])
def test_session_that_uses_both_tables_does_not_deadlock_with_the_migration_of_the_buckets(
    empty_url: str, change: Callable[[str], object]
) -> None:
    """Lists and writes lock the appointments first, and then the versions."""
    schema.migrate(empty_url)
    while schema.rollback(empty_url) != ["0006.put-appointments"]:
        pass
    if change is schema.migrate:
        schema.rollback(empty_url)
    with psycopg.connect(empty_url) as session, ThreadPoolExecutor(1) as threads:
        session.execute("select from appointments")
        changed = threads.submit(change, empty_url)
        wait_until_blocked(empty_url)
        session.execute("select from appointment_versions")
        session.commit()
        changed.result(timeout=60)


def test_migrating_again_changes_nothing(empty_url: str) -> None:
    schema.migrate(empty_url)
    with psycopg.connect(empty_url) as session:
        session.execute(ROWS)
    assert schema.migrate(empty_url) == []
    assert query(empty_url, "select external_id from appointments") == [("a",)]


def test_concurrent_runs_apply_each_migration_once(empty_url: str) -> None:
    applied: list[list[str]] = []
    threads = [threading.Thread(target=lambda: applied.append(schema.migrate(empty_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [[], [], [], schema.KNOWN]


FAIL = """
create function fail() returns trigger language plpgsql as $$ begin raise 'cut off'; end $$;
create trigger cut_off before insert or delete on _yoyo_migration for each row execute function fail();"""


@pytest.mark.parametrize("command", [schema.migrate, schema.rollback])
def test_run_that_is_cut_off_before_it_records_a_migration_can_be_repeated(
    empty_url: str, command: Callable[[str], list[str]]
) -> None:
    schema.migrate(empty_url)
    if command is schema.migrate:
        schema.rollback(empty_url)
    before = query(empty_url, CATALOGUE)
    query(empty_url, FAIL)
    with pytest.raises(StartError, match="cut off"):
        command(empty_url)
    assert query(empty_url, CATALOGUE) == before
    query(empty_url, "drop function fail cascade")
    assert command(empty_url) == schema.KNOWN[-1:]


def test_stale_lock_row_of_a_killed_run_is_ignored(empty_url: str) -> None:
    schema.migrate(empty_url)
    query(empty_url, "insert into yoyo_lock (locked, ctime, pid) values (1, now(), 1)")
    assert schema.rollback(empty_url) == schema.KNOWN[-1:]


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_both_url_schemes_are_accepted(empty_url: str, scheme: str) -> None:
    assert schema.migrate(urlsplit(empty_url)._replace(scheme=scheme).geturl()) == schema.KNOWN


def test_missing_database_is_a_one_line_error(empty_url: str) -> None:
    with pytest.raises(StartError, match="does not exist") as caught:
        schema.migrate(urlsplit(empty_url)._replace(path="/no_such_database").geturl())
    assert "\n" not in str(caught.value)


def test_database_in_another_encoding_is_refused(server_url: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as session:
        session.execute("create database appointments_test_latin1 template template0 encoding latin1 locale 'C'")
        try:
            with pytest.raises(StartError, match="LATIN1"):
                schema.migrate(urlsplit(server_url)._replace(path="/appointments_test_latin1").geturl())
        finally:
            session.execute("drop database appointments_test_latin1 with (force)")


def test_make_migration_creates_a_pair_of_files_that_follows_the_latest(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copytree(schema.MIGRATIONS, tmp_path / "migrations")
    for name in ("Makefile", "requirements.lock"):
        shutil.copy2(ROOT / name, tmp_path)
    os.utime(tmp_path / "requirements.lock", (0, 0))  # older than the installation, or make would install again
    make = ["make", "migration", "NAME=add colour"]
    done = subprocess.run(make, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    migration, reverse = (tmp_path / line for line in done.stdout.splitlines())
    assert migration.name.endswith("-add-colour.sql")
    assert reverse.name == f"{migration.stem}.rollback.sql"
    assert f"-- depends: {schema.KNOWN[-1]}\n" in migration.read_text()
    assert sorted([schema.KNOWN[-1], migration.stem])[-1] == migration.stem
    assert reverse.read_text() == ""


def test_every_migration_has_a_rollback() -> None:
    for name in schema.KNOWN:
        assert (schema.MIGRATIONS / f"{name}.rollback.sql").is_file()
