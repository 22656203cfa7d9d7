"""Rival c: a common Python stack, FastAPI with SQLAlchemy's async ORM, on the same schema.

Settings: DATABASE_URL, POOL (connections). It handles only the requests of the benchmark.
"""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, HTTPException
from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from sqlalchemy import DateTime, ForeignKey, func, select
from sqlalchemy.dialects.postgresql import TSTZRANGE, Range
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.database.buckets import bucket_of

Instant = Annotated[datetime, AfterValidator(lambda instant: instant.replace(tzinfo=instant.tzinfo or UTC))]


class Payload(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)

    id: str
    start: Instant
    end: Instant
    created_at: Instant
    updated_at: Instant
    org_id: str = "default"


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True), Range[datetime]: TSTZRANGE}  # noqa: RUF012


class State:
    """The columns that an appointment and its versions share."""

    bucket: Mapped[int]
    org_id: Mapped[str]
    external_id: Mapped[str]
    during: Mapped[Range[datetime]]
    payload_created_at: Mapped[datetime]
    payload_updated_at: Mapped[datetime]
    version: Mapped[int]
    received_at: Mapped[datetime]
    cancelled: Mapped[bool] = mapped_column(default=False)


class Appointment(State, Base):
    __tablename__ = "appointments"

    id: Mapped[UUID] = mapped_column(primary_key=True)


class AppointmentVersion(State, Base):
    __tablename__ = "appointment_versions"

    sequence_number: Mapped[int] = mapped_column(primary_key=True)
    appointment_id: Mapped[UUID] = mapped_column(ForeignKey("appointments.id"))


url = urlsplit(os.environ["DATABASE_URL"])._replace(scheme="postgresql+asyncpg").geturl()
engine = create_async_engine(url, pool_size=int(os.environ["POOL"]), max_overflow=0)
sessions = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as opened:
        yield opened


@app.post("/api/appointments")
async def post_appointment(payload: Payload, database: Annotated[AsyncSession, Depends(session)]) -> dict[str, str]:
    try:
        async with database.begin():
            return {"status": await upsert(database, payload)}
    except IntegrityError as error:
        raise HTTPException(409) from error


async def upsert(database: AsyncSession, payload: Payload) -> str:
    bucket = bucket_of(payload.org_id)
    organisation = (Appointment.bucket == bucket, Appointment.org_id == payload.org_id)
    own = (*organisation, Appointment.external_id == payload.id)
    held = await database.scalar(select(Appointment).where(*own).with_for_update())
    if held and held.payload_updated_at >= payload.updated_at:
        return "ignored-stale"
    during = Range(payload.start, payload.end)
    blocker = select(Appointment.id).where(
        *organisation,
        Appointment.external_id != payload.id,
        func.lower(Appointment.during) < payload.end,  # appointments_start_idx supports this, but not &&
        func.upper(Appointment.during) > payload.start,
        ~Appointment.cancelled,
    )
    if await database.scalar(blocker.limit(1)):
        raise HTTPException(409)
    if held is None:
        held = Appointment(id=uuid4(), bucket=bucket, org_id=payload.org_id, external_id=payload.id, version=0)
        database.add(held)
    held.during = during
    held.payload_created_at = payload.created_at
    held.payload_updated_at = payload.updated_at
    held.received_at = datetime.now(UTC)
    held.version += 1
    await database.flush()
    database.add(
        AppointmentVersion(
            appointment_id=held.id,
            bucket=held.bucket,
            org_id=held.org_id,
            external_id=held.external_id,
            during=during,
            payload_created_at=held.payload_created_at,
            payload_updated_at=held.payload_updated_at,
            received_at=held.received_at,
            version=held.version,
        )
    )
    return "ok"
