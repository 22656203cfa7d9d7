"""The commands `import` and `export`: clients of a running service, over HTTP.

An import sends batches one after another. Sending again is safe, so batches without a known outcome are sent again,
and an interrupted import can be repeated.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path

import httpx
import msgspec
from tqdm import tqdm

from service.contract.answers import BatchResults, ItemResult
from service.contract.body import BYTE_ORDER_MARK, WHITE_SPACE, AppointmentPayload, is_wide
from service.contract.headers import LINES
from service.http_client import client_options
from service.output import output_to
from service.problems import Problem, StartError
from service.settings import masked_url

Line = tuple[int, bytes]  # its number and text
PATH = "/api/appointments"
LINES_MAX = 500  # of a batch
BYTES_MAX = 1_000_000
ATTEMPTS_MAX = 30
PAUSE_SECONDS = 1
TIMEOUT_SECONDS = 60
TRY_AGAIN = frozenset({502, 503, 504})
COMPRESSED = (b"\x1f\x8b", b"PK\3\4", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh")  # gzip, zip, zstd, xz, bzip2

# Member names of an export, by the field of the payload.
EXPORTED = {"id": "externalId", "created_at": "payloadCreatedAt", "updated_at": "payloadUpdatedAt", "org_id": "orgId"}


class ExportedRow(msgspec.Struct, rename=EXPORTED):
    """A line as `export` writes it, without the members that cannot be sent."""

    id: str
    start: str
    end: str
    created_at: str
    updated_at: str
    org_id: str
    cancelled: bool = False


def import_lines(file: str, url: str, token: str) -> int:
    """The exit status: 1 if a line was refused. Raises StartError if the service does not answer."""
    counts: Counter[str] = Counter()
    with os.fdopen(0, "rb") if file == "-" else Path(file).open("rb") as source, client_of(url, token) as client:
        check_service(client)
        check_form(source)
        size = None if file == "-" else Path(file).stat().st_size
        with tqdm(total=size, unit="B", unit_scale=True, desc="import", disable=None) as bar:
            for batch in batches(source):
                for (number, _), result in zip(batch, send(client, batch), strict=True):
                    counts[result.status] += 1
                    if problem := result.problem:
                        bar.write(f"line {number}: {problem.code}: {explained(problem)}", file=sys.stderr)
                bar.update(sum(len(text) for _, text in batch))
    print(", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing to import", file=sys.stderr)
    return 1 if counts["conflict"] or counts["invalid"] else 0


def client_of(url: str, token: str) -> httpx.Client:
    if not token.isprintable():  # httpx would quote it in its error
        raise StartError("Setting AUTH_TOKEN is wrong: expected one line.")
    headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}
    return httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS, headers=headers, **client_options(url))


def check_service(client: httpx.Client) -> None:
    """Before the first batch, a service that does not answer is more likely a wrong URL than an outage."""
    url = masked_url(str(client.base_url))
    try:
        status = client.get("/livez").status_code
    except httpx.HTTPError as error:
        raise StartError(f"No service answers at {url}: {error}") from error
    if status != httpx.codes.OK:
        raise StartError(f"No service answers at {url}: status {status}")


def check_form(source: BufferedReader) -> None:
    """Skips a byte order mark. Raises StartError for a file that is obviously not NDJSON."""
    head = source.peek()
    if head.startswith(BYTE_ORDER_MARK):
        head = head[len(source.read(len(BYTE_ORDER_MARK))) :]
    if head.startswith(COMPRESSED):
        raise StartError("The file is compressed; decompress it first, for example by `gunzip`.")
    if is_wide(head):
        raise StartError("The file looks like UTF-16 or UTF-32; expected UTF-8.")
    if head.lstrip(WHITE_SPACE).startswith(b"["):
        raise StartError("The file is a JSON array; expected one appointment a line, as written by: jq -c '.[]' FILE")


def batches(source: Iterable[bytes]) -> Iterator[list[Line]]:
    """Non-blank lines, in batches that fit into one request."""
    batch: list[Line] = []
    size = 0
    for number, text in enumerate(source, start=1):
        if not text.strip(WHITE_SPACE):
            continue
        if batch and (len(batch) == LINES_MAX or size + len(text) > BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append((number, text))
        size += len(text)
    if batch:
        yield batch


def send(client: httpx.Client, batch: list[Line]) -> list[ItemResult]:
    """The result of each line, once all of them are known."""
    body = b"\n".join(as_payload(text) for _, text in batch)
    for _ in range(ATTEMPTS_MAX):
        try:
            response = client.post(f"{PATH}/batch", content=body, headers={"Content-Type": LINES})
        except httpx.TransportError as error:
            reason = str(error)
        else:
            if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE and len(batch) == 1:
                return [ItemResult("invalid", problem_of(response))]
            if response.status_code not in TRY_AGAIN:
                check_accepted(response)
                results = msgspec.json.decode(response.content, type=BatchResults).results
                if all(result.status != "unknown" for result in results):
                    return results
            reason = f"status {response.status_code}"
        time.sleep(PAUSE_SECONDS)
    lines = f"line {batch[0][0]} and those after it"
    raise StartError(f"No answer for {lines} ({reason}). Run the import again: it is safe.")


def as_payload(text: bytes) -> bytes:
    try:
        row = msgspec.json.decode(text, type=ExportedRow)
        return msgspec.json.encode(AppointmentPayload(**msgspec.structs.asdict(row)))
    except (msgspec.DecodeError, RecursionError, ValueError):
        return text.strip(WHITE_SPACE)


def check_accepted(response: httpx.Response) -> None:
    if response.status_code != httpx.codes.OK:
        raise StartError(f"The service refused the request: {explained(problem_of(response))}")


def explained(problem: Problem) -> str:
    return problem.detail + "".join(f" {error.field}: {error.detail}" for error in problem.errors or ())


def problem_of(response: httpx.Response) -> Problem:
    """Raises StartError if the answer does not come from this service."""
    try:
        return msgspec.json.decode(response.read(), type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StartError(f"Status {response.status_code}, not an answer of this service; is the URL right?") from None


def export_lines(url: str, token: str, query: Mapping[str, str | None], file: str) -> None:
    """Writes the list to the file. Raises StartError if it is refused, cut before its end, or cannot be written."""
    headers = {"Accept": LINES, "Cache-Control": "no-cache"}  # with all that has just been imported
    try:
        with (
            output_to(file) as output,
            client_of(url, token) as client,
            client.stream("GET", PATH, params=query, headers=headers) as response,
        ):
            check_accepted(response)
            check_list(response)
            for chunk in response.iter_bytes():
                output.write(chunk)
    except httpx.RequestError as error:
        raise StartError(f"The list is incomplete: {error}. Run the export again.") from error


def check_list(response: httpx.Response) -> None:
    """Raises StartError for an answer of another server, and for one whose end could not be told from a lost line."""
    if response.headers.get("Content-Type", "").partition(";")[0] != LINES:
        raise StartError(f"{response.url} is not this service: the answer is not {LINES}.")
    if not response.headers.keys() & {"content-length", "transfer-encoding"}:
        raise StartError(f"{response.url} does not mark the end of the list; ask the service without that proxy.")
