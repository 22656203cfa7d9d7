"""The service under a least-privilege role, and the limits of that role."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from service.database import schema
from tests.databases import assert_invariants, new_database, query
from tests.http.requests import assert_accepted, assert_problem, listed, post
from tests.processes import ServiceProcess, clean_environment, running_service, writes_by_bucket
from tests.roles.role import PASSWORD, ROLE, url_of_role


@pytest.fixture
def urls(server_url: str) -> Iterator[tuple[str, str]]:
    """The owner's and the role's URL of a database without tables."""
    with new_database(server_url) as url:
        yield url, url_of_role(url)


@pytest.fixture
def served(urls: tuple[str, str], tmp_path: Path) -> Iterator[ServiceProcess]:
    owner, role = urls
    with running_service(tmp_path, DATABASE_URL=role, OWNER_DATABASE_URL=owner) as process:
        yield process


def run_command(tmp_path: Path, command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    module, by_bucket = ("tests.launcher", {"ALWAYS_BY_BUCKET": "1"}) if writes_by_bucket() else ("service", {})
    environment = clean_environment(PORT="0", **settings, **by_bucket)
    return subprocess.run(
        [sys.executable, "-m", module, command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )


def test_owner_migrates_and_role_serves(served: ServiceProcess, urls: tuple[str, str]) -> None:
    assert_accepted(post(served.client, "o"))
    assert_accepted(post(served.client, "o", updatedAt="2020-09-29", start="2020-10-10 09:00"))
    assert_problem(post(served.client, "o", id="a-2"), 409, "TIME_RANGE_UNAVAILABLE")
    assert len(listed(served.client, "o")) == 1
    assert served.client.get("/readyz").status_code == 200
    sessions = """select distinct usename from pg_stat_activity
        where application_name = 'appointments' and datname = current_database()"""
    assert query(urls[0], sessions) == [(ROLE,)]
    assert_invariants(urls[0])


def test_log_contains_neither_password(urls: tuple[str, str], tmp_path: Path) -> None:
    owner, role = (f"{url}{'&' if '?' in url else '?'}password=s3cret" for url in urls)
    with running_service(tmp_path, DATABASE_URL=role, OWNER_DATABASE_URL=owner) as process:
        assert process.wait_for_event("started")["settings"]["owner_database_url"]
        assert "s3cret" not in process.log_file.read_text()
        assert PASSWORD not in process.log_file.read_text()


@pytest.mark.parametrize(
    "statement",
    [
        "delete from appointments",
        "delete from appointment_versions",
        "truncate appointments, appointment_versions",
        "update appointment_versions set version = 1",
        "update appointment_versions set received_at = now()",
        "update appointments set id = gen_random_uuid()",
        "update appointments set org_id = 'another'",
        "update appointments set external_id = 'another'",
        pytest.param(
            "insert into appointment_versions (sequence_number) overriding system value values (1)",
            marks=pytest.mark.skipif(writes_by_bucket(), reason="there the writer finds the numbers"),
        ),
        "select setval(pg_get_serial_sequence('appointment_versions', 'sequence_number'), 1)",
        "alter table appointments drop constraint appointments_during_excl",
        "alter table appointment_versions disable trigger all",
        "drop table appointment_versions cascade",
        "drop index appointments_start_idx",
        "create table mine ()",
        "create or replace function instant_text(timestamptz) returns text language sql return ''",
        "set session_replication_role = replica",
        "delete from _yoyo_migration",
        "insert into _yoyo_migration values ('x', 'x')",
        "copy appointments to program 'true'",
        "create role another",
    ],
)
def test_role_lacks_privileges_beyond_its_grants(served: ServiceProcess, urls: tuple[str, str], statement: str) -> None:
    assert_accepted(post(served.client, "o"))
    with psycopg.connect(urls[1]) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(statement.encode())


def test_excess_privileges_of_the_role_are_revoked(urls: tuple[str, str], tmp_path: Path) -> None:
    owner, role = urls
    schema.migrate(owner)
    query(owner, f'grant all on appointments, appointment_versions to "{ROLE}"')
    with running_service(tmp_path, DATABASE_URL=role, OWNER_DATABASE_URL=owner) as process:
        assert_accepted(post(process.client, "o"))
    with psycopg.connect(role) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute("delete from appointment_versions")


def test_service_starts_without_the_owner_after_its_migration(urls: tuple[str, str], tmp_path: Path) -> None:
    owner, role = urls
    done = run_command(tmp_path, "migrate", DATABASE_URL=role, OWNER_DATABASE_URL=owner)
    assert (done.returncode, done.stdout) == (0, f"migrate: {', '.join(schema.KNOWN)}\n"), done.stderr
    with running_service(tmp_path, DATABASE_URL=role, OWNER_DATABASE_URL="") as process:
        assert_accepted(post(process.client, "o"))
    undone = run_command(tmp_path, "rollback", DATABASE_URL=role, OWNER_DATABASE_URL=owner)
    assert (undone.returncode, undone.stdout) == (0, f"rollback: {schema.KNOWN[-1]}\n"), undone.stderr


def test_missing_grants_are_reported_as_503_and_not_as_500(served: ServiceProcess, urls: tuple[str, str]) -> None:
    query(urls[0], f'revoke all on appointments, appointment_versions, _yoyo_migration from "{ROLE}"')
    for response in (post(served.client, "o"), served.client.get("/api/appointments")):
        assert_problem(response, 503, "DATABASE_UNAVAILABLE")
    assert_problem(served.client.get("/readyz"), 503, "NOT_READY")
    schema.migrate(urls[0], ROLE)
    assert_accepted(post(served.client, "o"))
    assert served.client.get("/readyz").status_code == 200


def test_error_about_missing_migrations_names_the_setting_for_the_owner(urls: tuple[str, str], tmp_path: Path) -> None:
    for command in ("serve", "migrate"):
        done = run_command(tmp_path, command, DATABASE_URL=urls[1])
        assert done.returncode == 1
        assert done.stderr.startswith("error: The database refuses: ")
        assert done.stderr.endswith(" Set OWNER_DATABASE_URL.\n")
        assert PASSWORD not in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"OWNER_DATABASE_URL": "{owner}"}, "Setting OWNER_DATABASE_URL is wrong: it needs DATABASE_URL"),
        ({"DATABASE_URL": "{owner}", "OWNER_DATABASE_URL": "{owner}"}, "name the same role"),
        (
            {"DATABASE_URL": "{role}", "OWNER_DATABASE_URL": "mysql://x/y"},
            "Setting OWNER_DATABASE_URL is wrong: expected",
        ),
        ({"DATABASE_URL": "{role}", "OWNER_DATABASE_URL": "postgresql://127.0.0.1:1/d"}, "The database refuses: "),
        ({"DATABASE_URL": "postgresql://127.0.0.1:1/d", "OWNER_DATABASE_URL": "{owner}"}, "The database refuses: "),
    ],
)
def test_unusable_pair_of_database_urls_stops_the_start_with_one_line(
    urls: tuple[str, str], tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    owner, role = urls
    urls_of_test = {name: url.format(owner=owner, role=role) for name, url in settings.items()}
    done = run_command(tmp_path, "serve", **urls_of_test)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
