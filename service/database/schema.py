"""Migrations by yoyo: plain SQL files, each with its rollback. Grants, and the distribution by Citus, follow them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg
import psycopg
import yoyo

from service import ROOT
from service.database import distribution
from service.database import statements as sql
from service.database.pool import Database
from service.database_url import for_psycopg, for_yoyo
from service.problems import StartError

MIGRATIONS = ROOT / "migrations"
KNOWN = [path.stem for path in sorted(MIGRATIONS.glob("*.sql")) if ".rollback" not in path.name]
SERVER_VERSION_MIN = 15
# Raised where the role may not create tables; yoyo itself goes on without its own ones.
NOT_ALLOWED = (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable)


def migrate(url: str, role: str = "", *, distribute: bool = False) -> list[str]:
    """Applies the pending migrations, and has Citus distribute the tables if asked to; returns the names of both. If a
    `role` is given, it is granted what the statements need and no more. Raises StartError."""
    with connected(url) as session:
        if distribute:
            distribution.check_citus(session)
        elif not role and not missing(session):
            return []  # a role without the right to migrate can still start
        with locked(session, url) as (backend, migrations):
            pending = list(backend.to_apply(migrations))
            for migration in pending:
                apply(backend, migration)
        done = [migration.id for migration in pending]
        with session.transaction():
            if distribute or (pending and distribution.are_distributed(session)):  # a migration may replace a function
                done += distribution.distribute(session)
            if role:
                grant(session, role)
        return done


def rollback(url: str) -> list[str]:
    """Rolls back the latest applied migration and returns its name. Raises StartError."""
    with connected(url) as session, locked(session, url) as (backend, migrations):
        latest = list(backend.to_rollback(migrations))[:1]
        for migration in latest:
            take_back(backend, migration)
        return [migration.id for migration in latest]


# yoyo itself records a migration in a transaction of its own: a run that ends in between could never go on.
def apply(backend: Any, migration: Any) -> None:
    with backend.transaction():
        migration.process_steps(backend, "apply")
        backend.mark_one(migration)


def take_back(backend: Any, migration: Any) -> None:
    with backend.transaction():
        migration.process_steps(backend, "rollback")
        backend.unmark_one(migration)


def role_of(url: str) -> str:
    """The role that connects with this URL. Raises StartError."""
    with connected(url) as session:
        return session.info.user


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    try:
        with psycopg.connect(**for_psycopg(url), autocommit=True) as session:
            if (version := session.info.server_version // 10_000) < SERVER_VERSION_MIN:
                raise StartError(f"PostgreSQL {version} is too old; {SERVER_VERSION_MIN} or later is needed.")
            if (encoding := session.info.parameter_status("server_encoding")) != "UTF8":
                raise StartError(f"The database's encoding is {encoding}; it must be UTF8.")
            yield session
    except psycopg.Error as error:
        hint = " Set OWNER_DATABASE_URL." if isinstance(error, NOT_ALLOWED) else ""
        raise StartError(f"The database refuses: {' '.join(str(error).split())}{hint}") from error


@contextmanager
def locked(session: psycopg.Connection[Any], url: str) -> Iterator[tuple[Any, Any]]:
    """Lets one process at a time change the schema. The lock ends with the session, even if the process is killed.
    yoyo's own lock, which it takes to create its tables, is a row that a killed process leaves behind; while ours is
    held, such a row is stale."""
    session.execute(sql.LOCK_SCHEMA.text.encode())
    with yoyo.get_backend(for_yoyo(url)) as backend:
        backend.break_lock()
        yield backend, yoyo.read_migrations(str(MIGRATIONS))


def grant(session: psycopg.Connection[Any], role: str) -> None:
    """Runs under the schema's lock, since concurrent grants on one table fail."""
    if role == session.info.user:
        same = "DATABASE_URL and OWNER_DATABASE_URL name the same role; the one that serves should own nothing."
        raise StartError(same)
    with session.transaction():
        for source in (sql.GRANTS, sql.DISTRIBUTED_GRANTS):
            for [statement] in psycopg.RawCursor(session).execute(source.text.encode(), [role]).fetchall():
                session.execute(statement)


def missing(session: psycopg.Connection[Any]) -> list[str]:
    """The migrations of this release that are not applied to the database."""
    applied: set[str] = set()
    with suppress(psycopg.errors.UndefinedTable):  # no migration was ever applied
        applied = {name for [name] in session.execute(sql.APPLIED_MIGRATIONS.text.encode())}
    return [name for name in KNOWN if name not in applied]


async def are_distributed(database: Database) -> bool:
    """Whether Citus has distributed the tables. Raises ProblemError."""
    [row] = await database.fetch(sql.IS_DISTRIBUTED)
    return bool(row["distributed"])


async def pending(database: Database) -> list[str]:
    """As `missing`, without a session. Raises ProblemError."""
    applied: set[str] = set()
    async with database.connection() as connection:
        with suppress(asyncpg.UndefinedTableError):
            applied = {row["migration_id"] for row in await connection.fetch(sql.APPLIED_MIGRATIONS)}
    return [name for name in KNOWN if name not in applied]
