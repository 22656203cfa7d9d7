"""Sends four kinds of request at random to a running service, then checks the resulting appointments.

    make load N=100 CONCURRENCY=10

The kinds are an appointment, one that overlaps it, one whose createdAt is after its updatedAt, and a later
update that moves the first. All go to one new organisation. The exit status is 1 if an answer is not among
the correct ones for its kind, or if the appointments do not match the answers.
"""

import argparse
import asyncio
import random
import signal
import sys
import time
from collections import Counter
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
from tqdm import tqdm

PAYLOADS = {
    "first": {"id": "a-1", "start": "2020-10-10 10:00", "end": "2020-10-10 10:30", "updatedAt": "2020-09-01"},
    "overlapping": {"id": "a-2", "start": "2020-10-10 10:15", "end": "2020-10-10 10:45", "updatedAt": "2020-09-01"},
    "bad metadata": {"id": "a-3", "start": "2020-10-11", "end": "2020-10-12", "updatedAt": "2020-08-01"},
    "moved": {"id": "a-1", "start": "2020-10-10 12:00", "end": "2020-10-10 12:30", "updatedAt": "2020-09-02"},
}
CREATED_AT = "2020-08-15"
POSSIBLE = {
    "first": {"ok", "ignored-stale", "TIME_RANGE_UNAVAILABLE"},
    "overlapping": {"ok", "ignored-stale", "TIME_RANGE_UNAVAILABLE"},
    "bad metadata": {"INVALID_METADATA"},
    "moved": {"ok", "ignored-stale"},
}


class Answer(NamedTuple):
    kind: str
    status: int
    verdict: str  # the `status` of an accepted body, or the `code` of a problem
    ms: float


async def run(url: str, organisation: str, requests: int, concurrency: int) -> list[Answer]:
    kinds = iter(random.choices(list(PAYLOADS), k=requests))
    answers: list[Answer] = []
    with tqdm(total=requests, unit="requests", file=sys.stderr) as bar:

        async def work() -> None:
            # One client per task: 64 concurrent requests through a single httpx pool are 4 times slower.
            async with connect(url) as client:
                for kind in kinds:
                    answers.append(await send(client, organisation, kind))
                    bar.update()

        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(work())
    return answers


def connect(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, verify=False)


async def send(client: httpx.AsyncClient, organisation: str, kind: str) -> Answer:
    body = PAYLOADS[kind] | {"createdAt": CREATED_AT, "orgId": organisation}
    started = time.perf_counter()
    response = await client.post("/api/appointments", json=body)
    ms = (time.perf_counter() - started) * 1e3
    answer = response.json()
    return Answer(kind, response.status_code, answer.get("code") or answer["status"], ms)


def report(answers: list[Answer], seconds: float) -> None:
    print(f"\n{'status':>6}  {'verdict':<24} {'request':<14} {'count':>7}")
    for (status, verdict, kind), count in sorted(Counter((a.status, a.verdict, a.kind) for a in answers).items()):
        print(f"{status:>6}  {verdict:<24} {kind:<14} {count:>7}")
    ordered = sorted(answer.ms for answer in answers)
    figures = "   ".join(f"p{n} {ordered[ceil(len(ordered) * n / 100) - 1]:.1f}" for n in (50, 90, 99))
    print(f"\nlatency in ms: {figures}   max {ordered[-1]:.1f}")
    print(f"{len(answers) / seconds:.0f} requests per second\n")


def faults(answers: list[Answer], rows: list[dict[str, Any]]) -> list[str]:
    """The faults of the answers, and of the organisation's list as read afterwards."""
    found = [f"{answer} is impossible" for answer in answers if answer.verdict not in POSSIBLE[answer.kind]]
    for before, after in pairwise(rows):
        if before["end"] > after["start"]:
            found.append(f"{before['externalId']} and {after['externalId']} overlap")
    accepted = Counter(PAYLOADS[answer.kind]["id"] for answer in answers if answer.verdict == "ok")
    versions = {row["externalId"]: row["version"] for row in rows}
    if versions != accepted:
        found.append(f"versions are {versions}, but accepted writes are {dict(accepted)}")
    return found


async def main(url: str, requests: int, concurrency: int) -> int:
    organisation = f"load-{uuid4().hex[:12]}"
    async with connect(url) as client:
        try:
            await client.get("/livez")
        except httpx.ConnectError:
            print(f"error: no service at {url}; start one with make serve", file=sys.stderr)
            return 1
        started = time.perf_counter()
        answers = await run(url, organisation, requests, concurrency)
        report(answers, time.perf_counter() - started)
        response = await client.get("/api/appointments", params={"org": organisation})
        found = faults(answers, response.json())
    for fault in found:
        print(f"FAULT: {fault}")
    if not found:
        print(f"{organisation}: no overlaps, and the versions match the answers")
    return 1 if found else 0


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sends random requests to a running service and checks the result.")
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--requests", type=positive, default=100)
    parser.add_argument("--concurrency", type=positive, default=10)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it like SIGTERM, without a traceback
    sys.exit(asyncio.run(main(options.url, options.requests, options.concurrency)))
