"""Distributing the tables over the servers of a Citus cluster, in one transaction."""

from typing import Any

import psycopg
from tqdm import tqdm

from service.database import statements as sql
from service.problems import StartError

CITUS_VERSION_MIN = 12
TABLES = ("appointments", "appointment_versions")
NO_CITUS = (
    "The database lacks Citus; on every server, install it, set shared_preload_libraries = 'citus', "
    "and run `create extension citus` in this database."
)


def check_citus(session: psycopg.Connection[Any]) -> None:
    """Raises StartError if the tables cannot be distributed."""
    [version] = session.execute(sql.CITUS_VERSION.text.encode()).fetchall()[0]
    if not version:
        raise StartError(NO_CITUS)
    if int(version.partition(".")[0]) < CITUS_VERSION_MIN:
        raise StartError(f"Citus {version} is too old; {CITUS_VERSION_MIN} or later is needed.")


def are_distributed(session: psycopg.Connection[Any]) -> bool:
    [[distributed]] = session.execute(sql.IS_DISTRIBUTED.text.encode()).fetchall()
    return bool(distributed)


def distribute(session: psycopg.Connection[Any]) -> list[str]:
    """Distributes tables and functions, within the caller's transaction. Returns the tables that were not distributed
    before."""
    steps = session.execute(sql.DISTRIBUTION.text.encode()).fetchall()
    with tqdm(steps, desc="distribute", unit="step", disable=None) as bar:
        for step, statement in bar:
            bar.set_postfix_str(step)
            session.execute(statement)
    return [step for step, _ in steps if step in TABLES]
