"""A PostgreSQL server that a test can kill, stop, halt and start again on the same data."""

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
END_SESSIONS = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'appointments'"


class Server:
    """Listens on a socket in the folder `sockets`; the URL stays the same across restarts."""

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
        wait_until(lambda: self.is_ready() or not self.is_running())
        assert self.is_running(), self.log()

    def is_ready(self) -> bool:
        command = [str(BINARIES / "pg_isready"), "--quiet", "--host", str(self.sockets)]
        return subprocess.run(command, check=False).returncode == 0

    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        return [*self.process.children(recursive=True), self.process]

    def signal_all(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                process.send_signal(number)

    def kill(self) -> None:
        """Like a power failure, except that data already handed to the operating system are kept."""
        self.signal_all(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """Like `pg_ctl stop -m fast`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.wait()

    def wait(self) -> None:
        assert self.process is not None
        self.process.wait(timeout=60)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def service_backends(self) -> list[int]:
        """Process ids of the service's sessions."""
        statement = "select pid from pg_stat_activity where application_name = 'appointments'"
        return [int(str(pid)) for [pid] in query(self.url, statement)]

    def log(self) -> str:
        return (self.directory / "postgres.log").read_text()


@contextmanager
def running_server(directory: Path, *options: str, data_directory: Path | None = None) -> Iterator[Server]:
    """A server with an empty database; `options` are passed on PostgreSQL's command line."""
    place = prepare_directory(data_directory or directory)
    initialise(place, unprivileged_account())
    with cleaned_up(Server(place, *options)) as server:
        server.start()
        yield server


@contextmanager
def cleaned_up(server: Server) -> Iterator[Server]:
    """Stops the server at the end, if it is running, and removes its sockets."""
    try:
        yield server
    finally:
        if server.is_running():
            server.signal_all(signal.SIGCONT)
            server.stop()
        shutil.rmtree(server.sockets)


def create_standby(server: Server, directory: Path) -> Server:
    """A standby of the server, not yet started."""
    replica = Server(prepare_directory(directory))
    command = [
        str(BINARIES / "pg_basebackup"),
        "-h",
        str(server.sockets),
        "-U",
        "postgres",
        "-D",
        str(replica.data),
        "-R",
        "-c",
        "fast",
    ]
    subprocess.run(command, check=True, **switch_to(unprivileged_account()))
    return replica


def prepare_directory(directory: Path) -> Path:
    """Creates a folder for the account that runs the server, and makes the programs accessible to it."""
    directory.mkdir(exist_ok=True)
    file = directory / "reachable"
    file.touch()
    make_reachable(unprivileged_account(), [PACKAGE, LIBRARIES, file])
    return own(directory, unprivileged_account())


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Path]:
    """Mounts a separate file system, which requires root."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def fill_disk(directory: Path) -> Path:
    """Creates a file that leaves less than a page of free space, and returns its path."""
    ballast = directory / "ballast"
    with ballast.open("wb") as file:
        for size in (1_048_576, 4096):
            try:
                while True:
                    os.write(file.fileno(), bytes(size))
            except OSError:
                pass
    return ballast
