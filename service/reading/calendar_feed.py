"""An organisation's schedule as iCalendar (RFC 5545), which has no fractions of a second."""

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from icalendar import Calendar, Event, Timezone, TimezoneStandard

from service.reading.formats import Format, Rows

PRODUCT = "-//appointments//appointments//EN"
# Characters that a TEXT may not contain, and those that some parsers take for the end of a line.
CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
SECOND = timedelta(seconds=1)
LAST_SECOND = datetime.max.replace(microsecond=0, tzinfo=UTC)


class CalendarFeed(Format):
    """A calendar with an event for each row."""

    def __init__(self, organisation: str) -> None:
        opening, end, closing = calendar(organisation).to_ical().decode().rpartition("END:VCALENDAR")
        super().__init__("calendar", "text/calendar; charset=utf-8", opening, "", end + closing)

    async def texts(self, rows: Rows) -> list[str]:
        """In a thread, since a thousand events take a while."""
        return await asyncio.to_thread(lambda: [event(row) for row in rows if row["id"]])


def calendar(organisation: str) -> Calendar:
    """A calendar without events. It must have a component, hence the time zone, which the events do not need."""
    empty = Calendar()
    empty.add("prodid", PRODUCT)
    empty.add("version", "2.0")
    empty.add("name", plain(organisation))  # RFC 7986
    empty.add("x-wr-calname", plain(organisation))  # for programs that do not know `name`
    standard = TimezoneStandard()
    standard.add("dtstart", datetime(1970, 1, 1))
    standard.add("tzoffsetfrom", timedelta())
    standard.add("tzoffsetto", timedelta())
    zone = Timezone()
    zone.add("tzid", "Etc/UTC")
    zone.add_component(standard)
    empty.add_component(zone)
    return empty


def event(row: Mapping[int | str, Any]) -> str:
    """Spans the whole seconds that contain the appointment, at least one."""
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
    return str(written.to_ical().decode())


def plain(text: str) -> str:
    return CONTROL.sub(" ", text)
