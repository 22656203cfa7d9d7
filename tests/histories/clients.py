"""Concurrent clients that record each call with its answer and times."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

import httpx

from service.contract.body import Appointment
from tests.histories.checker import Call, Reading, find_violation
from tests.model.model import Accepted
from tests.processes import wait_until

CLIENTS = 12
ORGANISATIONS = ("one", "two", "three")
NAMES = ("a", "b", "c", "d", "e", "f")
DAY = datetime(2020, 10, 10, tzinfo=UTC)
DELAY_MS_MAX = 40  # of an update on its way to the service
ANSWER_SECONDS_MAX = 20
PAUSE_SECONDS = 0.02  # after a call without an answer
URL = "/api/appointments"


class Refusal(NamedTuple):
    """A 503. The outcome of the request is unknown."""

    began: float
    seconds: float
    retry_after: str | None


class Record:
    """The calls of all clients. `unexpected` are answers other than 200, 409 and 503."""

    def __init__(self, organisations: Sequence[str]) -> None:
        self.calls: dict[str, list[Call]] = {organisation: [] for organisation in organisations}
        self.refusals: list[Refusal] = []
        self.unexpected: list[str] = []

    def count(self) -> int:
        return sum(map(len, self.calls.values()))

    def answered(self) -> list[Call]:
        return [call for calls in self.calls.values() for call in calls if call.answer is not None]

    def answered_calls_begun_after(self, moment: float) -> list[Call]:
        return [call for call in self.answered() if call.began > moment]

    def refusals_of_calls_begun_after(self, moment: float) -> list[Refusal]:
        return [refusal for refusal in self.refusals if refusal.began > moment]

    def first_verdict_after(self, moment: float, organisation: str | None = None) -> float | None:
        """When the first write that began after the moment got its verdict, in one organisation or in any."""
        ended = [
            call.ended
            for call in self.answered_calls_begun_after(moment)
            if isinstance(call.request, Appointment) and organisation in (None, call.request.org_id)
        ]
        return min(ended, default=None)

    def seconds_max(self) -> float:
        """Duration of the slowest answered call."""
        return max(call.ended - call.began for call in self.answered())

    def wait_for_calls(self, more: int) -> None:
        """Until this many more calls are recorded, with or without an answer."""
        count = self.count() + more
        wait_until(lambda: self.count() >= count)

    def wait_for_answers(self, more: int) -> None:
        """Until this many more calls are answered."""
        count = len(self.answered()) + more
        wait_until(lambda: len(self.answered()) >= count)

    def violations(self) -> list[Call]:
        """For each organisation whose calls are not linearizable, the calls at which the search got stuck."""
        return [call for calls in self.calls.values() for call in find_violation(calls)]

    def assert_linearizable(self) -> None:
        assert self.unexpected == []
        assert self.violations() == []


class Upstream:
    """Generates appointments as upstream systems send them: late, twice, out of order, and competing for few slots."""

    def __init__(self, random: Random, organisations: Sequence[str]) -> None:
        self._random, self._organisations = random, organisations
        self._sent: deque[Appointment] = deque(maxlen=30)
        self._count = 0

    def appointment(self) -> Appointment:
        random = self._random
        if self._sent and random.random() < 0.1:
            return random.choice(self._sent)
        self._count += 1
        start = DAY + timedelta(hours=random.randrange(12))
        appointment = Appointment(
            id=random.choice(NAMES),
            org_id=random.choice(self._organisations),
            start=start,
            end=start + timedelta(hours=random.randint(1, 2)),
            created_at=DAY,
            # Unique, apart from appointments that are sent twice.
            updated_at=DAY
            + timedelta(milliseconds=self._count - random.randrange(DELAY_MS_MAX) + DELAY_MS_MAX)
            + timedelta(microseconds=random.randrange(1000)),
            cancelled=random.random() < 0.12,
        )
        self._sent.append(appointment)
        return appointment


@contextmanager
def clients(
    urls: Sequence[str], seed: int = 0, organisations: Sequence[str] = ORGANISATIONS, count: int = CLIENTS
) -> Iterator[Record]:
    """Each client sends one request after another to one of the services, until the block ends."""
    record, stop = Record(organisations), threading.Event()
    upstream = Upstream(Random(seed), organisations)

    async def run_all() -> None:
        await asyncio.gather(
            *(
                client(urls[number % len(urls)], Random(seed * count + number), upstream, record, stop)
                for number in range(count)
            )
        )

    thread = threading.Thread(target=asyncio.run, args=(run_all(),))
    thread.start()
    try:
        yield record
    finally:
        stop.set()
        thread.join()


async def client(url: str, random: Random, upstream: Upstream, record: Record, stop: threading.Event) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS_MAX) as session:
        while not stop.is_set():
            if random.random() < 0.2:
                answered = await call(session, random.choice(list(record.calls)), "list", record)
            else:
                appointment = upstream.appointment()
                answered = await call(session, appointment.org_id, appointment, record)
            if not answered:
                await asyncio.sleep(PAUSE_SECONDS)


async def call(session: httpx.AsyncClient, organisation: str, request: Appointment | Reading, record: Record) -> bool:
    """Sends and records one request. Returns whether its outcome is known."""
    began = time.monotonic()
    try:
        if isinstance(request, Appointment):
            response = await session.post(URL, json=body(request))
        else:
            response = await session.get(URL, params={"org": organisation})
    except httpx.TransportError:
        record.calls[organisation].append(Call(request, None, began))
        return False
    ended = time.monotonic()
    if response.status_code == 503:
        record.refusals.append(Refusal(began, ended - began, response.headers.get("retry-after")))
        record.calls[organisation].append(Call(request, None, began))
        return False
    if response.status_code not in (200, 409):
        record.unexpected.append(f"{response.status_code} {response.text}")
        return False
    record.calls[organisation].append(Call(request, answer_of(response), began, ended))
    return True


def answer_of(response: httpx.Response) -> str | tuple[Accepted, ...]:
    answer = response.json()
    if isinstance(answer, list):
        return tuple(map(accepted, answer))
    return "conflict" if response.status_code == 409 else str(answer["status"])


def accepted(row: Mapping[str, Any]) -> Accepted:
    start, end, created_at, updated_at = (
        datetime.fromisoformat(row[name]) for name in ("start", "end", "payloadCreatedAt", "payloadUpdatedAt")
    )
    appointment = Appointment(
        id=row["externalId"],
        org_id=row["orgId"],
        start=start,
        end=end,
        created_at=created_at,
        updated_at=updated_at,
        cancelled=row.get("cancelled", False),
    )
    return Accepted(appointment, row["version"])


def body(appointment: Appointment) -> dict[str, Any]:
    instants = {"start": appointment.start, "end": appointment.end}
    instants |= {"createdAt": appointment.created_at, "updatedAt": appointment.updated_at}
    cancelled = {"cancelled": True} if appointment.cancelled else {}
    return {
        "id": appointment.id,
        "orgId": appointment.org_id,
        **{name: instant.isoformat() for name, instant in instants.items()},
        **cancelled,
    }


def record_final_state(record: Record, url: str) -> None:
    """Reads the list and all changes of each organisation, as its last two calls."""
    with httpx.Client(base_url=url, timeout=ANSWER_SECONDS_MAX) as session:
        for organisation, calls in record.calls.items():
            began = time.monotonic()
            listed = session.get(URL, params={"org": organisation})
            calls.append(Call("list", answer_of(listed), began, time.monotonic()))
            changes: list[Accepted] = []
            after = "0"
            while True:
                began = time.monotonic()
                page = session.get(URL + "/changes", params={"org": organisation, "after": after}).json()
                if not page["changes"]:
                    break
                changes += map(accepted, page["changes"])
                after = page["cursor"]
            calls.append(Call("changes", tuple(changes), began, time.monotonic()))
