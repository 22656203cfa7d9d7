"""Runs the service in a separate process, as a user does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from service import ROOT
from tests.launcher import CONSTANTS
from tests.roles.role import role_under_test, url_of_role

START_SECONDS_MAX = 60


def writes_by_bucket() -> bool:
    """Whether the writer for distributed tables is under test on plain PostgreSQL."""
    return os.environ.get("TEST_WRITER") == "distributed"


class ServiceProcess:
    """`python -m service serve` on a free port, with an HTTP client for it. If TEST_ROLE is set in the environment, the
    service uses a least-privilege role; with TEST_WRITER=distributed it writes as to distributed tables."""

    def __init__(self, directory: Path, **settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.log_file = directory / "service.log"
        self.database_url = settings.get("DATABASE_URL", "")
        if self.database_url and role_under_test() and "OWNER_DATABASE_URL" not in settings:
            settings |= {"DATABASE_URL": url_of_role(self.database_url), "OWNER_DATABASE_URL": self.database_url}
        if writes_by_bucket():
            settings |= {"ALWAYS_BY_BUCKET": "1"}
        module = "tests.launcher" if settings.keys() & CONSTANTS.keys() else "service"
        if "PYTHONPATH" in settings:  # a copy of the program, without the launcher
            settings |= {"PYTHONPATH": f"{settings['PYTHONPATH']}{os.pathsep}{ROOT}"}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "serve"],
                cwd=directory,
                env=clean_environment(**{"PORT": "0"} | settings),
                stdout=log,
                stderr=log,
            )
        try:
            started = self.wait_for_event("started")
            self.url: str = started["api"].removesuffix("/api/appointments")
            self.client = httpx.Client(base_url=self.url, timeout=30)
            assert self.client.get("/livez").status_code == 200
        except BaseException:
            self.process.kill()
            raise

    def connect(self) -> socket.socket:
        """A TCP connection, for requests that an HTTP client would not send."""
        address = urlsplit(self.url)
        return socket.create_connection((address.hostname or "", address.port or 0), timeout=30)

    def events(self) -> list[dict[str, Any]]:
        lines = self.log_file.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for_event(self, name: str, **members: object) -> dict[str, Any]:
        """Waits for a log line of this event with these members and returns the first one."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            for event in self.events():
                if event["event"] == name and members.items() <= event.items():
                    return event
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no log line {name} {members} in:\n{self.log_file.read_text()}")

    def kill(self) -> None:
        """Like kill -9: the service cannot clean up."""
        self.client.close()
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)


@contextmanager
def running_service(directory: Path, **settings: str) -> Iterator[ServiceProcess]:
    service = ServiceProcess(directory, **settings)
    try:
        yield service
    finally:
        service.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition is still false after {seconds} seconds"
        time.sleep(0.01)


def clean_environment(**settings: str) -> dict[str, str]:
    """Only the variables that a process needs, so that no setting of the caller leaks into a test."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}
    return kept | coverage | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | settings
