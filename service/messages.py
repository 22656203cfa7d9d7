"""What clients send and get. These types are also the schemas of the OpenAPI document."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from service.instants import EXPECTED, SPELLING

CHARACTERS_MAX = 255
DEFAULT_ORGANISATION = "default"

ExternalId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=CHARACTERS_MAX,
        pattern=r"^[^\0]*[^\0\s][^\0]*$",
        description="The upstream system's own id, kept to the letter: not blank, without U+0000.",
        examples=["a-17"],
    ),
]
Instant = Annotated[
    str, Meta(pattern=f"^{SPELLING.pattern}$", description=f"An instant: {EXPECTED}.", examples=["2020-10-10 20:20"])
]
OrganisationId = Annotated[
    str | None,
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
