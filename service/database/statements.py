"""The hand-written statements of `sql/`: a statement has the name of its file."""

from typing import NamedTuple

from service import ROOT


class Statement(NamedTuple):
    """One prepared statement; the header of its file documents its purpose, parameters and result."""

    name: str
    text: str


def load(name: str) -> Statement:
    return Statement(name, (ROOT / "sql" / f"{name}.sql").read_text(encoding="utf-8"))


UPSERT_APPOINTMENT = load("upsert_appointment")
PUT_APPOINTMENTS = load("put_appointments")
LIST_APPOINTMENTS = load("list_appointments")
LIST_APPOINTMENTS_AS_OF = load("list_appointments_as_of")
LIST_VERSIONS = load("list_versions")
LIST_CHANGES = load("list_changes")
LIST_LAST_CHANGES = load("list_last_changes")
LIST_AVAILABILITY = load("list_availability")
LIST_CALENDAR = load("list_calendar")
SET_SESSION = load("set_session")
ACCEPTS_WRITES = load("accepts_writes")
LOCK_SCHEMA = load("lock_schema")
CITUS_VERSION = load("citus_version")
DISTRIBUTION = load("distribution")
DISTRIBUTED_GRANTS = load("distributed_grants")
GRANTS = load("grants")
APPLIED_MIGRATIONS = load("applied_migrations")
IS_DISTRIBUTED = load("is_distributed")
FLUSHED_POSITION = load("flushed_position")
REPLAY_POSITION = load("replay_position")
