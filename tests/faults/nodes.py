"""The nodes of a Citus cluster on this machine, which a test can kill, stop, halt and start again."""

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from service.database.account import switch_to
from service.database.buckets import bucket_of
from tests.databases import query
from tests.processes import wait_until

NODES = "select nodename, nodeport from pg_dist_node where isactive and noderole = 'primary' order by groupid"
PLACEMENTS = """
    select n.nodeport
    from pg_dist_placement as p
    join pg_dist_node as n on n.groupid = p.groupid
    where p.shardid = get_shard_id_for_distribution_column('appointments', {})"""
IN_DOUBT = "select gid from pg_prepared_xacts where database = current_database()"
NAMES = [f"clinic-{number}" for number in range(100)]


class Node:
    """A server of the cluster, found by its data directory. `port` also tells it from the others."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port
        [[directory]] = query(url, "show data_directory")
        self.data = Path(str(directory))
        owner = pwd.getpwuid(self.data.stat().st_uid)
        self._account = switch_to(None if os.geteuid() else owner)
        postmaster = self.postmaster()
        self._bin = Path(postmaster.exe()).parent
        self._environment = postmaster.environ()  # Citus connects from it to other nodes
        self.log = Path(f"/proc/{postmaster.pid}/fd/2").open("ab")  # noqa: SIM115 - a file or a pipe: it goes on there

    def postmaster(self) -> psutil.Process:
        return psutil.Process(int((self.data / "postmaster.pid").read_text().splitlines()[0]))

    def signal_all(self, number: signal.Signals) -> list[psutil.Process]:
        postmaster = self.postmaster()
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                process.send_signal(number)
        return processes

    def kill(self) -> None:
        """Like a power failure, except that data already handed to the operating system are kept."""
        psutil.wait_procs(self.signal_all(signal.SIGKILL), timeout=60)

    def halt(self) -> None:
        self.signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal_all(signal.SIGCONT)

    def stop(self) -> None:
        self._pg_ctl("stop", "-m", "fast")

    def start(self) -> None:
        self._pg_ctl("start")

    def is_running(self) -> bool:
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            return self.postmaster().is_running()
        return False

    def _pg_ctl(self, command: str, *options: str) -> None:
        subprocess.run(
            [str(self._bin / "pg_ctl"), "-D", str(self.data), "-w", "-t", "60", *options, command],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            cwd="/",
            env=self._environment,
            start_new_session=True,  # it outlives the tests, and an interrupt of them
            **self._account,
        )


class Nodes:
    """`url` is that of a distributed database on the coordinator."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        credentials = "".join(parts.netloc.rpartition("@")[:2])
        self.coordinator, *self.workers = (
            Node(parts._replace(netloc=f"{credentials}{host}:{port}").geturl()) for host, port in query(url, NODES)
        )

    def worker_of(self, organisation: str) -> Node:
        [[port]] = query(self.url, PLACEMENTS.format(bucket_of(organisation)))
        [node] = [worker for worker in self.workers if worker.port == port]
        return node

    def organisations_of(self, worker: Node, buckets: int = 2) -> tuple[str, ...]:
        """Names of organisations in several buckets that are all on this worker."""
        names = {bucket_of(name): name for name in NAMES if self.worker_of(name) is worker}
        assert len(names) >= buckets, f"{worker.url} has too few shards"
        return tuple(names.values())[:buckets]

    def assert_nothing_in_doubt(self) -> None:
        """Citus ends the prepared transactions that a lost node has left."""
        for node in (self.coordinator, *self.workers):
            wait_until(partial(is_empty, node.url, IN_DOUBT))


def is_empty(url: str, statement: str) -> bool:
    return query(url, statement) == []


@contextmanager
def nodes_of(url: str) -> Iterator[Nodes]:
    """At the end all nodes run again."""
    nodes = Nodes(url)
    try:
        yield nodes
    finally:
        for node in (nodes.coordinator, *nodes.workers):
            if node.is_running():
                node.go_on()
            else:
                node.start()
            node.log.close()
