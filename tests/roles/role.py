"""A role that can do little, as the README has it created."""

import os
from contextlib import suppress
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

ROLE = "appointments service"  # with a space, so that whoever does not quote it is found out
PASSWORD = "little"
CREATE = sql.SQL("create role {role} login password {password}")


def role_under_test() -> str:
    return ROLE if "TEST_ROLE" in os.environ else ""


def url_of_role(owner_url: str) -> str:
    """The same database, for a role that owns nothing; it is created if it is not there."""
    parts = urlsplit(owner_url)
    there = (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation)  # another worker may just create it
    with suppress(*there), psycopg.connect(owner_url, autocommit=True) as session:
        session.execute(CREATE.format(role=sql.Identifier(ROLE), password=PASSWORD))
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{ROLE.replace(' ', '%20')}:{PASSWORD}@{place}").geturl()
