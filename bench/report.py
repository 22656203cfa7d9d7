"""The results of a run: JSON with all figures, a Markdown table, and charts."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import matplotlib as mpl
import psutil
from matplotlib import pyplot

from bench.measurements import Measurement
from bench.sizes import Size
from bench.targets import Round, Target
from service.database.embedded import BINARIES

mpl.use("svg")
mpl.rcParams |= {"svg.hashsalt": "bench", "axes.grid": True, "grid.alpha": 0.3, "figure.figsize": (7, 4)}
LABELS = {
    "service": "this service",
    "pgbench": "pgbench, same statement",
    "pool": "rival b: asyncpg pool, same statement",
    "orm": "rival c: FastAPI + SQLAlchemy",
}
PACKAGES = ("asyncpg", "starlette", "uvicorn", "uvloop", "httptools", "msgspec", "fastapi", "sqlalchemy")


class Results(NamedTuple):
    name: str
    size: Size
    tunings: Mapping[str, tuple[int, int]]
    rounds: Sequence[Round]
    memory_mb: Sequence[float]

    def median(self, measurement: Measurement, figure: str) -> float:
        return median(found[measurement][figure] for found in self.rounds)


def table(results: Results, wanted: Sequence[Target]) -> str:
    """A Markdown table: each target with its two medians and the median of the ratios."""
    lines = ["| | what | measured | against | ratio | target |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for target in wanted:
        unit = {"rate": "/s", "count": ""}.get(target.figure, " ms")
        best = max if target.at_least else min
        own = results.median(target.of, target.figure)
        other = best(results.median(against, target.figure) for against in target.against)
        ratio = target.ratio(results.rounds)
        sign, mark = "≥" if target.at_least else "≤", "" if target.reached(ratio) else " ✗"
        lines.append(
            f"| {target.name} | {target.work} | {digits(own)}{unit} | {digits(other)}{unit} | {ratio:.2f} "
            f"| {sign} {target.bound:g}{mark} |"
        )
    return "\n".join(lines) + "\n"


def digits(value: float) -> str:
    """Four significant digits, or all digits before the decimal point if there are more."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def write(directory: Path, results: Results, markdown: str) -> None:
    """Replaces the files once all of them are written, so that an interrupted run leaves the old results."""
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory) as folder:
        new = Path(folder)
        facts = environment()
        named = [{str(name): figures for name, figures in found.items()} for found in results.rounds]
        everything = facts | results._asdict() | {"size": results.size._asdict(), "rounds": named}
        (new / "results.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        about = ", ".join(f"{name} {value}" for name, value in facts.items())
        (new / "results.md").write_text(f"{markdown}\n{about}\n", encoding="utf-8")
        throughput_by_connections(results, new / "throughput.svg")
        latency_by_load(results, new / "latency.svg")
        throughput_by_table(results, new / "table-size.svg")
        for file in new.iterdir():
            file.replace(directory / file.name)


def environment() -> dict[str, str]:
    postgres = subprocess.run([BINARIES / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    facts = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cores": str(psutil.cpu_count()), "memory": memory}
    facts |= {"machine": platform.machine(), "Python": platform.python_version(), "PostgreSQL": postgres.split()[2]}
    return facts | {package: version(package) for package in PACKAGES}


def throughput_by_connections(results: Results, file: Path) -> None:
    figure, axes = pyplot.subplots()
    for name, label in LABELS.items():
        found = sorted(m for m in results.rounds[0] if m.contender == name and m.work == "new")
        rates = [results.median(measurement, "rate") for measurement in found]
        axes.plot([measurement.amount for measurement in found], rates, marker="o", label=label)
    axes.set(xscale="log", xlabel="connections", ylabel="new appointments per second", ylim=(0, None))
    axes.legend(loc="upper left")
    figure.savefig(file)


def latency_by_load(results: Results, file: Path) -> None:
    figure, axes = pyplot.subplots()
    for name in ("service", "pool"):
        found = sorted(m for m in results.rounds[0] if m.contender == name and m.work == "open")
        offered = [results.median(measurement, "offered") for measurement in found]
        for key, style in (("p99", "-"), ("p50", "--")):
            values = [results.median(measurement, key) for measurement in found]
            axes.plot(offered, values, style, marker="o", label=f"{LABELS[name]}, {key}")
    axes.set(yscale="log", xlabel="offered load, requests per second (open loop)", ylabel="latency in ms")
    axes.legend()
    figure.savefig(file)


def throughput_by_table(results: Results, file: Path) -> None:
    figure, axes = pyplot.subplots()
    tables = [Measurement(f"table {rows}", "new", 64) for rows in results.size.tables]
    axes.plot(results.size.tables, [results.median(each, "rate") for each in tables], marker="o")
    axes.set(xscale="log", xlabel="appointments in the table", ylabel="new appointments per second", ylim=(0, None))
    figure.savefig(file)
