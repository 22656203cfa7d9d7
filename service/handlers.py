"""The handlers: each decodes, calls and answers."""

from typing import TypedDict

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from service.body import read_appointment
from service.database import Database
from service.logs import note
from service.messages import DEFAULT_ORGANISATION, Accepted, Instant, OrganisationId
from service.metrics import VERDICTS, exposition
from service.problems import Conflict, ProblemError
from service.query import read_query
from service.readiness import Shutdown, why_not_ready
from service.settings import Settings
from service.statements import LIST_APPOINTMENTS
from service.writer import Writer

OK = Response(msgspec.json.encode(Accepted("ok")), media_type="application/json")
IGNORED_STALE = Response(msgspec.json.encode(Accepted("ignored-stale")), media_type="application/json")
ACCEPTED = {"ok": OK, "stale": IGNORED_STALE}
LIST_PARAMETERS = {"org": OrganisationId, "at": Instant}


class State(TypedDict):
    """What the application holds for its handlers."""

    settings: Settings
    database: Database
    probe_database: Database
    writer: Writer
    shutdown: Shutdown


def state_of(request: Request) -> State:
    """`request.state` would wrap it anew for each request, which costs as much as decoding a body."""
    state: State = request.scope["state"]
    return state


async def post_appointment(request: Request) -> Response:
    read_query(request, known={})
    state = state_of(request)
    appointment = await read_appointment(request, state["settings"].body_bytes_max)
    note(organisation=appointment.org_id)
    verdict = await state["writer"].write(appointment)
    note(verdict=verdict.outcome)
    VERDICTS[verdict.outcome].inc()
    if verdict.outcome == "conflict":
        raise conflict(verdict.blocker)
    return ACCEPTED[verdict.outcome]


async def list_appointments(request: Request) -> Response:
    query = read_query(request, LIST_PARAMETERS)
    organisation = query["org"] or DEFAULT_ORGANISATION
    note(organisation=organisation)
    [row] = await state_of(request)["database"].fetch(LIST_APPOINTMENTS, organisation, query["at"])
    return Response(row["appointments"], media_type="application/json")


def conflict(blocker: Conflict | None) -> ProblemError:
    if blocker is None:
        detail = "The time range overlaps another appointment of this organisation."
        return ProblemError("TIME_RANGE_UNAVAILABLE", detail)
    return ProblemError(
        "TIME_RANGE_UNAVAILABLE",
        f'The time range overlaps appointment "{blocker.external_id}" of this organisation.',
        conflict=blocker,
    )


async def livez(_: Request) -> Response:
    return OK


async def readyz(request: Request) -> Response:
    state = state_of(request)
    if reason := await why_not_ready(state["probe_database"], state["shutdown"]):
        raise ProblemError("NOT_READY", reason)
    return OK


async def metrics(_: Request) -> Response:
    return Response(exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
