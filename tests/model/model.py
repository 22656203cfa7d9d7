"""The model: the rules of the service in plain Python, and the accepted changes of each organisation in a dict."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from service.contract.body import Appointment


class Accepted(NamedTuple):
    """An accepted change: a version row without the ids and `receivedAt`, which the service assigns."""

    appointment: Appointment
    version: int


Row = tuple[str, datetime, datetime, int]


class Model:
    """Stores the accepted changes of each organisation, in order. Everything else is derived from them."""

    def __init__(self) -> None:
        self.changes: dict[str, list[Accepted]] = {}

    def put(self, new: Appointment) -> str:
        changes = self.changes.setdefault(new.org_id, [])
        held = state(changes)
        verdict = decide(held, new)
        if verdict == "ok":
            changes.append(accepted(held, new))
        return verdict

    def listed(self, organisation: str, recorded: int | None = None, **filters: Any) -> list[Row]:
        """The list after the first `recorded` changes, or after all of them if None."""
        held = state(self.changes.get(organisation, [])[:recorded]).values()
        rows = [
            (a.id, a.start, a.end, version)
            for a, version in held
            if (filters.get("include_cancelled") or not a.cancelled) and selected(a, **filters)
        ]
        return sorted(rows, key=lambda row: (row[1], row[0]))


def state(changes: Iterable[Accepted]) -> dict[str, Accepted]:
    return {change.appointment.id: change for change in changes}


def decide(held: Mapping[str, Accepted], new: Appointment) -> str:
    known = held.get(new.id)
    if known and new.updated_at <= known.appointment.updated_at:
        return "ignored-stale"
    others = [each.appointment for name, each in held.items() if name != new.id]
    if not new.cancelled and any(overlap(new, other) for other in others if not other.cancelled):
        return "conflict"
    return "ok"


def accepted(held: Mapping[str, Accepted], new: Appointment) -> Accepted:
    known = held.get(new.id)
    return Accepted(new, known.version + 1 if known else 1)


def overlap(one: Appointment, other: Appointment) -> bool:
    return one.start < other.end and other.start < one.end


def selected(a: Appointment, at: Any = None, start: Any = None, end: Any = None, name: Any = None, **_: Any) -> bool:
    return (
        (at is None or a.start <= at < a.end)
        and (start is None or a.end > start)
        and (end is None or a.start < end)
        and (name is None or a.id == name)
    )
