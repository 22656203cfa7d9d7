"""Probes and metrics for operators."""

from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from service.access.grants import Grant
from service.access.tokens import Tokens
from service.contract.answers import Accepted
from service.database import schema
from service.metrics import exposition
from service.problems import ProblemError

OK = Response(msgspec.json.encode(Accepted("ok")), media_type="application/json")


async def livez(_: Request, __: Grant) -> Response:
    return OK


async def readyz(request: Request, _: Grant) -> Response:
    if reason := await why_not_ready(request.scope["state"]):
        raise ProblemError("NOT_READY", reason)
    return OK


async def metrics(_: Request, grant: Grant) -> Response:
    grant.check_all()
    return Response(exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def why_not_ready(state: dict[str, Any]) -> str | None:
    """The reason as a sentence, or None."""
    tokens: Tokens | None = state["tokens"]
    if tokens and (reason := tokens.why_not_ready()):
        return reason
    if state["shutdown"].begun:
        return "The service is shutting down."
    try:
        pending = await schema.pending(state["probe_database"])
    except ProblemError as error:
        return error.problem.detail
    return f"The schema lacks {', '.join(pending)}; run the migrations." if pending else None
