"""What clients send and get. These types are also the schemas of the OpenAPI document."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from service.instants import EXISTING, EXPECTED
from service.problems import Problem

CHARACTERS_MAX = 255
DEFAULT_ORGANISATION = "default"

ExternalId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=CHARACTERS_MAX,
        pattern=r"^[^\x00]*[^\x00\s][^\x00]*$",
        description="The upstream system's own id, kept to the letter: not blank, without U+0000.",
        examples=["a-17"],
    ),
]
Instant = Annotated[
    str, Meta(pattern=f"^{EXISTING}$", description=f"An instant: {EXPECTED}.", examples=["2020-10-10 20:20"])
]
OrganisationId = Annotated[
    Annotated[str, Meta(pattern=rf"^\s*([^\s\x00]([^\x00]{{0,{CHARACTERS_MAX - 2}}}[^\s\x00])?)?\s*$")] | None,
    Meta(
        description=f"The tenant: up to {CHARACTERS_MAX} characters once trimmed, without U+0000. "
        f"Missing, null, empty or blank means `{DEFAULT_ORGANISATION}`.",
        examples=["clinic-4"],
    ),
]

Cancelled = Annotated[
    bool | None,
    Meta(
        description="Whether it no longer takes place: then it occupies no time. Missing or null means false.",
        examples=[True],
    ),
]

ROWS_MAX = 1000  # of a page
ITEMS_MAX = 1000  # of a batch
WAIT_SECONDS_MAX = 30
CHANGE_MAX = 2**63 - 1  # the largest number that PostgreSQL can give a change
MINUTES_MAX = 10**10  # more than there are in the years 1 to 9999
Flag = Annotated[bool, Meta(examples=[True])]
Limit = Annotated[int, Meta(ge=1, le=ROWS_MAX, description="So many rows at most.")]
ListCursor = Annotated[str, Meta(description="From the `Link` of a page of a list.")]
VersionCursor = Annotated[str, Meta(description="From the `Link` of a page of versions.")]
ChangesCursor = Annotated[
    int, Meta(ge=0, le=CHANGE_MAX, description="From an answer with changes, or from `X-Changes-Cursor` of a list.")
]
WaitSeconds = Annotated[int, Meta(ge=0, le=WAIT_SECONDS_MAX, description="How long to wait for a change.")]
Minutes = Annotated[int, Meta(ge=0, le=MINUTES_MAX, description="Free intervals that are shorter are left out.")]


class AppointmentPayload(Struct, rename="camel", kw_only=True):
    """One appointment as an upstream system knows it; other members are ignored."""

    id: ExternalId
    start: Instant
    end: Instant
    created_at: Instant
    updated_at: Instant
    org_id: OrganisationId = None
    cancelled: Cancelled = None


class Appointment(Struct, frozen=True, kw_only=True):
    """A sound payload: its organisation trimmed, its instants in UTC and in order."""

    id: str
    start: datetime
    end: datetime
    created_at: datetime
    updated_at: datetime
    org_id: str
    cancelled: bool


class Accepted(Struct, frozen=True):
    """What became of a sound payload that no other appointment was in the way of."""

    status: Literal["ok", "ignored-stale"]


class ListedAppointment(Struct, frozen=True, rename="camel"):
    """One row of a list, as `sql/list_appointments.sql` writes it. Instants are UTC, with
    milliseconds, or microseconds where there are any."""

    id: str
    org_id: str
    external_id: str
    start: str
    end: str
    payload_created_at: str
    payload_updated_at: str
    version: int
    cancelled: bool | UnsetType = UNSET  # only where cancelled ones are asked for


class Version(Struct, frozen=True, rename="camel"):
    """One accepted change, as `version_json` of the schema writes it: the appointment as it was from
    `receivedAt` on, which increases over the versions of an appointment."""

    id: str
    org_id: str
    external_id: str
    start: str
    end: str
    payload_created_at: str
    payload_updated_at: str
    version: int
    cancelled: bool
    received_at: str


class Changes(Struct, frozen=True):
    """Accepted changes of an organisation in the order of their commits. `cursor` is the next `after`."""

    changes: list[Version]
    cursor: str


class ItemResult(Struct, frozen=True):
    """What became of an item of a batch. `problem` says why it was not written, or may not have been."""

    status: Literal["ok", "ignored-stale", "conflict", "invalid", "unknown"]
    problem: Problem | UnsetType = UNSET


class BatchResults(Struct, frozen=True):
    """In the order in which the items were sent."""

    results: list[ItemResult]


class Interval(Struct, frozen=True):
    """Half-open: its end does not belong to it."""

    start: str
    end: str


class Availability(Struct, frozen=True, rename={"from_": "from"}):
    """When an organisation is busy and when it is free within a window, in order; neighbours are joined."""

    from_: str
    to: str
    busy: list[Interval]
    free: list[Interval]
