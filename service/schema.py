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
from service.statements import APPLIED_MIGRATIONS, GRANTS, LOCK_SCHEMA

MIGRATIONS = ROOT / "migrations"
KNOWN = [path.stem for path in sorted(MIGRATIONS.glob("*.sql")) if ".rollback" not in path.name]
SERVER_VERSION_MIN = 15
CONNECT_SECONDS_MAX = 10
# yoyo goes on without the tables that it may not create.
NOT_ALLOWED = (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable)


def migrate(url: str, role: str = "") -> list[str]:
    """Applies what is missing and returns its names; then `role` may do what the statements need, and no
    more. Raises StartError."""
    with connected(url) as session:
        if not role and not unknown_to(session):
            return []  # so that who may change nothing can start
        with locked(session, url) as (backend, migrations):
            pending = backend.to_apply(migrations)
            backend.apply_migrations(pending)
        if role:
            grant(session, role)
        return [migration.id for migration in pending]


def rollback(url: str) -> list[str]:
    """Takes back the latest applied migration and returns its name. Raises StartError."""
    with connected(url) as session, locked(session, url) as (backend, migrations):
        latest = backend.to_rollback(migrations)[:1]
        backend.rollback_migrations(latest)
        return [migration.id for migration in latest]


def role_of(url: str) -> str:
    """The role that connects with this URL. Raises StartError."""
    with connected(url) as session:
        return session.info.user


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS_MAX) as session:
            check_server(session)
            yield session
    except psycopg.Error as error:
        hint = " Set OWNER_DATABASE_URL." if isinstance(error, NOT_ALLOWED) else ""
        raise StartError(f"The database refuses: {' '.join(str(error).split())}{hint}") from error


@contextmanager
def locked(session: psycopg.Connection[Any], url: str) -> Iterator[tuple[Any, Any]]:
    """Lets one process at a time at the schema, until the session ends, however it does.

    yoyo's own lock is a row that a killed process leaves behind; under ours such a row is stale.
    """
    session.execute(LOCK_SCHEMA.text.encode())
    backend = yoyo.get_backend("postgresql+psycopg" + url[url.index("://") :])
    with backend:
        backend.break_lock()
        with backend.lock():
            yield backend, yoyo.read_migrations(str(MIGRATIONS))


def grant(session: psycopg.Connection[Any], role: str) -> None:
    """Under the schema's lock: two at once would be in each other's way."""
    if role == session.info.user:
        raise StartError(
            "DATABASE_URL and OWNER_DATABASE_URL name the same role; the one that serves should own nothing."
        )
    with session.transaction():
        for [statement] in psycopg.RawCursor(session).execute(GRANTS.text.encode(), [role]).fetchall():
            session.execute(statement)


def unknown_to(session: psycopg.Connection[Any]) -> list[str]:
    """The migrations that this program knows and the database lacks."""
    try:
        applied = {name for [name] in session.execute(APPLIED_MIGRATIONS.text.encode())}
    except psycopg.errors.UndefinedTable:  # none was ever applied
        applied = set()
    return [name for name in KNOWN if name not in applied]


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
