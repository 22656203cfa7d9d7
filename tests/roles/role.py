"""A least-privilege role, created as in the README."""

import os
from contextlib import suppress
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

ROLE = "appointments service"  # the space reveals code that does not quote the name
PASSWORD = "little"
CREATE = sql.SQL("create role {role} login password {password}")


def role_under_test() -> str:
    return ROLE if "TEST_ROLE" in os.environ else ""


def url_of_role(owner_url: str) -> str:
    """The URL of the same database for a role that owns nothing; the role is created if it does not exist."""
    parts = urlsplit(owner_url)
    exists = (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation)  # the second: created concurrently
    with suppress(*exists), psycopg.connect(owner_url, autocommit=True) as session:
        session.execute(CREATE.format(role=sql.Identifier(ROLE), password=PASSWORD))
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{ROLE.replace(' ', '%20')}:{PASSWORD}@{host}").geturl()
