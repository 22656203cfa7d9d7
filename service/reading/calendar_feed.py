"""An organisation's schedule as iCalendar (RFC 5545). `sql/list_calendar.sql` writes the events."""

import re
from datetime import datetime, timedelta

from icalendar import Calendar, Timezone, TimezoneStandard
from icalendar.prop import vInline

from service.reading.formats import Format

PRODUCT = "-//appointments//appointments//EN"
REFRESH_MINUTES = 15  # how often programs should ask for the calendar
CACHE_SECONDS_MAX = 60
# Characters that a TEXT may not contain, and those that some parsers take for the end of a line.
CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
# Of a TEXT (section 3.3.11). The library escapes no property that it does not know, and its vText turns `\N` into a
# line break.
ESCAPES = str.maketrans({"\\": r"\\", ";": r"\;", ",": r"\,", "\n": r"\n"})


def calendar_format(organisation: str) -> Format:
    """A calendar with an event for each row."""
    opening, end, closing = calendar(organisation).to_ical().decode().rpartition("END:VCALENDAR")
    headers = {"Cache-Control": f"private, max-age={CACHE_SECONDS_MAX}"}
    return Format("calendar", "text/calendar; charset=utf-8", opening, "", end + closing, headers)


def calendar(organisation: str) -> Calendar:
    """A calendar without events. It must have a component, hence the time zone, which the events do not need."""
    name = vInline(CONTROL.sub(" ", organisation).translate(ESCAPES))
    empty = Calendar()
    empty.add("prodid", PRODUCT)
    empty.add("version", "2.0")
    # Two properties of RFC 7986, each followed by its name for programs that do not know that RFC.
    empty.add("name", name)
    empty.add("x-wr-calname", name)
    empty.add("refresh-interval", timedelta(minutes=REFRESH_MINUTES), parameters={"VALUE": "DURATION"})
    empty.add("x-published-ttl", f"PT{REFRESH_MINUTES}M")
    standard = TimezoneStandard()
    standard.add("dtstart", datetime(1970, 1, 1))
    standard.add("tzoffsetfrom", timedelta())
    standard.add("tzoffsetto", timedelta())
    zone = Timezone()
    zone.add("tzid", "Etc/UTC")
    zone.add_component(standard)
    empty.add_component(zone)
    return empty
