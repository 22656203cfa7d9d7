from collections.abc import Iterator

import pytest

from tests.cluster import EXTENSIONS, Cluster, new_cluster_database


@pytest.fixture
def bare_cluster() -> Iterator[Cluster]:
    """An empty database on every node, without the extension."""
    with new_cluster_database() as cluster:
        yield cluster


@pytest.fixture
def cluster(bare_cluster: Cluster) -> Cluster:
    """An empty database on every node, registered with Citus."""
    bare_cluster.run_on_each(*EXTENSIONS)
    bare_cluster.register_nodes()
    return bare_cluster
