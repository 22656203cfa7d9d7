"""Databases on a Citus cluster: that of TEST_CITUS_URL, the URL of a database on its coordinator whose nodes are
registered."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from service.database import distribution, schema
from service.database.buckets import bucket_of

COORDINATOR_URL = os.environ.get("TEST_CITUS_URL", "")
DISTRIBUTED = "distributed"  # in place of a template, which cannot be cloned on Citus
EXTENSIONS = ("create extension citus", "create extension btree_gist")
NODES = "select groupid, nodename, nodeport from pg_dist_node where isactive and noderole = 'primary' order by groupid"
SERVER = """select nodename, nodeport from citus_shards
    where shardid = get_shard_id_for_distribution_column('appointments', %s)"""

needs_citus = pytest.mark.skipif(not COORDINATOR_URL, reason="no TEST_CITUS_URL")
not_on_citus = pytest.mark.skipif(bool(COORDINATOR_URL), reason="its subject is plain PostgreSQL")


class Cluster:
    """A database of the same name on each node."""

    def __init__(self, name: str, nodes: list[tuple[int, str, int]]) -> None:
        parts = urlsplit(COORDINATOR_URL)
        credentials = "".join(parts.netloc.rpartition("@")[:2])
        self.nodes = nodes
        self.urls = [
            parts._replace(netloc=f"{credentials}{host}:{port}", path=f"/{name}").geturl() for _, host, port in nodes
        ]

    @property
    def url(self) -> str:
        return self.urls[0]

    def run_on_each(self, *statements: str) -> None:
        with ThreadPoolExecutor(len(self.urls)) as threads:
            list(threads.map(lambda url: run(url, *statements), self.urls))

    def register_nodes(self) -> None:
        _, host, port = self.nodes[0]
        run(self.url, f"select citus_set_coordinator_host('{host}', {port})")
        run(self.url, *(f"select citus_add_node('{host}', {port})" for _, host, port in self.nodes[1:]))


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as session:
        for statement in statements:
            session.execute(statement.encode())


def server_of(url: str, organisation: str) -> str:
    """The URL of the server with the rows and locks of an organisation: that of `url`, or one of its workers."""
    with psycopg.connect(url) as session:
        if not distribution.are_distributed(session):
            return url
        [[host, port]] = session.execute(SERVER, (bucket_of(organisation),)).fetchall()
    parts = urlsplit(url)
    return parts._replace(netloc="".join(parts.netloc.rpartition("@")[:2]) + f"{host}:{port}").geturl()


@contextmanager
def new_cluster_database() -> Iterator[Cluster]:
    """An empty database on each node, without the extension. It is dropped at the end, even if sessions are still
    connected."""
    name = f"appointments_test_{uuid4().hex}"
    with psycopg.connect(COORDINATOR_URL) as session:
        nodes = session.execute(NODES).fetchall()
    servers = Cluster("postgres", nodes)
    try:
        servers.run_on_each(f"create database {name} template template0 encoding 'UTF8'")
        yield Cluster(name, nodes)
    finally:
        servers.run_on_each(f"drop database if exists {name} with (force)")


@contextmanager
def distributed_database() -> Iterator[str]:
    """The URL of a new database, migrated and distributed."""
    with new_cluster_database() as cluster:
        cluster.run_on_each(*EXTENSIONS)
        cluster.register_nodes()
        schema.migrate(cluster.url, distribute=True)
        yield cluster.url
