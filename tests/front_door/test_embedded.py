"""`serve` on the embedded PostgreSQL: stops, crashes, the adoption of a running server, and start errors."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import psutil
import psycopg
import pytest

from service import ROOT
from service.database import embedded, log_file, schema
from service.database.postmaster import alive, find
from tests.databases import query
from tests.http.requests import assert_accepted, assert_problem, listed, post
from tests.processes import ServiceProcess, clean_environment, running_service, wait_until


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of the files that `serve` needs, at a path of 150 characters. Processes still running there are
    killed at the end."""
    folder = tmp_path / "deep".ljust(max(1, 150 - len(str(tmp_path)) - 1), "-")
    for part in ("service", "sql", "migrations"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    assert len(str(folder)) >= 150
    yield folder
    services = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)]
    for process in services + postmasters(folder):
        process.kill()


@pytest.fixture
def data() -> Iterator[Path]:
    """A data folder with an initialised database, which no server runs."""
    folder = Path(tempfile.mkdtemp(prefix="appointments-tests-", dir="/tmp"))
    with embedded.running(folder):
        pass
    yield folder
    shutil.rmtree(folder)


def postmasters(checkout: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "postgres" and str(checkout) in " ".join(process.info["cmdline"] or [])
    ]


def serve(checkout: Path, **settings: str) -> ServiceProcess:
    return ServiceProcess(checkout, PYTHONPATH=str(checkout), **settings)


def command(checkout: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(**{"PYTHONPATH": str(checkout), "PORT": "0"} | settings)
    line = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(line, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)


def test_data_survive_a_clean_stop_and_no_process_remains(checkout: Path) -> None:
    service = serve(checkout)
    assert_accepted(post(service.client, "o"))
    [postmaster] = postmasters(checkout)
    sockets = parse_qs(urlsplit(service.wait_for_event("started")["settings"]["database_url"]).query)["host"][0]
    assert Path(sockets).is_dir()
    assert service.stop() == 0
    assert not alive(postmaster)
    assert postmasters(checkout) == []
    assert not Path(sockets).exists()
    assert service.events()[-1]["event"] == "stopped"
    again = serve(checkout)
    assert [row["externalId"] for row in listed(again.client, "o")] == ["a-1"]
    assert again.stop() == 0


def test_database_of_a_killed_service_is_adopted_by_the_next_start(checkout: Path) -> None:
    service = serve(checkout)
    assert_accepted(post(service.client, "o"))
    [postmaster] = postmasters(checkout)
    service.kill()
    assert postmasters(checkout) == [postmaster]
    again = serve(checkout)
    assert postmasters(checkout) == [postmaster]
    assert len(listed(again.client, "o")) == 1
    assert again.stop() == 0
    assert postmasters(checkout) == []


def test_killed_database_recovers_although_its_pid_belongs_to_another_process(checkout: Path) -> None:
    service = serve(checkout)
    assert_accepted(post(service.client, "o"))
    [postmaster] = postmasters(checkout)
    service.kill()
    postmaster.kill()
    wait_until(lambda: not alive(postmaster))
    # The system may have reused the pid by the time of the next start.
    pid_file = checkout / ".data" / "postgres" / "postmaster.pid"
    pid_file.write_text(pid_file.read_text().replace(str(postmaster.pid), str(os.getpid()), 1))
    again = serve(checkout)
    assert len(listed(again.client, "o")) == 1
    assert again.stop() == 0


def processes_in(checkout: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(checkout)]


def has_lock_open(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(file.path.endswith("/.data/lock") for file in process.open_files())
    return False


def serve_meanwhile(checkout: Path, then: Callable[[], None]) -> ServiceProcess:
    """Another `serve`; `then` is called once it has begun to look at the data folder."""
    before = processes_in(checkout)
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(serve, checkout)
        wait_until(lambda: any(map(has_lock_open, set(processes_in(checkout)) - set(before))))
        then()
        return starting.result()


def is_stopping(checkout: Path) -> bool:
    return "stopping" in (checkout / ".data" / "postgres" / "postmaster.pid").read_text()


@pytest.mark.parametrize("fault", ["none", "the service is killed", "the service and the postmaster are killed"])
def test_server_in_the_middle_of_its_shutdown_is_waited_for(checkout: Path, fault: str) -> None:
    service = serve(checkout)
    assert_accepted(post(service.client, "o"))
    service.client.close()
    [postmaster] = postmasters(checkout)
    [checkpointer] = [child for child in postmaster.children() if "checkpointer" in " ".join(child.cmdline())]
    checkpointer.suspend()
    service.process.send_signal(signal.SIGINT)
    wait_until(lambda: is_stopping(checkout))
    if fault != "none":
        service.kill()
    if fault == "the service and the postmaster are killed":
        postmaster.kill()
    again = serve_meanwhile(checkout, checkpointer.resume)
    service.process.wait(30)
    assert not alive(postmaster)
    assert [row["externalId"] for row in listed(again.client, "o")] == ["a-1"]
    assert again.stop() == 0
    assert postmasters(checkout) == []


def test_server_that_waits_for_its_clients_to_leave_is_replaced(checkout: Path) -> None:
    service = serve(checkout)
    assert_accepted(post(service.client, "o"))
    [postmaster] = postmasters(checkout)
    with psycopg.connect(service.wait_for_event("started")["settings"]["database_url"]):
        service.kill()
        postmaster.terminate()
        wait_until(lambda: is_stopping(checkout))
        again = serve(checkout)
    assert not alive(postmaster)
    assert [row["externalId"] for row in listed(again.client, "o")] == ["a-1"]
    assert again.stop() == 0


@pytest.mark.parametrize(
    "left", ["", "{dead}", "{other}", "{other}\n/data\n17", "word\n", "-1\n", "0\n", "99999999999999\n", "\xff\xfe"]
)
def test_pid_file_that_tells_nothing_does_not_prevent_a_start(data: Path, left: str) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    file = data / "postgres" / "postmaster.pid"
    file.write_text(left.format(dead=ended.pid, other=os.getpid()), encoding="latin-1")
    with embedded.running(data) as url:
        assert query(url, "select 1") == [(1,)]
    assert not file.exists()


def test_process_that_has_just_ended_its_server_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []
    monkeypatch.setattr(embedded, "find", looks.append)

    def lock() -> bool:
        with embedded.locked(tmp_path):
            return True

    with ThreadPoolExecutor(1) as threads:
        with embedded.locked(tmp_path):
            waiting = threads.submit(lock)
            wait_until(lambda: bool(looks) or waiting.done())
        assert waiting.result(10)


def test_log_of_the_server_is_kept_small_while_it_runs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "LOG_BYTES_MAX", 50_000)
    monkeypatch.setattr(log_file, "CHECK_SECONDS", 0.01)
    log = data / "postgres.log"
    log.write_text("old\n" * 100_000)
    with embedded.running(data) as url:
        assert log.stat().st_size < 50_000  # a server's first lines only
        log.with_name("postgres.log.1").unlink()

        def rotates() -> bool:
            query(url, f"do $$ begin raise warning '{'x' * 5000}'; end $$")
            return log.with_name("postgres.log.1").exists()

        wait_until(rotates)
        query(url, "do $$ begin raise warning 'the last'; end $$")
        assert "the last" in log.read_text() + log.with_name("postgres.log.1").read_text()
        assert sum(file.stat().st_size for file in data.glob("postgres.log*")) < 3 * 50_000


def test_second_serve_fails_with_one_line_that_names_the_running_process(checkout: Path) -> None:
    service = serve(checkout)
    second = command(checkout, "serve")
    assert second.returncode == 1
    expected = f"error: Process {service.process.pid} already runs the database in {checkout}/.data; stop it first."
    assert second.stderr.splitlines() == [expected]
    assert second.stdout == ""
    assert_accepted(post(service.client, "o"))
    migrate = command(checkout, "migrate")
    assert (migrate.returncode, migrate.stdout) == (0, "migrate: nothing to do\n")
    assert service.stop() == 0


def test_migrate_and_rollback_start_and_stop_the_database_themselves(checkout: Path) -> None:
    assert command(checkout, "migrate").stdout == f"migrate: {', '.join(schema.KNOWN)}\n"
    assert command(checkout, "migrate").stdout == "migrate: nothing to do\n"
    for known in reversed(schema.KNOWN):
        assert command(checkout, "rollback").stdout == f"rollback: {known}\n"
    assert command(checkout, "rollback").stdout == "rollback: nothing to do\n"
    assert postmasters(checkout) == []


def test_port_in_use_is_a_one_line_error_and_starts_no_database(service: ServiceProcess, checkout: Path) -> None:
    port = service.url.rpartition(":")[2]
    done = command(checkout, "serve", PORT=port)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: Cannot listen on 127.0.0.1, port {port}: Address already in use.")
    assert done.stdout == ""
    assert not (checkout / ".data").exists()


def test_one_of_two_services_started_together_reports_the_port_in_use(database_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    arguments = [sys.executable, "-m", "service", "serve"]
    environment = clean_environment(DATABASE_URL=database_url, PORT=port)
    started = [
        subprocess.Popen(
            arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    wait_until(lambda: any(process.poll() is not None for process in started))
    [loser] = [process for process in started if process.poll() is not None]
    [winner] = [process for process in started if process is not loser]
    [line] = loser.communicate()[1].splitlines()
    assert line.startswith(f"error: Cannot listen on 127.0.0.1, port {port}: Address already in use.")
    assert loser.returncode == 1
    assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    winner.send_signal(signal.SIGINT)
    assert winner.communicate(timeout=30)[1] == ""
    assert winner.returncode == 0


def test_interrupted_start_removes_its_socket_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new postmaster.pid does not name the socket folder yet; this was once read as the current folder."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious").touch()
    with embedded.locked(folder):
        process = embedded.start(folder)
        sockets = Path((folder / "sockets").read_text())
        while not (folder / "postgres" / "postmaster.pid").exists():  # fast, to see the file before it is complete
            assert alive(process)
            time.sleep(0.001)
        assert sockets.is_dir()
        embedded.stop(folder, process)
    assert (tmp_path / "precious").exists()
    assert not sockets.exists()
    shutil.rmtree(folder)


@pytest.mark.parametrize("left", ["", "\0" * 30, "\xff", "{folder}"])
def test_damaged_record_of_the_socket_folder_does_not_prevent_a_start(data: Path, tmp_path: Path, left: str) -> None:
    (data / "sockets").write_text(left.format(folder=tmp_path), encoding="latin-1")
    with embedded.running(data):
        assert tmp_path.exists()
    assert not (data / "sockets").exists()


def test_start_after_a_crash_of_the_machine_removes_the_stale_socket_folder(checkout: Path) -> None:
    service = serve(checkout)
    sockets = Path((checkout / ".data" / "sockets").read_text())
    service.kill()
    for process in postmasters(checkout):
        process.kill()
        process.wait()
    again = serve(checkout)
    assert not sockets.exists()
    assert again.stop() == 0
    assert not (checkout / ".data" / "sockets").exists()


def test_server_of_another_data_folder_is_not_adopted(checkout: Path, tmp_path: Path) -> None:
    service = serve(checkout)
    [postmaster] = postmasters(checkout)
    other = tmp_path / "other" / "postgres"
    other.mkdir(parents=True)
    shutil.copy(checkout / ".data" / "postgres" / "postmaster.pid", other)
    assert find(checkout / ".data") is not None
    assert find(other.parent) is None
    assert alive(postmaster)
    assert_accepted(post(service.client, "o"))
    assert service.stop() == 0


def test_unusable_data_folder_is_a_one_line_error(checkout: Path) -> None:
    command(checkout, "migrate")
    (checkout / ".data" / "postgres" / "PG_VERSION").write_text("9\n")
    done = command(checkout, "serve")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: PostgreSQL did not start: ")
    assert line.endswith(f"(see {checkout}/.data/postgres.log)")
    assert not (checkout / ".data" / "sockets").exists()


def test_requests_get_503_while_the_database_is_down(checkout: Path) -> None:
    with running_service(checkout, PYTHONPATH=str(checkout)) as service:
        [postmaster] = postmasters(checkout)
        postmaster.send_signal(signal.SIGINT)
        wait_until(lambda: not alive(postmaster))
        for response in (post(service.client, "o"), service.client.get("/api/appointments?org=o")):
            assert_problem(response, 503, "DATABASE_UNAVAILABLE")
            assert response.headers["retry-after"] == "1"
        ready = assert_problem(service.client.get("/readyz"), 503, "NOT_READY")
        assert "database" in ready["detail"]
        assert service.client.get("/livez").status_code == 200
