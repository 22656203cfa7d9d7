"""The benchmarks at their smallest size, and the ratios of the result table."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import report
from bench.measurements import Measurement
from bench.open_loop import appointments
from bench.sizes import SIZES
from bench.targets import Round, Target, measurements, targets
from service import ROOT
from service.contract.body import decode_appointment
from tests.processes import clean_environment

OWN, OTHER, THIRD = (Measurement(name, "new", 64) for name in ("service", "pgbench", "pool"))
NAMES = {
    "W1",
    "W2",
    "W3",
    "W4",
    "W5",
    "W6",
    "W7",
    "W8",
    "W9",
    "R1",
    "R2",
    "H1",
    "H2",
    "H3",
    "H4",
    "O1",
    "O2",
    "S2",
    "P1",
}


def rounds(*pairs: tuple[float, float]) -> list[Round]:
    return [{OWN: {"rate": own}, OTHER: {"rate": other}, THIRD: {"rate": 1}} for own, other in pairs]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_run_measures_every_target_and_writes_its_results(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--size", "tiny", "--results", str(tmp_path / "results")]
    # The services log every statement, which must not get into the table.
    environment = clean_environment(STATEMENT_SLOW_MS="0")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert '"event":"slow statement"' in done.stderr
    assert set(re.findall(r"^\| ([A-Z]\d) \|", done.stdout, re.MULTILINE)) == NAMES
    written = {path.name: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert set(written) == {"results.json", "results.md", "throughput.svg", "latency.svg", "table-size.svg"}
    assert done.stdout.strip() in written["results.md"]
    results = json.loads(written["results.json"])
    assert all(figures.get("rate", 1) > 0 for found in results["rounds"] for figures in found.values())
    for name, text in written.items():
        assert name.endswith(".svg") == text.lstrip().startswith("<?xml")


def test_missing_wrk_is_an_error_that_says_how_to_install_it(tmp_path: Path) -> None:
    environment = clean_environment() | {"PATH": str(tmp_path)}
    command = [sys.executable, "-m", "bench"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: wrk is missing; install it: apt-get install wrk")


def test_ratio_is_the_median_over_rounds_against_the_best_alternative() -> None:
    found = rounds((300, 100), (100, 100), (150, 100))
    target = Target("W", "", "rate", OWN, [THIRD, OTHER], 1.5)
    assert target.ratio(found) == 1.5
    assert target.reached(1.5)
    assert not target.reached(1.49)
    upper_bound = target._replace(at_least=False)
    assert upper_bound.ratio(found) == 150
    assert upper_bound.reached(1.5)
    assert not upper_bound.reached(1.51)


def test_interrupted_report_leaves_the_old_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "throughput_by_connections", interrupt)
    (tmp_path / "results.json").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        report.write(tmp_path, report.Results("tiny", SIZES["tiny"], {}, [], []), "a table")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("results.json", "old")]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_measurements_of_a_target_are_exactly_those_it_compares(size: object) -> None:
    assert isinstance(size, type(SIZES["tiny"]))
    everything = targets(size)
    assert {target.name for target in everything} == NAMES
    for target in everything:
        assert set(measurements(size, [target], everything=False)) == {target.of, *target.against}
        assert {target.of, *target.against} <= set(measurements(size, everything, everything=True))


def test_open_loop_sends_valid_appointments_that_do_not_overlap() -> None:
    stream = appointments(3)
    sent = [decode_appointment(next(stream).partition(b"\r\n\r\n")[2]) for _ in range(3000)]
    starts = {(appointment.org_id, appointment.start) for appointment in sent}
    assert len(starts) == len({appointment.id for appointment in sent}) == 3000
    assert {(appointment.end - appointment.start).days for appointment in sent} == {1}
