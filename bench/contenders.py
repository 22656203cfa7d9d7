"""The contenders: server processes, each with its own database, on one PostgreSQL."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.error import HTTPError

import psutil

from service import ROOT
from service.settings import Settings
from service.web.server import listening
from tests.launcher import CONSTANTS

START_SECONDS_MAX = 60


class Contender(NamedTuple):
    """A server and its database, which no other server writes to."""

    url: str
    database_url: str
    process: psutil.Process

    def memory_mb(self) -> float:
        """Resident memory of the largest of its processes."""
        processes = [self.process, *self.process.children(recursive=True)]
        return max(process.memory_info().rss for process in processes) / 1e6

    def statuses(self) -> dict[str, int]:
        """The number of answers by status; only the service has this route."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            text = response.read().decode()
        found = re.findall(r'^http_request_duration_seconds_count{.*status="(\d+)"} (.+)$', text, re.MULTILINE)
        counts: dict[str, int] = {}
        for status, count in found:
            counts[status] = counts.get(status, 0) + int(float(count))
        return counts


@contextmanager
def service(database_url: str, **settings: str) -> Iterator[Contender]:
    """Settings may include the constants of `tests/launcher.py`."""
    module = "tests.launcher" if settings.keys() & CONSTANTS.keys() else "service"
    with contender(database_url, [sys.executable, "-m", module, "serve"], LOG_LEVEL="warning", **settings) as started:
        yield started


@contextmanager
def rival(database_url: str, name: str, pool: int, workers: int) -> Iterator[Contender]:
    """One of `bench/rivals/`, with production settings of uvicorn."""
    options = ["--loop=uvloop", "--http=httptools", "--no-access-log", "--log-level=warning", f"--workers={workers}"]
    command = [sys.executable, "-m", "uvicorn", f"bench.rivals.{name}:app", *options]
    with contender(database_url, command, POOL=str(pool)) as started:
        yield started


@contextmanager
def contender(database_url: str, command: list[str], **environment: str) -> Iterator[Contender]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    if command[2] == "uvicorn":
        command = [*command, f"--port={port}"]
    with TemporaryDirectory() as directory:
        own = {"PORT": str(port), "DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)} | environment
        # Standard output is for the result table, so logs go to standard error.
        process = subprocess.Popen(command, cwd=directory, env=os.environ | own, stdout=sys.stderr)
        try:
            wait_until_it_answers(url, process)
            yield Contender(url, database_url, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(60)


def free_port() -> int:
    with listening(Settings(port=0)) as listener:
        return int(listener.getsockname()[1])


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/livez")
        except HTTPError:  # rivals have no such route, but a 404 shows that they are up
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{url} does not answer")
