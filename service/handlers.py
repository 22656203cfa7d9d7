"""The handlers that write, and those of probes and figures: each decodes, calls and answers."""

from http import HTTPStatus

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from service.access import access_of
from service.body import read_appointment, read_batch
from service.logs import note
from service.messages import Accepted, Appointment, BatchResults, ItemResult
from service.metrics import VERDICTS, exposition
from service.payload import decode_item
from service.problems import Conflict, ProblemError, as_problem_error
from service.query import read_query
from service.readiness import why_not_ready
from service.state import state_of
from service.verdict import Verdict

log = structlog.get_logger()

OK = Response(msgspec.json.encode(Accepted("ok")), media_type="application/json")
IGNORED_STALE = Response(msgspec.json.encode(Accepted("ignored-stale")), media_type="application/json")
ACCEPTED = {"ok": OK, "stale": IGNORED_STALE}


async def post_appointment(request: Request) -> Response:
    read_query(request, known={})
    state = state_of(request)
    appointment = await read_appointment(request, state["bodies"], state["settings"].body_bytes_max)
    note(organisation=appointment.org_id)
    verdict = await state["writer"].write(appointment)
    note(verdict=verdict.outcome)
    VERDICTS[verdict.outcome].inc()
    if verdict.outcome == "conflict":
        raise conflict(verdict.blocker)
    return ACCEPTED[verdict.outcome]


async def post_batch(request: Request) -> Response:
    read_query(request, known={})
    state = state_of(request)
    bodies = await read_batch(request, state["bodies"], state["settings"].batch_body_bytes_max)
    note(items=len(bodies))
    with state["writer"].room_for_items(len(bodies)):
        items = [decode_item(body, access_of(request)) for body in bodies]
        sound = [item for item in items if isinstance(item, Appointment)]
        outcomes = iter(await state["writer"].write_in_order(sound))
    results = [result(item if isinstance(item, ProblemError) else next(outcomes)) for item in items]
    return Response(msgspec.json.encode(BatchResults(results)), media_type="application/json")


def result(outcome: Verdict | BaseException) -> ItemResult:
    """Of an item of a batch. Whatever is no verdict leaves open what became of it, or refuses it."""
    if isinstance(outcome, Verdict):
        VERDICTS[outcome.outcome].inc()
        if outcome.outcome == "conflict":
            return ItemResult("conflict", conflict(outcome.blocker).problem)
        return ItemResult("ok" if outcome.outcome == "ok" else "ignored-stale")
    problem = as_problem_error(outcome).problem
    if problem.code == "INTERNAL":
        log.error("item of a batch failed", exc_info=outcome)
    invalid = problem.status < HTTPStatus.INTERNAL_SERVER_ERROR
    return ItemResult("invalid" if invalid else "unknown", problem)


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
    if reason := state["guard"].why_not_ready() or await why_not_ready(state["probe_database"], state["shutdown"]):
        raise ProblemError("NOT_READY", reason)
    return OK


async def metrics(request: Request) -> Response:
    access_of(request).check_all()
    return Response(exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
