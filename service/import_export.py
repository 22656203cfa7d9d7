"""The commands `import` and `export`: clients of a running service, over HTTP.

An import sends batches one after another. Sending again is safe, so batches without a known outcome are sent again,
and an interrupted import can be repeated.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
from msgspec import UNSET, Struct
from tqdm import tqdm

from service.contract.answers import BatchResults, ItemResult
from service.contract.body import AppointmentPayload
from service.contract.headers import LINES
from service.problems import Problem, StartError

LINES_MAX = 500  # of a batch
BYTES_MAX = 1_000_000
ATTEMPTS_MAX = 30
PAUSE_SECONDS = 1
TIMEOUT_SECONDS = 60
TRY_AGAIN = frozenset({502, 503, 504})


class ExportedRow(Struct, rename="camel"):
    """A line as `export` writes it, without the members that cannot be sent."""

    org_id: str
    external_id: str
    start: str
    end: str
    payload_created_at: str
    payload_updated_at: str
    cancelled: bool = False

    def payload(self) -> AppointmentPayload:
        return AppointmentPayload(
            id=self.external_id,
            start=self.start,
            end=self.end,
            created_at=self.payload_created_at,
            updated_at=self.payload_updated_at,
            org_id=self.org_id,
            cancelled=self.cancelled,
        )


class Line(NamedTuple):
    number: int
    text: bytes


def import_lines(file: str, url: str, token: str) -> int:
    """The exit status: 1 if a line was refused. Raises StartError if the service does not answer."""
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        source = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        size = None if file == "-" else Path(file).stat().st_size
        client = stack.enter_context(client_of(url, token))
        check_service(client)
        bar = stack.enter_context(tqdm(total=size, unit="B", unit_scale=True, desc="import"))
        for batch in batches(source):
            for line, result in zip(batch, send(client, batch), strict=True):
                counts[result.status] += 1
                if result.problem is not UNSET:
                    fields = "".join(f" {error.field}: {error.detail}" for error in result.problem.errors or ())
                    bar.write(
                        f"line {line.number}: {result.problem.code}: {result.problem.detail}{fields}", file=sys.stderr
                    )
            bar.update(sum(len(line.text) for line in batch))
    print(", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing to import", file=sys.stderr)
    return 1 if counts["conflict"] or counts["invalid"] else 0


def client_of(url: str, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS, headers=headers)


def check_service(client: httpx.Client) -> None:
    """Before the first batch, a service that does not answer is more likely a wrong URL than an outage."""
    try:
        client.get("/livez").raise_for_status()
    except httpx.HTTPError as error:
        raise StartError(f"No service answers at {client.base_url}: {error}") from error


def batches(source: Iterable[bytes]) -> Iterator[list[Line]]:
    """Non-blank lines, in batches that fit into one request."""
    batch: list[Line] = []
    size = 0
    for number, text in enumerate(source, start=1):
        if not text.strip():
            continue
        if batch and (len(batch) == LINES_MAX or size + len(text) > BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(Line(number, text))
        size += len(text)
    if batch:
        yield batch


def send(client: httpx.Client, batch: list[Line]) -> list[ItemResult]:
    """The result of each line, once all of them are known."""
    body = b"\n".join(as_payload(line.text) for line in batch)
    headers = {"Content-Type": LINES}
    reason = ""
    for _ in range(ATTEMPTS_MAX):
        try:
            response = client.post("/api/appointments/batch", content=body, headers=headers)
        except httpx.TransportError as error:
            reason = str(error)
        else:
            if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE and len(batch) == 1:
                return [ItemResult("invalid", problem_of(response))]
            if response.status_code not in TRY_AGAIN:
                results = read_results(response)
                if all(result.status != "unknown" for result in results):
                    return results
            reason = f"status {response.status_code}"
        time.sleep(PAUSE_SECONDS)
    raise StartError(
        f"No answer for line {batch[0].number} and those after it ({reason}). Run the import again: it is safe."
    )


def as_payload(text: bytes) -> bytes:
    try:
        return msgspec.json.encode(msgspec.json.decode(text, type=ExportedRow).payload())
    except (msgspec.DecodeError, RecursionError, ValueError):
        return text.strip()


def read_results(response: httpx.Response) -> list[ItemResult]:
    if response.status_code != httpx.codes.OK:
        raise StartError(f"The service refuses: {problem_of(response).detail}")
    return msgspec.json.decode(response.content, type=BatchResults).results


def problem_of(response: httpx.Response) -> Problem:
    """Raises StartError if the answer does not come from this service."""
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StartError(f"Status {response.status_code}, but no answer of this service; is the URL right?") from None


def export_lines(url: str, token: str, organisation: str, as_of: str, *, include_cancelled: bool) -> None:
    """Writes to standard output. Raises StartError if the list is refused, or cut before its end."""
    flag = "true" if include_cancelled else ""
    parameters = {"org": organisation, "asOf": as_of, "includeCancelled": flag}
    headers = {"Accept": LINES}
    try:
        with (
            client_of(url, token) as client,
            client.stream("GET", "/api/appointments", params=parameters, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                response.read()
                raise StartError(f"The service refuses: {problem_of(response).detail}")
            for chunk in response.iter_bytes():
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    except httpx.TransportError as error:
        raise StartError(f"The list is incomplete: {error}. Run the export again.") from error
