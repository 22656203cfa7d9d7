"""Many clients at once, who write down every call, its answer and its times."""

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
from tests.histories.checker import Call, Reading, unexplained
from tests.model.model import Accepted

CLIENTS = 12
ORGANISATIONS = ("one", "two", "three")
NAMES = ("a", "b", "c", "d", "e", "f")
DAY = datetime(2020, 10, 10, tzinfo=UTC)
LATE_MS_MAX = 40
ANSWER_SECONDS_MAX = 20
PAUSE_SECONDS = 0.02  # of a client that got no answer
URL = "/api/appointments"


class Refusal(NamedTuple):
    """An answer that leaves open what became of the request."""

    at: float
    seconds: float
    status: int
    retry_after: str | None


class Record:
    """What the clients have seen; `surprises` are answers that no sound request should get."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {organisation: [] for organisation in ORGANISATIONS}
        self.refusals: list[Refusal] = []
        self.surprises: list[str] = []

    def count(self) -> int:
        return sum(map(len, self.calls.values()))

    def answered_after(self, moment: float) -> float | None:
        """When the first write that began after the moment got its verdict."""
        ended = [
            call.ended
            for calls in self.calls.values()
            for call in calls
            if call.answer is not None and call.began > moment and isinstance(call.request, Appointment)
        ]
        return min(ended, default=None)

    def unexplained(self) -> list[Call]:
        """Of each organisation, where no order explains what its clients have seen."""
        return [call for calls in self.calls.values() for call in unexplained(calls)]

    def check(self) -> None:
        assert self.surprises == []
        assert self.unexplained() == []


class Upstream:
    """Sends what upstream systems send: late, twice, out of order, and for few places."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._sent: deque[Appointment] = deque(maxlen=30)
        self._count = 0

    def appointment(self) -> Appointment:
        random = self._random
        if self._sent and random.random() < 0.1:
            return random.choice(self._sent)
        self._count += 1
        start = DAY + timedelta(hours=random.randrange(12))
        made = Appointment(
            id=random.choice(NAMES),
            org_id=random.choice(ORGANISATIONS),
            start=start,
            end=start + timedelta(hours=random.randint(1, 2)),
            created_at=DAY,
            # No two are equal but those that are sent twice.
            updated_at=DAY
            + timedelta(milliseconds=self._count - random.randrange(LATE_MS_MAX) + LATE_MS_MAX)
            + timedelta(microseconds=random.randrange(1000)),
            cancelled=random.random() < 0.12,
        )
        self._sent.append(made)
        return made


@contextmanager
def clients(urls: Sequence[str], seed: int = 0) -> Iterator[Record]:
    """Sends requests to these services, one after another from each client, until the block ends."""
    record, ended = Record(), threading.Event()
    upstream = Upstream(Random(seed))

    async def all_of_them() -> None:
        await asyncio.gather(
            *(
                client(urls[number % len(urls)], Random(seed * CLIENTS + number), upstream, record, ended)
                for number in range(CLIENTS)
            )
        )

    thread = threading.Thread(target=asyncio.run, args=(all_of_them(),))
    thread.start()
    try:
        yield record
    finally:
        ended.set()
        thread.join()


async def client(url: str, random: Random, upstream: Upstream, record: Record, ended: threading.Event) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS_MAX) as session:
        while not ended.is_set():
            if random.random() < 0.2:
                answered = await call(session, random.choice(ORGANISATIONS), "list", record)
            else:
                appointment = upstream.appointment()
                answered = await call(session, appointment.org_id, appointment, record)
            if not answered:
                await asyncio.sleep(PAUSE_SECONDS)


async def call(session: httpx.AsyncClient, organisation: str, request: Appointment | Reading, record: Record) -> bool:
    """Whether there was an answer."""
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
        record.refusals.append(Refusal(ended, ended - began, 503, response.headers.get("retry-after")))
        record.calls[organisation].append(Call(request, None, began))
        return False
    if response.status_code not in (200, 409):
        record.surprises.append(f"{response.status_code} {response.text}")
        return False
    record.calls[organisation].append(Call(request, answer_of(response), began, ended))
    return True


def answer_of(response: httpx.Response) -> str | tuple[Accepted, ...]:
    found = response.json()
    if isinstance(found, list):
        return tuple(map(accepted, found))
    return "conflict" if response.status_code == 409 else str(found["status"])


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
    more = {"cancelled": True} if appointment.cancelled else {}
    return {
        "id": appointment.id,
        "orgId": appointment.org_id,
        **{name: instant.isoformat() for name, instant in instants.items()},
        **more,
    }


def read_at_the_end(record: Record, url: str) -> None:
    """Adds to each organisation's calls what it is in the end: its list, and all of its changes."""
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
