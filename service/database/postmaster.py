"""The process of an embedded PostgreSQL: found by its pid file, even if another process started it."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

PORT = 5432  # only a part of the socket's name


class Postmaster(NamedTuple):
    """A running server, as its postmaster.pid describes it."""

    process: psutil.Process
    url: str  # complete once the server is ready
    ready: bool


def find(data: Path) -> Postmaster | None:
    """The server that runs over `data`. A stale pid file is removed.

    Source of the lines: PostgreSQL, src/include/utils/pidfile.h. The server adds the last ones later.
    """
    file = data / "postgres" / "postmaster.pid"
    try:
        lines = file.read_text(encoding="utf-8").splitlines() + [""] * 8
        process = psutil.Process(int(lines[0]))
        # The number may belong to another program by now: a postmaster works in its data folder.
        if alive(process) and process.name() == "postgres" and Path(process.cwd()) == file.parent.resolve():
            url = f"postgresql://postgres@/postgres?host={lines[4]}&port={PORT}"
            return Postmaster(process, url, lines[7].strip() == "ready")
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):  # no server, or a file not written yet
        return None
    except psutil.AccessDenied:  # another user's process, so not this server
        pass
    file.unlink()  # PostgreSQL would take the process that now has the number for a running server
    return None


def alive(process: psutil.Process) -> bool:
    """Reaps a server that this process started; an adopted one may stay a zombie that nobody reaps."""
    if isinstance(process, psutil.Popen):
        return process.poll() is None
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
