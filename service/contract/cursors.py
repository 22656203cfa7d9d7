"""Cursors of pages: opaque to clients, they name the place in a list where the previous page ended."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import TypeVar

import msgspec

from service.contract.instants import parse_instant


class ListPlace(msgspec.Struct, frozen=True, rename="camel"):
    """The members of a row that order a list of appointments."""

    start: str
    external_id: str


class VersionPlace(msgspec.Struct, frozen=True, rename="camel"):
    """The member of a row that orders the versions of an appointment."""

    received_at: str


Place = type[ListPlace] | type[VersionPlace]
Kind = TypeVar("Kind", ListPlace, VersionPlace)


def cursor_after(row: str, place: Place) -> str:
    """The cursor of the page after this row, a JSON object."""
    return encode(msgspec.json.decode(row, type=place))


def encode(place: msgspec.Struct) -> str:
    return urlsafe_b64encode(msgspec.json.encode(place)).rstrip(b"=").decode()


def parse_list_cursor(text: str) -> tuple[datetime, str]:
    """The start and external id of the row before the page. Raises ValueError if malformed."""
    place = decode(text, ListPlace)
    if "\0" in place.external_id:
        raise ValueError("not an external id")
    return parse_instant(place.start), place.external_id


def parse_version_cursor(text: str) -> datetime:
    """The `receivedAt` of the version before the page. Raises ValueError if malformed."""
    return parse_instant(decode(text, VersionPlace).received_at)


def decode(text: str, kind: type[Kind]) -> Kind:
    place = msgspec.json.decode(urlsafe_b64decode(text + "=="), type=kind)  # spare padding is ignored
    if encode(place) != text:
        raise ValueError("not in canonical form")
    return place
