"""`python -m service distribute` without Citus, and how a running service notices that the tables were distributed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.database import schema
from service.database.statements import DISTRIBUTION
from tests.databases import new_database, query
from tests.http.requests import assert_problem
from tests.processes import clean_environment, running_service
from tests.roles.role import url_of_role

# As Citus guards a distributed table, without Citus.
DISTRIBUTE = """create function citus_truncate_trigger() returns trigger language plpgsql as 'begin end';
    create trigger truncate_trigger before truncate on appointments execute function citus_truncate_trigger()"""
BRING_BACK = "drop function citus_truncate_trigger() cascade"


def distribute(tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "distribute"],
        cwd=tmp_path,
        env=clean_environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def url(server_url: str) -> Iterator[str]:
    """A database without tables, on plain PostgreSQL."""
    with new_database(server_url) as created:
        yield created


def test_embedded_postgresql_is_refused_before_it_is_started(tmp_path: Path) -> None:
    done = distribute(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: The embedded PostgreSQL has no Citus; set DATABASE_URL.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("with_role", [False, True])
def test_database_without_citus_is_refused_unchanged(url: str, tmp_path: Path, with_role: bool) -> None:
    settings = {"DATABASE_URL": url_of_role(url), "OWNER_DATABASE_URL": url} if with_role else {"DATABASE_URL": url}
    done = distribute(tmp_path, **settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: The database lacks Citus; ")
    assert "shared_preload_libraries = 'citus'" in done.stderr
    assert "`create extension citus`" in done.stderr
    assert done.stderr.count("\n") == 1
    assert query(url, "select to_regclass('appointments')") == [(None,)]


def test_older_version_of_citus_is_refused(url: str, tmp_path: Path) -> None:
    query(url, "create extension btree_gist")
    query(url, "update pg_extension set extname = 'citus', extversion = '11.3-1' where extname = 'btree_gist'")
    done = distribute(tmp_path, DATABASE_URL=url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: Citus 11.3-1 is too old; 12 or later is needed.\n"


@pytest.mark.parametrize("name", ["public", "My schema"])
def test_all_functions_of_the_schema_are_distributed(url: str, name: str) -> None:
    query(url, f'create schema if not exists "{name}"')
    query(url, f'alter database {urlsplit(url).path[1:]} set search_path = "{name}"')
    schema.migrate(url)
    own = f"""select p.oid::regprocedure::text from pg_proc as p where p.pronamespace = '"{name}"'::regnamespace
        and not exists (select from pg_depend as d where d.objid = p.oid and d.deptype = 'e')"""
    statements = [statement for step, statement in query(url, DISTRIBUTION.text) if step == "functions"]
    functions = {re.sub(r".*?'(.*?)'.*", r"\1", str(statement)) for statement in statements}
    assert functions == {name for [name] in query(url, own)}


def test_readyz_asks_for_a_restart_when_the_tables_were_distributed_since_the_start(url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=url) as service:
        assert service.client.get("/readyz").status_code == 200
        query(url, DISTRIBUTE)
        problem = assert_problem(service.client.get("/readyz"), 503, "NOT_READY")
        assert problem["detail"] == "The tables are now distributed by Citus; restart the service."
        query(url, BRING_BACK)
        assert service.client.get("/readyz").status_code == 200


def test_readyz_asks_for_a_restart_when_the_tables_are_no_longer_distributed(url: str, tmp_path: Path) -> None:
    schema.migrate(url)
    query(url, DISTRIBUTE)
    with running_service(tmp_path, DATABASE_URL=url) as service:
        assert service.client.get("/readyz").status_code == 200
        query(url, BRING_BACK)
        problem = assert_problem(service.client.get("/readyz"), 503, "NOT_READY")
        assert problem["detail"] == "The tables are no longer distributed by Citus; restart the service."
