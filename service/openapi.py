"""The OpenAPI 3.1 document, from the types that validate requests and the table of problems."""

from typing import Any

import msgspec

from service import VERSION
from service.messages import Accepted, AppointmentPayload, Instant, ListedAppointment, OrganisationId
from service.problems import KINDS, Code, Conflict, FieldError, Problem, ProblemError

Json = dict[str, Any]

DESCRIPTION = """One true schedule for each organisation: the latest `updatedAt` wins, active appointments
never overlap, and every accepted change is kept as a version."""
PAYLOAD = {
    "id": "a-17",
    "start": "2020-10-10 20:20",
    "end": "2020-10-10 20:30",
    "createdAt": "2020-09-02 14:23:12",
    "updatedAt": "2020-09-28 14:23:12",
    "orgId": "clinic-4",
}
ROW = ListedAppointment(
    id="72f8ec63-f357-4be3-92da-39243939e978",
    org_id="clinic-4",
    external_id="a-17",
    start="2020-10-10T20:20:00.000Z",
    end="2020-10-10T20:30:00.000Z",
    payload_created_at="2020-09-02T14:23:12.000Z",
    payload_updated_at="2020-09-28T14:23:12.000Z",
    version=1,
)
# What the examples of problems hold beyond the members that all have.
EXTENSIONS: dict[Code, Json] = {
    "INVALID_REQUEST": {"errors": [FieldError("id", "Missing. Expected a string of 1 to 255 characters.")]},
    "INVALID_DATE_FORMAT": {"errors": [FieldError("start", "Expected an instant that exists.")]},
    "TIME_RANGE_UNAVAILABLE": {"conflict": Conflict("a-9", "2020-10-10T20:00:00.000Z", "2020-10-10T20:25:00.000Z")},
}
FIELD_CODES: list[Code] = ["INVALID_REQUEST", "INVALID_DATE_FORMAT"]
FAILURE_CODES: list[Code] = ["OVERLOADED", "DATABASE_UNAVAILABLE", "INTERNAL"]
WRITE_CODES: list[Code] = [
    "INVALID_JSON",
    *FIELD_CODES,
    "INVALID_TIME_RANGE",
    "INVALID_METADATA",
    "TIME_RANGE_UNAVAILABLE",
    "PAYLOAD_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
    *FAILURE_CODES,
]


def build() -> Json:
    types = [AppointmentPayload, Accepted, ListedAppointment, Problem]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    put = operation(
        "putAppointment",
        "Create, update or cancel an appointment",
        content(ref("Accepted"), ok=Accepted("ok"), stale=Accepted("ignored-stale")),
        WRITE_CODES,
    )
    bodies = content(ref("AppointmentPayload"), one=PAYLOAD, cancelled=PAYLOAD | {"cancelled": True})
    put["requestBody"] = {"required": True, "content": bodies}
    listing = operation(
        "listAppointments",
        "List the active appointments of an organisation, by start",
        content({"type": "array", "items": ref("ListedAppointment")}, one=[ROW], none=[]),
        FIELD_CODES + FAILURE_CODES,
    )
    listing["parameters"] = [
        parameter("org", OrganisationId, "The organisation; an unknown one has no appointments."),
        parameter("at", Instant, "Only the one with `start <= at < end`."),
    ]
    alive = content(ref("Accepted"), ok=Accepted("ok"))
    text = {"text/plain": {"schema": {"type": "string"}}}
    ready = operation("ready", "Whether the service should get requests now", alive, ["NOT_READY"])
    return {
        "openapi": "3.1.0",
        "info": {"title": "Appointments", "version": VERSION, "description": DESCRIPTION},
        "paths": {
            "/api/appointments": {"post": put, "get": listing},
            "/livez": {"get": operation("live", "Whether the process runs", alive, [])},
            "/readyz": {"get": ready},
            "/metrics": {"get": operation("metrics", "Figures for Prometheus", text, [])},
        },
        "components": {"schemas": schemas, "examples": {code: problem_example(code) for code in KINDS}},
    }


def operation(name: str, summary: str, answer: Json, codes: list[Code]) -> Json:
    """The answer to success, and for every other status one response with the examples of its codes."""
    responses = {"200": {"description": summary, "headers": headers(200), "content": answer}}
    for status in sorted({KINDS[code].status for code in codes}):
        group = [code for code in codes if KINDS[code].status == status]
        examples = {code: {"$ref": f"#/components/examples/{code}"} for code in group}
        responses[str(status)] = {
            "description": " ".join(f"`{code}`: {KINDS[code].when}" for code in group),
            "headers": headers(status),
            "content": {"application/problem+json": {"schema": ref("Problem"), "examples": examples}},
        }
    return {"operationId": name, "summary": summary, "responses": responses}


def headers(status: int) -> Json:
    described = {"X-Request-Id": {"schema": {"type": "string"}, "description": "The caller's, if sane."}}
    if status == 503:
        described["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds."}
    return described


def content(schema: Json, **examples: object) -> Json:
    values = {name: {"value": msgspec.to_builtins(value)} for name, value in examples.items()}
    return {"application/json": {"schema": schema, "examples": values}}


def problem_example(code: Code) -> Json:
    when = KINDS[code].when
    error = ProblemError(code, when, **EXTENSIONS.get(code, {}))
    return {"summary": when, "value": msgspec.to_builtins(error.problem)}


def parameter(name: str, annotation: Any, description: str) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": msgspec.json.schema(annotation)}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


DOCUMENT = msgspec.json.encode(build())
