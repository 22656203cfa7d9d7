"""Running servers of the embedded PostgreSQL, found by their postmaster.pid or by the folder they work in."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

PORT = 5432  # only a part of the socket's name


class Postmaster(NamedTuple):
    """A running server, as its postmaster.pid describes it."""

    process: psutil.Process
    url: str  # complete once the server is ready
    status: str  # "ready", "starting" or "stopping"


def find(data: Path) -> Postmaster | None:
    """The server that runs over `data`, as far as its postmaster.pid tells.

    Source of the lines: PostgreSQL, src/include/utils/pidfile.h. The server adds the last ones later.
    """
    file = data / "postgres" / "postmaster.pid"
    # No server; or a file that is not written yet, or never will be; or a number that another program has by now.
    with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        lines = file.read_text(encoding="utf-8").splitlines() + [""] * 8
        process = psutil.Process(int(lines[0]))
        if alive(process) and works_in(process, file.parent):
            url = f"postgresql://postgres@/postgres?host={lines[4]}&port={PORT}"
            return Postmaster(process, url, lines[7].strip())
    return None


def works_in(process: psutil.Process, folder: Path) -> bool:
    """Whether it is a process of the server over this folder: all of them work in it."""
    with suppress(psutil.Error):
        return process.name() == "postgres" and Path(process.cwd()) == folder.resolve()
    return False


def alive(process: psutil.Process) -> bool:
    """Reaps a server that this process started; an adopted one may stay a zombie that nobody reaps."""
    if isinstance(process, psutil.Popen):
        return process.poll() is None
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
