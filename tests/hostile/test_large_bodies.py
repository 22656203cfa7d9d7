"""The largest bodies: the time and the memory that the service spends on them, whatever they contain."""

import asyncio
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import thread_time
from typing import Any

import pytest
from starlette.types import Message

from service.contract.body import APPOINTMENT, Appointment
from service.contract.items import BATCH, ITEMS_MAX
from service.problems import ProblemError
from service.web.cors import Cors
from service.web.endpoint import BodyRoom, Endpoint
from service.web.request_context import RequestContext
from service.writing.batch import STALE, Verdict
from service.writing.handlers import post_appointment, post_batch

SIZE = BATCH.bytes_max
TIMES = b'"start": "2020-10-10", "end": "2020-10-11", "createdAt": "2020-09-02", "updatedAt": "2020-09-02"'
SOUND = b'{"id": "a", ' + TIMES + b', "x": '

OUTCOMES_OF_BODIES = [
    ("ones", b"[" + b"1," * (SIZE // 2 - 1) + b"1]", 413),
    ("objects", b"[" + b"{}," * (SIZE // 3 - 1) + b"1]", 413),
    ("words", b"[tru" + b",1" * (SIZE // 2 - 3) + b"]", 413),
    ("commas", b"[" + b"," * (SIZE - 2) + b"]", 400),
    ("openings", b"[" * SIZE, 400),
    ("nested openings", b"[[" + b"[]," * (SIZE // 3 - 3) + b"1],tru]", 400),
    ("quotes", b'[["' + b'"' * (SIZE - 3), 400),
    ("strings", b"[[" + b'"",' * (SIZE // 3 - 3) + b"1],tru]", 400),
    ("an open string", b'["' + b"x" * (SIZE - 2), 400),
    ("an open string of backslashes", b'["' + b"\\" * (SIZE - 2), 400),
    ("spaces", b"[tru" + b" " * (SIZE - 4), 400),
    ("nested ones", b"[[" + b"1," * (SIZE // 2 - 4) + b"1],tru]", None),
    ("a long string", b'["' + b"x" * (SIZE - 8) + b'",tru]', None),
    ("a long string of escapes", b'["' + b"\\n" * (SIZE // 2 - 4) + b'",tru]', None),
]
OUTCOMES_OF_LINES = [
    ("line ends", b"\n" * SIZE, None),
    ("blank lines", b" \r\n" * (SIZE // 3), None),
    ("lines of one", b"1\n" * (SIZE // 2), 413),
]
CASES = [(BATCH.decode_json, *case) for case in OUTCOMES_OF_BODIES] + [
    (BATCH.decode_lines, *case) for case in OUTCOMES_OF_LINES
]


def decode(decoder: Callable[[bytes], Any], body: bytes) -> int | None:
    """The status of the refusal."""
    try:
        decoder(body)
    except ProblemError as error:
        return error.problem.status
    return None


@pytest.mark.parametrize(("decoder", "name", "body", "status"), CASES, ids=[case[1] for case in CASES])
def test_a_batch_of_any_content_is_split_in_little_time(
    decoder: Callable[[bytes], Any], name: str, body: bytes, status: int | None
) -> None:
    """Some 40 ms at most; the limit leaves room for slow computers, not for work that grows with the square."""
    started = thread_time()
    assert decode(decoder, body) == status, name
    assert thread_time() - started < 0.5


@pytest.mark.parametrize(("decoder", "name", "body", "status"), CASES, ids=[case[1] for case in CASES])
def test_a_batch_of_any_content_is_split_in_little_memory(
    decoder: Callable[[bytes], Any], name: str, body: bytes, status: int | None
) -> None:
    """The items, and a copy of the body without escapes; nothing for each character or each excess item."""
    with traced() as bytes_traced:
        decode(decoder, body)
        assert bytes_traced()[1] < (2.5 if status is None else 1.1) * SIZE, name


@pytest.mark.parametrize(
    "member",
    [b"1," * 500_000, b"{}," * 300_000, b'"a",' * 200_000, b"1" * 1_000_000, b'"' + b"\\u00e9" * 170_000 + b'",'],
    ids=["ones", "objects", "strings", "digits", "escapes"],
)
@pytest.mark.parametrize("name", [b'"x"', b'"id"', b'"start"'])
def test_an_appointment_with_a_large_member_is_decoded_in_little_time(name: bytes, member: bytes) -> None:
    body = SOUND + b"1, " + name + b": [" + member + b"1]}"
    assert len(body) < APPOINTMENT.bytes_max
    started = thread_time()
    assert decode(APPOINTMENT.decode_json, body) == (None if name == b'"x"' else 400)
    assert thread_time() - started < 0.5


@contextmanager
def traced() -> Iterator[Callable[[], tuple[int, int]]]:
    """What was allocated since, and is still: now, and at its peak."""
    tracemalloc.start()
    try:
        yield tracemalloc.get_traced_memory
    finally:
        tracemalloc.stop()


class MeasuringWriter:
    """Notes how much memory is in use once a request waits for its verdicts."""

    bytes_in_use = 0

    def room_for_items(self, _: int) -> nullcontext[None]:
        return nullcontext()

    async def write(self, _: Appointment) -> Verdict:
        await asyncio.sleep(0)
        self.bytes_in_use = tracemalloc.get_traced_memory()[0]
        return STALE

    async def write_in_order(self, appointments: list[Appointment]) -> list[Verdict]:
        return [await self.write(each) for each in appointments]


ITEM = SOUND + b'"' + b"x" * (SIZE // ITEMS_MAX - len(SOUND) - 5) + b'"}'
BAD_ITEM = ITEM.replace(b"2020-10-11", b"2020-02-30")
NO_JSON = ITEM.replace(b'"2020-10-10"', b"tru")


@pytest.mark.parametrize(
    ("endpoint", "media_type", "body"),
    [
        (Endpoint(post=(post_appointment, APPOINTMENT)), b"application/json", SOUND + b'"' + b"x" * 1_000_000 + b'"}'),
        (
            Endpoint(post=(post_batch, BATCH)),
            b"application/json",
            b"[" + b",".join([ITEM, BAD_ITEM, NO_JSON] * 333) + b"]",
        ),
        (Endpoint(post=(post_batch, BATCH)), b"application/x-ndjson", b"\n".join([ITEM, BAD_ITEM, NO_JSON] * 333)),
    ],
    ids=["appointment", "array", "lines"],
)
def test_a_request_that_waits_for_the_database_does_not_keep_its_body(
    endpoint: Endpoint, media_type: bytes, body: bytes
) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body[:1] + body[1:], "more_body": False}  # a copy

    async def send(message: Message) -> None:
        sent.append(message)

    writer = MeasuringWriter()
    state = {"cors": Cors(()), "tokens": None, "writer": writer, "body_room": BodyRoom(0)}
    headers = [(b"content-type", media_type)]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers, "state": state}
    service = RequestContext(endpoint, {"/": endpoint})
    with traced() as bytes_traced:
        asyncio.run(service(scope, receive, send))
        assert bytes_traced()[1] > len(body)
    assert 0 < writer.bytes_in_use < len(body) / 3
    assert sent[0]["status"] == 200
