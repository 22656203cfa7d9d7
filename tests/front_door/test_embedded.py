"""`serve` on the embedded PostgreSQL: what is left behind, what is adopted, what is in the way."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import psutil
import pytest

from service import ROOT
from service.database import embedded, schema
from service.database.embedded import alive, find
from tests.http.requests import assert_accepted, assert_problem, listed, post
from tests.processes import ServiceProcess, clean_environment, running_service, wait_until


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of what `serve` needs, 150 characters deep; whatever still runs there is killed."""
    folder = tmp_path / "deep".ljust(max(1, 150 - len(str(tmp_path)) - 1), "-")
    for part in ("service", "sql", "migrations"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    assert len(str(folder)) >= 150
    yield folder
    services = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)]
    for process in services + postmasters(folder):
        process.kill()


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


def test_the_data_survive_a_clean_stop_that_leaves_no_process(checkout: Path) -> None:
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


def test_the_database_of_a_killed_service_is_adopted(checkout: Path) -> None:
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


def test_the_database_that_was_killed_too_recovers(checkout: Path) -> None:
    service = serve(checkout)
    assert_accepted(post(service.client, "o"))
    [postmaster] = postmasters(checkout)
    service.kill()
    postmaster.kill()
    wait_until(lambda: not alive(postmaster))
    # Its number may have gone to another process by the time of the next start.
    pid_file = checkout / ".data" / "postgres" / "postmaster.pid"
    pid_file.write_text(pid_file.read_text().replace(str(postmaster.pid), str(os.getpid()), 1))
    again = serve(checkout)
    assert len(listed(again.client, "o")) == 1
    assert again.stop() == 0


def test_a_second_serve_says_in_one_line_what_is_in_its_way(checkout: Path) -> None:
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


def test_migrate_and_rollback_work_without_a_service_and_stop_what_they_start(checkout: Path) -> None:
    assert command(checkout, "migrate").stdout == f"migrate: {', '.join(schema.KNOWN)}\n"
    assert command(checkout, "migrate").stdout == "migrate: nothing to do\n"
    for known in reversed(schema.KNOWN):
        assert command(checkout, "rollback").stdout == f"rollback: {known}\n"
    assert command(checkout, "rollback").stdout == "rollback: nothing to do\n"
    assert postmasters(checkout) == []


def test_a_port_in_use_is_one_line_and_starts_nothing(service: ServiceProcess, checkout: Path) -> None:
    port = service.url.rpartition(":")[2]
    done = command(checkout, "serve", PORT=port)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: Cannot listen on 127.0.0.1, port {port}: Address already in use.")
    assert done.stdout == ""
    assert not (checkout / ".data").exists()


def test_of_two_started_together_one_says_that_the_port_is_taken(database_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    line = [sys.executable, "-m", "service", "serve"]
    environment = clean_environment(DATABASE_URL=database_url, PORT=port)
    started = [
        subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    wait_until(lambda: any(process.poll() is not None for process in started))
    [loser] = [process for process in started if process.poll() is not None]
    [winner] = [process for process in started if process is not loser]
    assert "Address already in use" in loser.communicate()[1]
    assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    winner.send_signal(signal.SIGINT)
    assert winner.communicate(timeout=30)[1] == ""


def test_a_start_that_is_cut_short_removes_what_it_made_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first the server's file does not name the folder of its socket, which once meant this one."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious").touch()
    with embedded.locked(folder):
        process = embedded.start(folder)
        sockets = Path((folder / "sockets").read_text())
        while not (folder / "postgres" / "postmaster.pid").exists():
            time.sleep(0.001)
        assert sockets.is_dir()
        embedded.stop(folder, process)
    assert (tmp_path / "precious").exists()
    assert not sockets.exists()
    shutil.rmtree(folder)


def test_nothing_is_left_of_a_machine_that_went_down(checkout: Path) -> None:
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


def test_another_cluster_is_not_taken_for_ours(checkout: Path, tmp_path: Path) -> None:
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


def test_data_that_postgresql_cannot_use_are_one_line(checkout: Path) -> None:
    command(checkout, "migrate")
    (checkout / ".data" / "postgres" / "PG_VERSION").write_text("9\n")
    done = command(checkout, "serve")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: PostgreSQL did not start: ")
    assert line.endswith(f"(see {checkout}/.data/postgres.log)")
    assert not (checkout / ".data" / "sockets").exists()


def test_while_the_database_is_away_requests_get_a_503(checkout: Path) -> None:
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
