"""The shapes of successful answers; errors are in service/problems.py."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from service.problems import Problem


class Accepted(Struct, frozen=True):
    """The outcome of a valid payload that overlaps no other appointment."""

    status: Literal["ok", "ignored-stale"]


class ListedAppointment(Struct, frozen=True, rename="camel"):
    """One row of a list, as `sql/list_appointments.sql` writes it. Instants are UTC, with milliseconds, or with
    microseconds where there are any."""

    id: str
    org_id: str
    external_id: str
    start: str
    end: str
    payload_created_at: str
    payload_updated_at: str
    version: int
    cancelled: bool | UnsetType = UNSET  # only with `includeCancelled`


class Version(ListedAppointment, frozen=True, rename="camel"):
    """One accepted change, as the schema's `version_json` writes it: the appointment as it was from `receivedAt` on.
    `receivedAt` increases over the versions of an appointment."""

    cancelled: bool
    received_at: str


class Changes(Struct, frozen=True):
    """Accepted changes of an organisation in commit order. `cursor` is the next `after`."""

    changes: list[Version]
    cursor: str


class ItemResult(Struct, frozen=True):
    """The outcome of one item of a batch. `problem` says why it was not, or may not have been, written."""

    status: Literal["ok", "ignored-stale", "conflict", "invalid", "unknown"]
    problem: Problem | UnsetType = UNSET


class BatchResults(Struct, frozen=True):
    """In the order in which the items were sent."""

    results: list[ItemResult]


class Interval(Struct, frozen=True):
    """Half-open: `start` belongs to it, `end` does not."""

    start: str
    end: str


class Availability(Struct, frozen=True, rename={"from_": "from"}):
    """Busy and free time of an organisation within a window, in order; adjacent intervals are joined."""

    from_: str
    to: str
    busy: list[Interval]
    free: list[Interval]
