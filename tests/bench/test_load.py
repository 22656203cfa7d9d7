"""The load script at its smallest size, and the faults it detects."""

import signal
import subprocess
import sys

import pytest

from bench.load import Answer, faults
from service import ROOT
from tests.processes import ServiceProcess, clean_environment

FIRST = {"externalId": "a-1", "start": "2020-10-10T10:00:00.000Z", "end": "2020-10-10T10:30:00.000Z", "version": 1}
SECOND = {"externalId": "a-2", "start": "2020-10-10T10:15:00.000Z", "end": "2020-10-10T10:45:00.000Z", "version": 1}
OK_FIRST = Answer("first", 200, "ok", 1.0)
OK_SECOND = Answer("overlapping", 200, "ok", 1.0)


def load(url: str, requests: int = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bench/load.py", "--url", url, "--requests", str(requests), "--concurrency", "6"]
    return subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=120)


def test_load_script_finds_no_fault_in_the_service(service: ServiceProcess) -> None:
    done = load(service.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no overlaps, and the versions match the answers" in done.stdout
    assert "INVALID_METADATA" in done.stdout
    assert "p99" in done.stdout
    assert "60/60" in done.stderr


def test_load_script_accepts_a_single_request(service: ServiceProcess) -> None:
    assert load(service.url, requests=1).returncode == 0


def test_load_script_reports_that_no_service_is_running() -> None:
    done = load("http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no service at http://127.0.0.1:9")


def test_interrupted_load_ends_by_the_signal(service: ServiceProcess) -> None:
    command = [sys.executable, "bench/load.py", "--url", service.url, "--requests", "1000000"]
    with subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stderr.read(1)  # the progress bar
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (-signal.SIGINT, b"")
    assert b"Traceback" not in errors


def test_possible_answers_and_matching_rows_have_no_fault() -> None:
    assert faults([OK_FIRST, Answer("moved", 200, "ignored-stale", 1.0)], [FIRST]) == []


@pytest.mark.parametrize(
    ("answers", "rows", "fault"),
    [
        ([OK_FIRST, OK_SECOND], [FIRST, SECOND], "overlap"),
        ([OK_FIRST, OK_FIRST], [FIRST], "versions"),
        ([OK_FIRST], [], "versions"),
        ([], [FIRST], "versions"),
        ([Answer("bad metadata", 200, "ok", 1.0)], [], "impossible"),
        ([Answer("first", 503, "OVERLOADED", 1.0)], [], "impossible"),
    ],
)
def test_load_script_detects_a_fault(answers: list[Answer], rows: list[dict[str, object]], fault: str) -> None:
    assert fault in " ".join(faults(answers, rows))
