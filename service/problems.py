"""Every error of the service, and problem documents (RFC 9457), the only shape of an error in an answer.

Exception
├── ProblemError              a request ends in a problem document
└── StartError                a command cannot start or go on; one line for the terminal
    └── DatabaseInUseError    another process runs the embedded database
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType
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
    "CURSOR_GONE",
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
    """The status of a code, and when it is used."""

    status: int
    when: str


KINDS: Mapping[Code, Kind] = {
    "INVALID_HTTP": Kind(400, "The bytes are not an HTTP request; the connection is closed."),
    "INVALID_JSON": Kind(400, "The body is not JSON, or is empty."),
    "INVALID_REQUEST": Kind(400, "A field or parameter other than an instant is wrong; `errors` lists every fault."),
    "INVALID_DATE_FORMAT": Kind(400, "An instant is missing or unreadable; `errors` lists every fault."),
    "INVALID_TIME_RANGE": Kind(400, "`start` is not before `end`, or `from` not before `to`."),
    "INVALID_METADATA": Kind(400, "`createdAt` is after `updatedAt`."),
    "UNAUTHENTICATED": Kind(401, "The token is missing or not valid; only where authentication is switched on."),
    "FORBIDDEN": Kind(403, "The token does not allow it; only where authentication is switched on."),
    "NOT_FOUND": Kind(404, "There is no such route."),
    "METHOD_NOT_ALLOWED": Kind(405, "The route does not support this method; `Allow` lists those it supports."),
    "TIME_RANGE_UNAVAILABLE": Kind(409, "The time range overlaps another active appointment of the organisation."),
    "CURSOR_GONE": Kind(410, "The change that the cursor names is not in this history, for instance after a restore."),
    "REQUEST_TIMEOUT": Kind(408, "The headers or the body of the request arrived too slowly."),
    "PAYLOAD_TOO_LARGE": Kind(413, "The body exceeds the size limit."),
    "UNSUPPORTED_MEDIA_TYPE": Kind(415, "The declared media type of the body is not JSON."),
    "HEADERS_TOO_LARGE": Kind(431, "The request line and headers exceed the size limit."),
    "INTERNAL": Kind(500, "A defect of the service; the log has the cause under the request id."),
    "OVERLOADED": Kind(503, "The service has more work than it can take; try again later."),
    "DATABASE_UNAVAILABLE": Kind(503, "The database does not answer; sending the request again is always safe."),
    "NOT_READY": Kind(503, "The service should not receive requests now; `detail` says why."),
}
# RFC 9110's phrases; before Python 3.13 HTTPStatus has an older one for 413.
TITLES = {status.value: status.phrase for status in HTTPStatus} | {413: "Content Too Large"}
TOO_MANY_WRITES = "Too many writes are waiting; nothing was written."


class FieldError(Struct, frozen=True):
    """One fault of a request; `field` is `""` for the body as a whole."""

    field: str
    detail: str


class Conflict(Struct, frozen=True, rename="camel"):
    """The appointment that a request conflicts with; instants are spelt as in every answer."""

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


class StartError(Exception):
    """A command cannot start or go on; the message is one line for the person at the terminal."""


class DatabaseInUseError(StartError):
    """Another process runs the embedded database over the same data."""


class ProblemError(Exception):
    """A request that ends in a problem document; `members` are those of Problem that only some errors have."""

    def __init__(self, code: Code, detail: str, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(f"{code}: {detail}")
        status = KINDS[code].status
        self.headers = dict(headers or {})
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.headers["Retry-After"] = "1"  # second
        self.problem = Problem(title=TITLES[status], status=status, code=code, detail=detail, **members)


def problem_response(error: Exception) -> Response:
    """The only place where an error is turned into a response."""
    refusal = as_problem_error(error)
    return Response(
        msgspec.json.encode(refusal.problem),
        status_code=refusal.problem.status,
        headers=refusal.headers,
        media_type="application/problem+json",
    )


def as_problem_error(error: BaseException) -> ProblemError:
    """Any exception that is not a ProblemError is a defect of the service."""
    if isinstance(error, ProblemError):
        return error
    return ProblemError("INTERNAL", "The service failed; its log has the cause under the request id.")
