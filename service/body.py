"""The bodies of POST, on their way in: their type, their size, and what all of them hold together."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from service.access import access_of
from service.endpoint import header
from service.messages import ITEMS_MAX, Appointment
from service.payload import decode_appointment, decode_array
from service.problems import ProblemError

MEDIA_TYPE = re.compile(r"application/(json|[a-z0-9!#$&^_.+-]+\+json)")


class Bodies:
    """The bodies that come in several pieces, together: many clients at once could send more than fits."""

    def __init__(self, bytes_max: int) -> None:
        self._room = bytes_max

    @contextmanager
    def room(self) -> Iterator[Callable[[int], None]]:
        """To be told of every piece. Raises ProblemError, a 503, if it is one too many."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > self._room:
                raise ProblemError("OVERLOADED", "The bodies under way are too large together; nothing was written.")
            self._room -= size
            taken += size

        try:
            yield take
        finally:
            self._room += taken


async def read_appointment(request: Request, bodies: Bodies, body_bytes_max: int) -> Appointment:
    """Raises ProblemError for a body that is too large, no JSON, no sound appointment, or not to be written
    by this bearer."""
    content_type = media_type(request)
    if not is_json(content_type):
        raise unsupported("application/json or application/*+json")
    return decode_appointment(await read_body(request, bodies, body_bytes_max), access_of(request))


async def read_batch(request: Request, bodies: Bodies, body_bytes_max: int) -> list[bytes]:
    """The items, undecoded. Raises ProblemError for what is no batch."""
    content_type = media_type(request)
    lines = content_type == "application/x-ndjson"
    if not (lines or is_json(content_type)):
        raise unsupported("application/json, application/*+json or application/x-ndjson")
    body = await read_body(request, bodies, body_bytes_max)
    items = [line for line in body.split(b"\n") if line.strip()] if lines else list(map(bytes, decode_array(body)))
    if len(items) > ITEMS_MAX:
        raise ProblemError("PAYLOAD_TOO_LARGE", f"Expected at most {ITEMS_MAX} items; these are {len(items)}.")
    return items


def media_type(request: Request) -> str | None:
    content_type = header(request.scope, b"content-type")
    return None if content_type is None else content_type.partition(";")[0].strip().lower()


def is_json(content_type: str | None) -> bool:
    return content_type is None or MEDIA_TYPE.fullmatch(content_type) is not None


def unsupported(expected: str) -> ProblemError:
    return ProblemError("UNSUPPORTED_MEDIA_TYPE", f"Expected a Content-Type of {expected}.")


async def read_body(request: Request, bodies: Bodies, bytes_max: int) -> bytes:
    """Refuses as soon as the size is known; the server discards the rest, so the client can read why."""
    if int(header(request.scope, b"content-length") or 0) > bytes_max:
        raise too_large(bytes_max)
    piece, more = await read_piece(request)
    if not more:
        if len(piece) > bytes_max:
            raise too_large(bytes_max)
        return piece
    pieces, size = [piece], len(piece)
    with bodies.room() as take:
        take(size)
        while more:
            piece, more = await read_piece(request)
            take(len(piece))
            pieces.append(piece)
            size += len(piece)
            if size > bytes_max:
                raise too_large(bytes_max)
    return b"".join(pieces)


async def read_piece(request: Request) -> tuple[bytes, bool]:
    """And whether there is more."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message["body"], message["more_body"]


def too_large(bytes_max: int) -> ProblemError:
    return ProblemError("PAYLOAD_TOO_LARGE", f"Expected a body of at most {bytes_max} bytes.")
