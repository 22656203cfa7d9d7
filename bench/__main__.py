"""The benchmarks: `make bench`, `make bench QUICK=1`, `make bench ONLY="W1 W7"`.

Starts its own PostgreSQL and every server that is compared, repeats all measurements in several rounds, checks
every answer and the rows written, and writes the results to bench/results/.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from bench import report, wrk
from bench.measurements import Measurement, measure, soak
from bench.sizes import SIZES
from bench.stage import Stage
from bench.targets import Round, measurements, targets

RESULTS = Path(__file__).with_name("results")


def main() -> int:
    arguments = parser().parse_args()
    if reason := wrk.missing():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    size = SIZES[arguments.size]
    wanted = [target for target in targets(size) if not arguments.only or target.name in arguments.only]
    todo = measurements(size, wanted, everything=not arguments.only)
    base = Measurement("service", "new", 64)
    rounds: list[Round] = []
    with Stage(size) as stage, tqdm(total=len(todo) * size.rounds, unit="measurements", file=sys.stderr) as bar:
        base_rate = measure(stage, base, 0)["rate"]
        for _ in range(size.rounds):
            rounds.append({})
            for measurement in todo:
                bar.set_description(str(measurement))
                rounds[-1][measurement] = measure(stage, measurement, base_rate)
                bar.update()
        soaked = size.soak_seconds and not arguments.only
        memory = soak(stage.contender("service"), size.soak_seconds) if soaked else []
        results = report.Results(arguments.size, size, stage.tunings, rounds, memory)
    table = report.table(results, wanted)
    print(table)
    if not arguments.only:
        report.write(arguments.results, results, table)
        print(f"results written to {arguments.results}", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0] if __doc__ else None)
    top.add_argument("--size", choices=SIZES, default="full")
    top.add_argument("--only", nargs="*", default=[], help="measure only these targets, such as W1; writes no files")
    top.add_argument("--results", type=Path, default=RESULTS, help="output folder")
    return top


if __name__ == "__main__":
    sys.exit(main())
