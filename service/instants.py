"""Instants: the one reader of their spelling. Answers get theirs from PostgreSQL (`instant_text`)."""

import re
from datetime import UTC, datetime, timedelta

EXPECTED = (
    "YYYY-MM-DD, then optionally T or one space and HH:MM, HH:MM:SS or HH:MM:SS.fraction, "
    "then optionally Z or ±HH:MM; without an offset it is UTC; years 0001 to 9999"
)
SPELLING = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[ T]((?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]+)?)?))?"
    r"(?:Z|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))?"
)
# The same for the schema, but of days that exist, in years whose instants do with any offset.
EXISTING = (
    r"(?!0000|0001-01-01|9999-12-31)"
    r"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
    r"([ T]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?)?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?"
)
DAY_BEFORE_YEAR_1 = "0000-12-31"


def parse_instant(text: str) -> datetime:
    """An aware datetime in UTC; digits past the microsecond are cut off.

    Raises ValueError for a spelling that is not EXPECTED, a day that does not exist, or an instant
    outside the years 0001 to 9999 once it is converted to UTC.
    """
    match = SPELLING.fullmatch(text)
    if match is None:
        raise ValueError("not the spelling of an instant")
    day, time, sign, hours, minutes = match.groups()
    if sign is None and day != DAY_BEFORE_YEAR_1:
        return datetime.fromisoformat(f"{day}T{time or '00:00'}+00:00")
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    shift = offset if sign == "-" else -offset
    if day == DAY_BEFORE_YEAR_1:  # datetime has no year 0, yet a negative offset leads out of it
        day, shift = "0001-01-01", shift - timedelta(days=1)
    local = datetime.fromisoformat(f"{day}T{time or '00:00'}")
    try:
        return (local + shift).replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("outside the years 0001 to 9999") from None
