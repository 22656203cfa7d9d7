"""An organisation's schedule as iCalendar (RFC 5545), which has no instants below a second."""

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from icalendar import Calendar, Event, Timezone, TimezoneStandard

from service.listing import Format, Rows

MEDIA_TYPE = "text/calendar; charset=utf-8"
PRODUCT = "-//appointments//appointments//EN"
# What a TEXT may not hold, and what some parsers take for the end of a line.
CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
SECOND = timedelta(seconds=1)
LAST_SECOND = datetime.max.replace(microsecond=0, tzinfo=UTC)


def calendar_format(organisation: str) -> Format:
    """The calendar around its events. A calendar must have a component, so that one without events has
    the time zone, which the instants of events do not need."""
    calendar = Calendar()
    calendar.add("prodid", PRODUCT)
    calendar.add("version", "2.0")
    calendar.add("name", plain(organisation))  # RFC 7986
    calendar.add("x-wr-calname", plain(organisation))  # for programs that do not know it
    standard = TimezoneStandard()
    standard.add("dtstart", datetime(1970, 1, 1))
    standard.add("tzoffsetfrom", timedelta())
    standard.add("tzoffsetto", timedelta())
    zone = Timezone()
    zone.add("tzid", "Etc/UTC")
    zone.add_component(standard)
    calendar.add_component(zone)
    opening, end, closing = calendar.to_ical().decode().rpartition("END:VCALENDAR")
    return Format("calendar", MEDIA_TYPE, opening, "", end + closing)


async def events(rows: Rows) -> list[str]:
    """In a thread, since writing a thousand takes a while."""
    return await asyncio.to_thread(lambda: [event(row) for row in rows if row["id"]])


def event(row: Mapping[int | str, Any]) -> str:
    """The whole seconds that hold the appointment: one, at least."""
    start = row["start"].replace(microsecond=0)
    whole_end = row["end"].replace(microsecond=0)
    end = whole_end if whole_end == row["end"] or whole_end == LAST_SECOND else whole_end + SECOND
    written = Event()
    written.add("uid", str(row["id"]))
    written.add("dtstamp", row["received_at"])
    written.add("last-modified", row["received_at"])
    written.add("created", row["payload_created_at"])
    written.add("dtstart", min(start, LAST_SECOND - SECOND))
    written.add("dtend", end)
    written.add("sequence", row["version"] - 1)
    written.add("status", "CANCELLED" if row["cancelled"] else "CONFIRMED")
    written.add("summary", plain(row["external_id"]))
    text: str = written.to_ical().decode()
    return text


def plain(text: str) -> str:
    return CONTROL.sub(" ", text)
