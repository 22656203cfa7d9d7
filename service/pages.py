"""Pages of a list: where one ended, as a cursor that clients hand back unread, and the link to the next."""

from base64 import b64decode, urlsafe_b64encode
from datetime import datetime
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from msgspec import Struct

from service.instants import parse_instant


class ListPlace(Struct, frozen=True, rename="camel"):
    """The members of a row that order a list of appointments."""

    start: str
    external_id: str


class VersionPlace(Struct, frozen=True, rename="camel"):
    """The member of a row that orders the versions of an appointment."""

    received_at: str


Place = type[ListPlace] | type[VersionPlace]
Kind = TypeVar("Kind", ListPlace, VersionPlace)


def cursor(row: str, place: Place) -> str:
    """The row's place, as text that may stand in a URL. `row` is a JSON object."""
    return encode(msgspec.json.decode(row, type=place))


def encode(place: Struct) -> str:
    return urlsafe_b64encode(msgspec.json.encode(place)).rstrip(b"=").decode()


def parse_list_cursor(text: str) -> tuple[datetime, str]:
    """Raises ValueError for what is no cursor of a list."""
    place = decode(text, ListPlace)
    if "\0" in place.external_id:
        raise ValueError("not an external id")
    return parse_instant(place.start), place.external_id


def parse_version_cursor(text: str) -> datetime:
    """Raises ValueError for what is no cursor of versions."""
    return parse_instant(decode(text, VersionPlace).received_at)


def decode(text: str, kind: type[Kind]) -> Kind:
    octets = b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    place = msgspec.json.decode(octets, type=kind)
    if encode(place) != text:
        raise ValueError("not spelt as we spell it")
    return place


def next_link(path: str, query_string: bytes, cursor: str) -> str:
    """The value of `Link` (RFC 8288): the same request, from the cursor on."""
    kept = [(name, value) for name, value in parse_qsl(query_string.decode()) if name != "cursor"]
    return f'<{path}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'
