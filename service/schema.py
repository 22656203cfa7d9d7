"""Migrations by yoyo: plain SQL files, each with its rollback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import psycopg
import yoyo

from service import ROOT
from service.database import Database
from service.settings import StartError
from service.statements import APPLIED_MIGRATIONS, LOCK_SCHEMA

MIGRATIONS = ROOT / "migrations"
KNOWN = [path.stem for path in sorted(MIGRATIONS.glob("*.sql")) if ".rollback" not in path.name]
SERVER_VERSION_MIN = 15
CONNECT_SECONDS_MAX = 10


def migrate(url: str) -> list[str]:
    """Applies what is missing and returns its names. Raises StartError."""
    with locked(url) as (backend, migrations):
        pending = backend.to_apply(migrations)
        backend.apply_migrations(pending)
        return [migration.id for migration in pending]


def rollback(url: str) -> list[str]:
    """Takes back the latest applied migration and returns its name. Raises StartError."""
    with locked(url) as (backend, migrations):
        latest = backend.to_rollback(migrations)[:1]
        backend.rollback_migrations(latest)
        return [migration.id for migration in latest]


@contextmanager
def locked(url: str) -> Iterator[tuple[Any, Any]]:
    """Lets one process at a time at the schema, with a lock that ends with its session.

    yoyo's own lock is a row that a killed process leaves behind; under ours such a row is stale.
    """
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS_MAX) as session:
            check_server(session)
            session.execute(LOCK_SCHEMA.text.encode())
            backend = yoyo.get_backend("postgresql+psycopg" + url[url.index("://") :])
            with backend:
                backend.break_lock()
                with backend.lock():
                    yield backend, yoyo.read_migrations(str(MIGRATIONS))
    except psycopg.Error as error:
        raise StartError(f"The database refuses: {' '.join(str(error).split())}") from error


def check_server(session: psycopg.Connection[Any]) -> None:
    version = session.info.server_version // 10_000
    encoding = session.info.parameter_status("server_encoding")
    if version < SERVER_VERSION_MIN:
        raise StartError(f"PostgreSQL {version} is too old; {SERVER_VERSION_MIN} or later is needed.")
    if encoding != "UTF8":
        raise StartError(f"The database's encoding is {encoding}; it must be UTF8.")


async def pending(database: Database) -> list[str]:
    """The migrations that this program knows and the database lacks."""
    async with database.connection() as connection:
        try:
            applied = {row["migration_id"] for row in await connection.fetch(APPLIED_MIGRATIONS)}
        except asyncpg.UndefinedTableError:  # none was ever applied
            applied = set()
    return [name for name in KNOWN if name not in applied]
