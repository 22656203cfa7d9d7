"""Closed-loop load: wrk with the requests of wrk.lua."""

import json
import os
import shutil
import subprocess
from itertools import count
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).with_name("wrk.lua")
RUNS = count()
POST_TARGET = "/api/appointments"
BATCH_ITEMS = 500


class Load(NamedTuple):
    """wrk's figures. `refused` counts answers with a status above 399, `lost` requests without an answer."""

    answers: int
    refused: int
    lost: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


def missing() -> str | None:
    """A message with the way to install wrk, or None if it is installed."""
    return None if shutil.which("wrk") else "wrk is missing; install it: apt-get install wrk, or brew install wrk"


def load(
    url: str, work: str, seconds: float, connections: int, *, organisations: int = 1000, target: str = POST_TARGET
) -> Load:
    """Runs one kind of work of wrk.lua."""
    environment = {"WORK": work, "ORGANISATIONS": str(organisations), "RUN": str(next(RUNS)), "TARGET": target}
    environment |= {"ITEMS": str(BATCH_ITEMS)}
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", "--timeout=60s", f"--script={SCRIPT}"]
    command = ["wrk", *options, url]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout.splitlines()[-1]))
