"""Commands that a signal interrupts end by that signal: a shell sees 128 and its number, and nothing is left behind."""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode

import psutil
import psycopg
import pytest

from service import ROOT, __main__
from service.database import schema
from service.database.statements import LOCK_SCHEMA
from service.database_url import for_psycopg
from service.problems import StartError
from tests.databases import new_database, query, wait_until_blocked
from tests.processes import clean_environment, running_service, wait_until

# Ignored by a shell for nohup, and for the background jobs of a script; a process then ignores it, too.
NUMBERS = [
    number
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    if signal.getsignal(number) is not signal.SIG_IGN
]
each_signal = pytest.mark.parametrize("number", NUMBERS)


@contextmanager
def command(
    directory: Path, *arguments: str, stdout: int = subprocess.PIPE, **settings: str
) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "service", *arguments],
        cwd=directory,
        env=clean_environment(**{"PORT": "0"} | settings),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def assert_interrupted(process: "subprocess.Popen[str]", number: int) -> None:
    output, errors = process.communicate(timeout=60)
    assert "Traceback" not in (output or "") + errors
    assert len(errors.splitlines()) <= 1
    assert process.returncode == -number


@each_signal
@pytest.mark.parametrize("name", ["serve", "migrate", "rollback"])
def test_command_that_waits_for_the_lock_of_the_schema(
    server_url: str, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    with new_database(server_url) as url:
        with psycopg.connect(url, autocommit=True) as session:
            session.execute(LOCK_SCHEMA.text.encode())
            with command(tmp_path, name, DATABASE_URL=url) as process:
                wait_until_blocked(url)
                process.send_signal(number)
                assert_interrupted(process, number)
        assert query(url, "select count(*) from pg_tables where schemaname = 'public'") == [(0,)]
        assert schema.migrate(url) == schema.KNOWN


def test_error_of_the_clean_up_after_a_signal_does_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        try:
            raise KeyboardInterrupt(signal.SIGTERM)
        finally:
            raise_start_error()

    def raise_start_error() -> None:
        try:
            raise OSError("another command is already in progress")
        except OSError as error:
            raise StartError("The database refuses.") from error

    monkeypatch.setattr(__main__, "run_command", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        __main__.run(argparse.Namespace())
    assert caught.value.args == (signal.SIGTERM,)


class Gate:
    """A TCP port in front of a database. Connections after the first few are held until it is opened."""

    def __init__(self, url: str, listener: socket.socket, passing: int) -> None:
        self._parameters = for_psycopg(url)
        self._listener = listener
        self._passing = passing
        self.held = 0
        self.opened = threading.Event()
        self._ended = False
        place = {"host": "127.0.0.1", "port": str(listener.getsockname()[1]), "sslmode": "disable"}
        self.url = f"postgresql:///?{urlencode(self._parameters | place)}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._ended:
                client.close()
                return
            held = not self._passing and not self.opened.is_set()
            self._passing = max(0, self._passing - 1)
            self.held += held
            self._threads.append(threading.Thread(target=self._forward, args=(client, held)))
            self._threads[-1].start()

    def _forward(self, client: socket.socket, held: bool) -> None:
        host, port = self._parameters["host"], self._parameters.get("port", "5432")
        address = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, int(port))
        with client, socket.socket(socket.AF_UNIX if host.startswith("/") else socket.AF_INET) as server:
            if held:
                self.opened.wait()
            server.connect(address)
            back = threading.Thread(target=copy, args=(server, client))
            back.start()
            copy(client, server)
            back.join()

    def end(self) -> None:
        self._ended = True
        self.opened.set()
        socket.create_connection(self._listener.getsockname()).close()  # ends the loop that accepts
        for thread in self._threads:
            thread.join()


@contextmanager
def gate_before(url: str, passing: int) -> Iterator[Gate]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gate = Gate(url, listener, passing)
        try:
            yield gate
        finally:
            gate.end()


def copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@each_signal
@pytest.mark.parametrize(
    ("connections", "workers"),
    [
        pytest.param(0, "1", id="migrating"),
        pytest.param(1, "1", id="checking the database"),
        pytest.param(2, "1", id="opening its pools"),
        pytest.param(2, "2", id="its workers opening their pools"),
    ],
)
def test_service_that_waits_for_a_connection(
    database_url: str, tmp_path: Path, connections: int, workers: str, number: signal.Signals
) -> None:
    with (
        gate_before(database_url, connections) as gate,
        command(tmp_path, "serve", DATABASE_URL=gate.url, WORKERS=workers) as process,
    ):
        wait_until(lambda: gate.held >= int(workers))
        process.send_signal(number)
        wait_until(lambda: process.poll() is not None or has_handled(process, number))
        gate.opened.set()
        assert_interrupted(process, number)


def has_handled(process: "subprocess.Popen[str]", number: int) -> bool:
    """Whether the signal is no longer pending."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return not any(int(line.split()[1], 16) & 1 << number - 1 for line in lines if "Pnd:" in line)


@each_signal
def test_start_of_the_embedded_database(tmp_path: Path, number: signal.Signals) -> None:
    for part in ("service", "sql", "migrations"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    with command(tmp_path, "migrate", PYTHONPATH=str(tmp_path)) as process:
        wait_until((tmp_path / ".data" / "sockets").exists)
        process.send_signal(number)
        assert_interrupted(process, number)
    assert not (tmp_path / ".data" / "sockets").exists()
    assert [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(each.info["cmdline"])] == []


@pytest.mark.skipif(signal.SIGHUP not in NUMBERS, reason="this session ignores hang-ups")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_hang_up_stops_a_service_as_other_signals_do(database_url: str, tmp_path: Path, workers: str) -> None:
    with running_service(tmp_path, DATABASE_URL=database_url, WORKERS=workers) as service:
        wait_until(lambda: [event["event"] for event in service.events()].count("started") == int(workers))
        service.process.send_signal(signal.SIGHUP)
        assert service.process.wait(60) == 0
        assert service.events()[-1]["event"] == "stopped"


@pytest.mark.parametrize("ignored", [True, False])
def test_hang_up_that_nohup_ignores_stays_ignored(database_url: str, tmp_path: Path, ignored: bool) -> None:
    action = signal.SIG_IGN if ignored else signal.SIG_DFL
    previous = signal.signal(signal.SIGHUP, action)
    try:
        with (
            psycopg.connect(database_url, autocommit=True) as session,
            command(tmp_path, "rollback", DATABASE_URL=database_url) as process,
        ):
            session.execute(LOCK_SCHEMA.text.encode())
            wait_until_blocked(database_url)
            process.send_signal(signal.SIGHUP)
            if ignored:
                wait_until(lambda: has_handled(process, signal.SIGHUP))
                process.send_signal(signal.SIGTERM)
            assert_interrupted(process, signal.SIGTERM if ignored else signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_ctrl_c_during_the_imports_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "structlog.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    with command(tmp_path, "migrate", PYTHONPATH=f"{tmp_path}:{ROOT}") as process:
        assert_interrupted(process, signal.SIGINT)
        assert process.stderr is not None


@pytest.mark.parametrize("arguments", [["export"], ["migrate"]])
def test_command_whose_reader_has_gone_ends_by_sigpipe(database_url: str, tmp_path: Path, arguments: list[str]) -> None:
    with running_service(tmp_path / "service", DATABASE_URL=database_url) as service:
        service.client.post("/api/appointments", json=APPOINTMENT)
        reading, writing = os.pipe()
        os.close(reading)
        port = service.url.rpartition(":")[2]
        with command(tmp_path, *arguments, stdout=writing, DATABASE_URL=database_url, PORT=port) as process:
            os.close(writing)
            assert_interrupted(process, signal.SIGPIPE)


@pytest.mark.parametrize("arguments", [["export"], ["migrate"]])
def test_full_standard_output_is_a_one_line_error(database_url: str, tmp_path: Path, arguments: list[str]) -> None:
    with (
        running_service(tmp_path / "service", DATABASE_URL=database_url) as service,
        Path("/dev/full").open("w") as full,
    ):
        service.client.post("/api/appointments", json=APPOINTMENT)
        port = service.url.rpartition(":")[2]
        with command(tmp_path, *arguments, stdout=full.fileno(), DATABASE_URL=database_url, PORT=port) as process:
            errors = process.communicate(timeout=60)[1]
    assert errors == "error: Cannot write standard output: No space left on device.\n"
    assert process.returncode == 1


APPOINTMENT = {
    "id": "a-1",
    "start": "2020-10-10 20:20",
    "end": "2020-10-10 20:30",
    "createdAt": "2020-09-02",
    "updatedAt": "2020-09-28",
}
