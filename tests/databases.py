"""Databases for tests: clones of a migrated template on the test server, or new ones on a Citus cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg

from service.database import schema
from service.database.buckets import bucket_of
from tests.cluster import DISTRIBUTED, distributed_database
from tests.processes import wait_until


def with_name(server_url: str, name: str) -> str:
    return urlsplit(server_url)._replace(path=f"/{name}").geturl()


@contextmanager
def new_database(server_url: str, template: str = "template0") -> Iterator[str]:
    """The URL of a new database. It is dropped at the end, even if sessions are still connected."""
    if template == DISTRIBUTED:
        with distributed_database() as url:
            yield url
        return
    name = f"appointments_test_{uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as session:
        session.execute(f"create database {name} template {template} encoding 'UTF8'")
        try:
            yield with_name(server_url, name)
        finally:
            session.execute(f"drop database {name} with (force)")


@contextmanager
def migrated_template(server_url: str) -> Iterator[str]:
    """The name of a migrated database that can be cloned."""
    with new_database(server_url) as url:
        schema.migrate(url)
        yield urlsplit(url).path.removeprefix("/")


def query(url: str, statement: str, *arguments: object) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as session:
        cursor = session.execute(statement.encode(), arguments or None)
        return cursor.fetchall() if cursor.description else []


def neighbours(name: str, number: int) -> list[str]:
    """Other organisations of the same bucket as that one."""
    names = (f"{name}-{place}" for place in count())
    return list(islice(filter(lambda each: bucket_of(each) == bucket_of(name), names), number))


LOCK_ORGANISATION = "select pg_advisory_xact_lock(hashtextextended(%s, 0))"


def wait_until_blocked(url: str) -> None:
    """Until a session of the database waits for a lock that another session of this server holds."""
    statement = """select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'"""
    wait_until(lambda: query(url, statement) != [(0,)])


VIOLATIONS = {
    "overlapping active appointments": """
        select org_id, external_id from (
            select org_id, external_id, lower(during)
                < lag(upper(during)) over (partition by bucket, org_id order by lower(during)) as reaches_back
            from appointments where not cancelled) a
        where reaches_back""",
    "missing or duplicate versions, or versions out of commit order": """
        select org_id, appointment_id from (
            select org_id, appointment_id, version,
                row_number() over (partition by bucket, appointment_id order by sequence_number) as place
            from appointment_versions) v
        where version <> place""",
    "appointments that differ from their latest version": """
        select a.org_id, a.external_id from appointments a left join (
            select distinct on (bucket, appointment_id) * from appointment_versions
            order by bucket, appointment_id, version desc) v
        on v.bucket = a.bucket and v.appointment_id = a.id and v.version = a.version and v.during = a.during
            and v.payload_updated_at = a.payload_updated_at and v.received_at = a.received_at
            and v.payload_created_at = a.payload_created_at and v.cancelled = a.cancelled
            and v.org_id = a.org_id and v.external_id = a.external_id
        where v.appointment_id is null""",
    "versions whose updatedAt or receivedAt is not later than that of the previous version": """
        select org_id, appointment_id from (
            select org_id, appointment_id,
                payload_updated_at > lag(payload_updated_at) over w as later,
                received_at > lag(received_at) over w as received_later
            from appointment_versions window w as (partition by bucket, appointment_id order by version)) v
        where not later or not received_later""",
}


def assert_invariants(url: str) -> None:
    for violation, statement in VIOLATIONS.items():
        assert query(url, statement) == [], violation
