"""Reading: lists of appointments, versions and changes, free time and calendars.

    handlers ─ conditional, lists ─ formats ─ source ─ database/pool ─ sql/list_*.sql

`source` chooses between the primary and the standbys.
`conditional` answers a client whose copy is still valid with a 304. `lists` fetches a list as a whole, by pages or as
a stream; `formats` turns its rows into a body. `change_poller` serves long polls; `calendar_feed` is a format, too.
"""
