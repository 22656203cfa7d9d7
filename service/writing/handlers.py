"""The handlers that write: each asks the grant, calls and answers."""

import msgspec
import structlog
from msgspec import UNSET
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from service.access.grants import Grant
from service.contract.answers import Accepted, BatchResults, ItemResult
from service.contract.body import Appointment, decode_appointment
from service.logs import note
from service.metrics import VERDICTS
from service.problems import Conflict, ProblemError, as_problem_error
from service.writing.batch import Verdict
from service.writing.writer import Writer

log = structlog.get_logger()

OK = Response(msgspec.json.encode(Accepted("ok")), media_type="application/json")
IGNORED_STALE = Response(msgspec.json.encode(Accepted("ignored-stale")), media_type="application/json")


async def post_appointment(request: Request, grant: Grant, decoded: Appointment) -> Response:
    appointment = granted(decoded, grant)
    note(organisation=appointment.org_id)
    writer: Writer = request.scope["state"]["writer"]
    verdict = await writer.write(appointment)
    note(verdict=verdict.outcome)
    VERDICTS[verdict.outcome].inc()
    if verdict.outcome == "conflict":
        raise conflict(verdict.blocker)
    return OK if verdict.outcome == "ok" else IGNORED_STALE


async def post_batch(request: Request, grant: Grant, bodies: list[bytes]) -> Response:
    note(items=len(bodies))
    writer: Writer = request.scope["state"]["writer"]
    with writer.room_for_items(len(bodies)):
        items = [decode_item(body, grant) for body in bodies]
        bodies.clear()  # up to 4 MiB that would be kept as long as the database takes
        valid = [item for item in items if isinstance(item, Appointment)]
        outcomes = iter(await writer.write_in_order(valid))
    results = [item if isinstance(item, ItemResult) else result(next(outcomes)) for item in items]
    return Response(msgspec.json.encode(BatchResults(results)), media_type="application/json")


def granted(appointment: Appointment, grant: Grant) -> Appointment:
    """The appointment with its organisation. Raises ProblemError if the grant does not include it."""
    organisation = grant.organisation(appointment.org_id)
    return appointment if organisation == appointment.org_id else replace(appointment, org_id=organisation)


def decode_item(body: bytes, grant: Grant) -> Appointment | ItemResult:
    try:
        return granted(decode_appointment(body), grant)
    except ProblemError as error:
        return ItemResult("invalid", error.problem)  # the error would keep the body, in the frames of its traceback


def result(outcome: Verdict | BaseException) -> ItemResult:
    """Without a verdict, the outcome is unknown."""
    if isinstance(outcome, Verdict):
        VERDICTS[outcome.outcome].inc()
        if outcome.outcome == "conflict":
            return ItemResult("conflict", conflict(outcome.blocker).problem)
        return ItemResult("ok" if outcome.outcome == "ok" else "ignored-stale")
    problem = as_problem_error(outcome).problem
    if problem.code == "INTERNAL":
        log.error("item of a batch failed", exc_info=outcome)
    return ItemResult("unknown", problem)


def conflict(blocker: Conflict | None) -> ProblemError:
    other = f'appointment "{blocker.external_id}"' if blocker else "another appointment"
    detail = f"The time range overlaps {other} of this organisation."
    return ProblemError("TIME_RANGE_UNAVAILABLE", detail, conflict=blocker or UNSET)
