"""Instants in requests. In answers PostgreSQL spells them (`instant_text` in migrations/0001.appointments.sql)."""

import re
from datetime import UTC, datetime, timedelta

EXPECTED = (
    "YYYY-MM-DD, then optionally T or one space and HH:MM, HH:MM:SS or HH:MM:SS.fraction, "
    "then optionally Z or ±HH:MM; without an offset it is UTC; years 0001 to 9999"
)
SPELLING = (  # also the pattern of the OpenAPI document, hence only syntax that RE2 and ECMA-262 share
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[ T]((?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]+)?)?))?"
    r"(?:Z|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))?"
)
INSTANT = re.compile(SPELLING)
DAY_BEFORE_YEAR_1 = "0000-12-31"


def parse_instant(text: str) -> datetime:
    """An aware datetime in UTC; digits past the microsecond are cut off. Raises ValueError for text that does not match
    SPELLING, a day that does not exist, or an instant outside the years 0001 to 9999 after conversion to UTC."""
    match = INSTANT.fullmatch(text)
    if match is None:
        raise ValueError("not the spelling of an instant")
    day, time, sign, hours, minutes = match.groups()
    if sign is None and day != DAY_BEFORE_YEAR_1:
        return datetime.fromisoformat(f"{day}T{time or '00:00'}+00:00")
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    shift = offset if sign == "-" else -offset
    if day == DAY_BEFORE_YEAR_1:  # datetime has no year 0, but a negative offset can lead out of it
        day, shift = "0001-01-01", shift - timedelta(days=1)
    local = datetime.fromisoformat(f"{day}T{time or '00:00'}")
    try:
        return (local + shift).replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("outside the years 0001 to 9999") from None
