"""Problem documents (RFC 9457): the only shape of an error, and the only way to one.

ProblemError            what a client gets told
StartError              what the person at the terminal gets told (settings.py)
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.exceptions import HTTPException
from starlette.responses import Response

Code = Literal[
    "INVALID_HTTP",
    "INVALID_JSON",
    "INVALID_REQUEST",
    "INVALID_DATE_FORMAT",
    "INVALID_TIME_RANGE",
    "INVALID_METADATA",
    "UNAUTHENTICATED",
    "FORBIDDEN",
    "NOT_FOUND",
    "METHOD_NOT_ALLOWED",
    "TIME_RANGE_UNAVAILABLE",
    "REQUEST_TIMEOUT",
    "PAYLOAD_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
    "HEADERS_TOO_LARGE",
    "INTERNAL",
    "OVERLOADED",
    "DATABASE_UNAVAILABLE",
    "NOT_READY",
]


class Kind(NamedTuple):
    """What a code stands for."""

    status: int
    when: str

    @property
    def title(self) -> str:
        return TITLES[self.status]


KINDS: Mapping[Code, Kind] = {
    "INVALID_HTTP": Kind(400, "The bytes are no HTTP request; the connection is closed."),
    "INVALID_JSON": Kind(400, "The body is not JSON, or is empty."),
    "INVALID_REQUEST": Kind(400, "A field or parameter other than an instant is wrong; `errors` lists all."),
    "INVALID_DATE_FORMAT": Kind(400, "An instant is missing or unreadable; `errors` lists all."),
    "INVALID_TIME_RANGE": Kind(400, "`start` is not before `end`."),
    "INVALID_METADATA": Kind(400, "`createdAt` is after `updatedAt`."),
    "UNAUTHENTICATED": Kind(401, "There is no token, or not a sound one; only where authentication is switched on."),
    "FORBIDDEN": Kind(403, "The token does not allow it; only where authentication is switched on."),
    "NOT_FOUND": Kind(404, "There is no such route."),
    "METHOD_NOT_ALLOWED": Kind(405, "The route has other methods; `Allow` lists them."),
    "TIME_RANGE_UNAVAILABLE": Kind(409, "Another active appointment of the organisation is in the way."),
    "REQUEST_TIMEOUT": Kind(408, "The head or the body of the request came too slowly."),
    "PAYLOAD_TOO_LARGE": Kind(413, "The body is over the limit."),
    "UNSUPPORTED_MEDIA_TYPE": Kind(415, "The body is declared to be something else than JSON."),
    "HEADERS_TOO_LARGE": Kind(431, "The request line and the headers are over the limit."),
    "INTERNAL": Kind(500, "A defect of the service; the log has it under the request id."),
    "OVERLOADED": Kind(503, "There is more work than the service can take; try again."),
    "DATABASE_UNAVAILABLE": Kind(503, "The database does not answer; sending again is always safe."),
    "NOT_READY": Kind(503, "The service should get no requests now; `detail` says why."),
}
# RFC 9110's phrases; HTTPStatus has an older one before Python 3.13.
TITLES = {status.value: status.phrase for status in HTTPStatus} | {413: "Content Too Large"}
RETRY_AFTER_SECONDS = "1"


class FieldError(Struct, frozen=True):
    """One fault of a request; `field` is `""` for the body as a whole."""

    field: str
    detail: str


class Conflict(Struct, frozen=True, rename="camel"):
    """The appointment in the way; instants as in every answer."""

    external_id: str
    start: str
    end: str


class Problem(Struct, frozen=True, kw_only=True):
    """The body of every error."""

    type: str = "about:blank"
    title: str
    status: int
    code: Code
    detail: str
    errors: list[FieldError] | UnsetType = UNSET
    conflict: Conflict | UnsetType = UNSET


class ProblemError(Exception):
    """A request that ends in a problem document."""

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        errors: list[FieldError] | UnsetType = UNSET,
        conflict: Conflict | UnsetType = UNSET,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        status = KINDS[code].status
        self.headers = dict(headers or {})
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.headers["Retry-After"] = RETRY_AFTER_SECONDS
        self.problem = Problem(
            title=KINDS[code].title, status=status, code=code, detail=detail, errors=errors, conflict=conflict
        )


def problem_response(error: Exception) -> Response:
    """The one place where an error becomes an answer."""
    refusal = as_problem_error(error)
    return Response(
        msgspec.json.encode(refusal.problem),
        status_code=refusal.problem.status,
        headers=refusal.headers,
        media_type="application/problem+json",
    )


def as_problem_error(error: BaseException) -> ProblemError:
    """Starlette's own errors are a 404 and a 405; whatever else comes is a defect of ours."""
    if isinstance(error, ProblemError):
        return error
    status = error.status_code if isinstance(error, HTTPException) else None
    if status == HTTPStatus.NOT_FOUND:
        return ProblemError("NOT_FOUND", "There is no such route; /api/docs shows those there are.")
    if isinstance(error, HTTPException) and status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"This route answers {allowed}."
        return ProblemError("METHOD_NOT_ALLOWED", detail, headers=error.headers)
    return ProblemError("INTERNAL", "The service failed; its log has the cause under the request id.")
