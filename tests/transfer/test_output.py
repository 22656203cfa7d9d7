"""`export --output FILE`: the file appears whole, or stays as it was."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.http.requests import post
from tests.http.test_lists import LINES
from tests.processes import ServiceProcess, clean_environment, wait_until
from tests.transfer.test_transfer import run

OLD = b"an older export\n"
ROW = b'{"externalId":"a-1"}\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(ROW), ROW)
PROBLEM = b'{"title":"t","status":500,"code":"INTERNAL","detail":"The service failed."}'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Alone in its folder."""
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "appointments.ndjson"
    file.write_bytes(OLD)
    return file


@contextmanager
def answering(answer: bytes, *, closes: bool = True) -> Iterator[tuple[str, threading.Event]]:
    """The URL of a server that answers one request with these bytes, and then closes the connection or stalls."""
    answered, ended = threading.Event(), threading.Event()

    def answer_once() -> None:
        client, _ = listener.accept()
        with client:
            while not client.recv(65_536).endswith(b"\r\n\r\n"):
                pass
            client.sendall(answer)
            answered.set()
            if not closes:
                ended.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_once, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", answered
        finally:
            ended.set()
            thread.join(30)


@pytest.mark.parametrize("exists", [True, False])
def test_file_has_the_list_and_the_permissions_of_any_new_file(
    service: ServiceProcess, organisation: str, file: Path, exists: bool
) -> None:
    if not exists:
        file.unlink()
    post(service.client, organisation)
    done = run("export", "--org", organisation, "--url", service.url, "--output", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    expected = service.client.get(f"/api/appointments?org={organisation}", headers=LINES).content
    assert file.read_bytes() == expected != b""
    (file.parent / "plain").touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((file.parent / "plain").stat().st_mode)
    assert {path.name for path in file.parent.iterdir()} == {file.name, "plain"}


def test_file_keeps_the_permissions_that_it_had(service: ServiceProcess, file: Path) -> None:
    file.chmod(0o600)
    assert run("export", "--url", service.url, "--output", str(file)).returncode == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes() != OLD


def test_links_that_lead_to_each_other_leave_no_stack_trace(service: ServiceProcess, file: Path) -> None:
    link = file.parent / "link"
    link.symlink_to(link)
    assert b"Traceback" not in run("export", "--url", service.url, "--output", str(link)).stderr


@pytest.mark.parametrize("arguments", [["export"], ["import", "/dev/null"]])
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_streams(service: ServiceProcess, arguments: list[str], closed: int) -> None:
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" --url {service.url} {closed}>&-', "", sys.executable, "-m", "service", *arguments],
        env=clean_environment(),
        capture_output=True,
        timeout=60,
    )
    lost = closed == 1 and arguments == ["export"]
    errors = {"export": b"error: Cannot write standard output: Bad file descriptor.\n" if lost else b""}
    assert done.returncode == int(lost)
    assert done.stderr == errors.get(arguments[0], b"" if closed == 2 else b"nothing to import\n")


def test_link_is_followed_and_a_device_is_written_to(service: ServiceProcess, organisation: str, file: Path) -> None:
    post(service.client, organisation)
    link = file.parent / "latest"
    link.symlink_to(file.name)
    pipe = file.parent / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    for output in (link, pipe, Path("/dev/stdout")):
        done = run("export", "--org", organisation, "--url", service.url, "--output", str(output))
        assert (done.returncode, done.stderr) == (0, b"")
    assert link.is_symlink()
    assert pipe.is_fifo()
    assert done.stdout == file.read_bytes() == reader.communicate(timeout=30)[0] != OLD
    assert len(list(file.parent.iterdir())) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (CHUNKED + CHUNK, "The list is incomplete"),
        (HEAD + b"Content-Length: 1000\r\n\r\n" + ROW, "The list is incomplete"),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nrows", "The list is incomplete"),
        (HEAD + b"\r\n" + ROW, "does not mark the end of the list"),
        (HEAD.replace(b"1.1", b"1.0") + b"\r\n" + ROW, "does not mark the end of the list"),
        (HEAD.replace(b"x-ndjson", b"json") + b"Content-Length: 2\r\n\r\n[]", "not application/x-ndjson"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nok", "is not this service"),
        (b"HTTP/1.1 500 E\r\nContent-Length: %d\r\n\r\n" % len(PROBLEM) + PROBLEM, "The service failed."),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", "Status 302"),
        (b"", "The list is incomplete"),
    ],
)
def test_answer_that_is_no_whole_list_leaves_the_old_file(file: Path, answer: bytes, message: str) -> None:
    with answering(answer) as (url, _):
        done = run("export", "--url", url, "--output", str(file))
    assert (done.returncode, done.stdout) == (1, b"")
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert file.read_bytes() == OLD
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_file", [True, False])
def test_interrupted_export_ends_by_the_signal_and_leaves_the_old_file(
    file: Path, number: signal.Signals, to_file: bool
) -> None:
    with answering(CHUNKED + CHUNK, closes=False) as (url, answered):
        options = ["--output", str(file)] if to_file else []
        with subprocess.Popen(
            [sys.executable, "-m", "service", "export", "--url", url, *options],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert answered.wait(30)
            process.send_signal(number)
            errors = process.communicate(timeout=30)[1]
    assert (process.returncode, errors) == (-number, b"")
    assert file.read_bytes() == OLD
    assert list(file.parent.iterdir()) == [file]


def waits_for(pid: int, url: str) -> bool:
    port = int(url.rpartition(":")[2])
    return port in [connection.raddr.port for connection in psutil.Process(pid).net_connections() if connection.raddr]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_import_ends_by_the_signal(service: ServiceProcess, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "service", "import", "-", "--url", service.url],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        wait_until(lambda: waits_for(process.pid, service.url))
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == -number
    assert output == b""
    assert b"Traceback" not in errors
    assert errors.count(b"\n") <= 1  # of the progress bar


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("no/such/folder/file", "No such file or directory"),
        (".", "Is a directory"),
        ("appointments.ndjson/file", "Not a directory"),
        ("/proc/file", "No such file or directory"),
    ],
)
def test_file_that_cannot_be_written_is_a_one_line_error(
    service: ServiceProcess, file: Path, output: str, reason: str
) -> None:
    done = run("export", "--url", service.url, "--output", str(file.parent / output))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"error: Cannot write {file.parent / output}: {reason}.\n"
    assert list(file.parent.iterdir()) == [file]


def test_disk_that_is_full_leaves_the_old_file(service: ServiceProcess, organisation: str, file: Path) -> None:
    """A limit on the size of files stands for it."""
    for number in range(10):
        day = f"2020-10-{number + 10}"
        post(service.client, organisation, id=f"a-{number}", start=day, end=f"{day} 01:00")
    command = [sys.executable, "-m", "service", "export", "--org", organisation, "--url", service.url]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *command, "--output", str(file)],
        env=clean_environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"error: Cannot write {file}: File too large.\n"
    assert file.read_bytes() == OLD
    assert list(file.parent.iterdir()) == [file]
