"""Cursors, opaque to clients: those of pages name the place in a list where the previous page ended, those of changes a
change."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import NamedTuple, TypeVar

import msgspec

from service.contract.instants import parse_instant

CHANGE_NUMBER_MAX = 2**63 - 1  # the largest that PostgreSQL can give


class ChangeCursor(NamedTuple):
    """The number of a change, and the whole cursor, as migrations/0004.change-cursors.sql writes it: the rest tells the
    change from one with the same number in another history, such as a restored backup."""

    number: int
    text: str


BEGINNING = ChangeCursor(0, "0")  # before the first change


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


def number_of(text: str) -> int:
    """The number of the change that a cursor, or an entity tag, begins with; 0 if there is none."""
    digits = re.match("[0-9]{0,19}", text)
    return int(digits[0] or 0) if digits else 0


def parse_change_cursor(text: str) -> ChangeCursor:
    """Raises ValueError if malformed. A number alone, as in earlier releases, names no change; 0 is the beginning."""
    form = re.fullmatch("([0-9]{1,19})(-[0-9a-f]{24})?", text)
    if not form or int(form[1]) > CHANGE_NUMBER_MAX:
        raise ValueError("not a cursor of a change")
    return ChangeCursor(int(form[1]), text) if int(form[1]) else BEGINNING
