"""The hand-written statements of `sql/`: a file's name is the statement's name."""

from typing import NamedTuple

from service import ROOT


class Statement(NamedTuple):
    """One prepared statement; its file's header says what it decides, takes and returns."""

    name: str
    text: str


def load(name: str) -> Statement:
    return Statement(name, (ROOT / "sql" / f"{name}.sql").read_text(encoding="utf-8"))


UPSERT_APPOINTMENT = load("upsert_appointment")
LIST_APPOINTMENTS = load("list_appointments")
LOCK_SCHEMA = load("lock_schema")
APPLIED_MIGRATIONS = load("applied_migrations")
