"""A PostgreSQL server that may be killed, stopped, halted, and started again in its place."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from service.database.account import make_reachable, own, switch_to, unprivileged_account
from service.database.embedded import BINARIES, LIBRARIES, PACKAGE, initialise
from tests.databases import query
from tests.processes import wait_until

OPTIONS = ["-c", "listen_addresses=", "-c", "timezone=UTC", "-c", "restart_after_crash=on"]


class Server:
    """Listens in `sockets`, under one name all along."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.data = directory / "postgres"
        self.sockets = own(Path(tempfile.mkdtemp(prefix="appointments-fault-", dir="/tmp")), unprivileged_account())
        self._options = options
        self.url = f"postgresql://postgres@/postgres?host={self.sockets}&port=5432"
        self.process: psutil.Popen | None = None

    def start(self) -> None:
        command = [str(BINARIES / "postgres"), "-D", str(self.data), "-k", str(self.sockets), *OPTIONS, *self._options]
        with (self.directory / "postgres.log").open("ab") as log:
            self.process = psutil.Popen(command, stdout=log, stderr=log, **switch_to(unprivileged_account()))
        wait_until(self.answers)

    def answers(self) -> bool:
        command = [str(BINARIES / "pg_isready"), "--quiet", "--host", str(self.sockets)]
        return subprocess.run(command, check=False).returncode == 0

    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        return [*self.process.children(recursive=True), self.process]

    def signal_all(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # one that has just come to its own end
                process.send_signal(number)

    def kill(self) -> None:
        """As a power failure does, but for what the system has not yet written."""
        self.signal_all(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """As `pg_ctl stop -m fast`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.wait()

    def wait(self) -> None:
        assert self.process is not None
        self.process.wait(timeout=60)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def backends(self, what: str = "application_name = 'appointments'") -> list[int]:
        return [int(str(pid)) for [pid] in query(self.url, f"select pid from pg_stat_activity where {what}")]


@contextmanager
def running_server(directory: Path, *options: str, data_directory: Path | None = None) -> Iterator[Server]:
    """With empty data; `options` as on the command line of PostgreSQL."""
    place = prepared(data_directory or directory)
    initialise(place, unprivileged_account())
    with served_by(Server(place, *options)) as server:
        server.start()
        yield server


@contextmanager
def served_by(server: Server) -> Iterator[Server]:
    """Nothing is left of it in the end, whether it was started or not."""
    try:
        yield server
    finally:
        if server.alive():
            server.signal_all(signal.SIGCONT)
            server.stop()
        shutil.rmtree(server.sockets)


def prepared(directory: Path) -> Path:
    """A folder that the account of the server reaches, as it does its programs."""
    directory.mkdir(exist_ok=True)
    mark = directory / "reachable"
    mark.touch()
    make_reachable(unprivileged_account(), [PACKAGE, LIBRARIES, mark])
    return own(directory, unprivileged_account())


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own; needs root."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """A file that takes all the room that is left, but for less than a page."""
    ballast = directory / "ballast"
    with ballast.open("wb") as file:
        for size in (1_048_576, 4096):
            try:
                while True:
                    os.write(file.fileno(), bytes(size))
            except OSError:
                pass
    return ballast
