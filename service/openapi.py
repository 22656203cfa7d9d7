"""The OpenAPI 3.1 document, from the types that validate requests and the table of problems."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from service import VERSION, reads
from service.listing import ARRAY, LINES
from service.messages import (
    ITEMS_MAX,
    Accepted,
    AppointmentPayload,
    Availability,
    BatchResults,
    Changes,
    Interval,
    ItemResult,
    ListedAppointment,
    Version,
)
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
MEMBERS = msgspec.structs.asdict(ROW) | {"cancelled": False}
VERSION_ROW = Version(**MEMBERS, received_at="2020-09-28T14:23:12.345678Z")
CALENDAR = """BEGIN:VCALENDAR\r\nVERSION:2.0\r\n…\r\nEND:VCALENDAR\r\n"""
PARAMETERS = {
    "org": "The organisation; an unknown one has no appointments.",
    "at": "Only the one with `start <= at < end`.",
    "from": "Only those that end after it; for availability, the start of the window.",
    "to": "Only those that start before it; for availability, the end of the window.",
    "id": "Only the one that the upstream system knows by this id.",
    "includeCancelled": "Cancelled ones too; each row then says whether it is.",
    "asOf": "The state as it was recorded at that instant.",
    "limit": "A page of so many rows at most; `Link` leads to the next.",
    "cursor": "Where the page begins; it comes in the `Link` of the one before.",
    "after": "Only changes after this cursor; from the beginning if missing.",
    "wait": "How many seconds to wait for a change, if there is none.",
    "minMinutes": "Free intervals that are shorter are left out.",
}
HEADERS = {
    "ETag": "Changes with every change of the organisation.",
    "Link": "The next page, if there is one.",
    "X-Changes-Cursor": "The last change that the answer knows, to be used as `after`.",
}
# What the examples of problems hold beyond the members that all have.
EXTENSIONS: dict[Code, Json] = {
    "INVALID_REQUEST": {"errors": [FieldError("id", "Missing. Expected a string of 1 to 255 characters.")]},
    "INVALID_DATE_FORMAT": {"errors": [FieldError("start", "Expected an instant that exists.")]},
    "TIME_RANGE_UNAVAILABLE": {"conflict": Conflict("a-9", "2020-10-10T20:00:00.000Z", "2020-10-10T20:25:00.000Z")},
}
FIELD_CODES: list[Code] = ["INVALID_REQUEST", "INVALID_DATE_FORMAT"]
ACCESS_CODES: list[Code] = ["UNAUTHENTICATED", "FORBIDDEN"]
SECURITY: list[Json] = [{}, {"bearer": []}]  # none where authentication is switched off
FAILURE_CODES: list[Code] = [*ACCESS_CODES, "OVERLOADED", "DATABASE_UNAVAILABLE", "INTERNAL"]
BODY_CODES: list[Code] = ["INVALID_JSON", "INVALID_REQUEST", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"]
SINGLE_CODES: list[Code] = ["INVALID_DATE_FORMAT", "INVALID_TIME_RANGE", "INVALID_METADATA", "TIME_RANGE_UNAVAILABLE"]
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The `ETag` of an answer that is at hand.",
    "schema": {"type": "string"},
}


def build() -> Json:
    types = [AppointmentPayload, Accepted, ListedAppointment, Version, Changes, BatchResults, Availability, Problem]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    alive = content(ref("Accepted"), ok=Accepted("ok"))
    text = {"text/plain": {"schema": {"type": "string"}}}
    ready = operation("ready", "Whether the service should get requests now", alive, ["NOT_READY"])
    return {
        "openapi": "3.1.0",
        "info": {"title": "Appointments", "version": VERSION, "description": DESCRIPTION},
        "paths": {
            "/api/appointments": {"post": put_appointment(), "get": list_appointments()},
            "/api/appointments/batch": {"post": put_batch()},
            "/api/appointments/versions": {"get": list_versions()},
            "/api/appointments/changes": {"get": list_changes()},
            "/api/appointments.ics": {"get": calendar()},
            "/api/availability": {"get": availability()},
            "/livez": {"get": operation("live", "Whether the process runs", alive, [])},
            "/readyz": {"get": ready},
            "/metrics": {"get": operation("metrics", "Figures for Prometheus", text, ACCESS_CODES)},
        },
        "components": {
            "schemas": schemas,
            "examples": {code: problem_example(code) for code in KINDS},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def put_appointment() -> Json:
    outcomes = content(ref("Accepted"), ok=Accepted("ok"), stale=Accepted("ignored-stale"))
    put = operation(
        "putAppointment", "Create, update or cancel an appointment", outcomes, BODY_CODES + SINGLE_CODES + FAILURE_CODES
    )
    bodies = content(ref("AppointmentPayload"), one=PAYLOAD, cancelled=PAYLOAD | {"cancelled": True})
    return put | {"requestBody": {"required": True, "content": bodies}}


def put_batch() -> Json:
    conflict = ProblemError("TIME_RANGE_UNAVAILABLE", "In the way.", **EXTENSIONS["TIME_RANGE_UNAVAILABLE"])
    some = BatchResults([ItemResult("ok"), ItemResult("ignored-stale"), ItemResult("conflict", conflict.problem)])
    results = content(ref("BatchResults"), some=some)
    put = operation("putBatch", "Create, update or cancel many", results, BODY_CODES + FAILURE_CODES)
    # Each item is judged by itself, so that one which is none harms no other.
    described = f"Up to {ITEMS_MAX:,} items. What is no `AppointmentPayload` has the result `invalid`."
    payloads = {"type": "array", "items": {"anyOf": [ref("AppointmentPayload"), {}]}, "description": described}
    bodies = content(payloads, two=[PAYLOAD, PAYLOAD | {"id": "a-18", "cancelled": True}]) | in_lines()
    return put | {"requestBody": {"required": True, "content": bodies}}


def list_appointments() -> Json:
    rows = content({"type": "array", "items": ref("ListedAppointment")}, one=[ROW], none=[]) | in_lines()
    summary = "List the appointments of an organisation, by start"
    return reading("listAppointments", summary, rows, reads.LIST_PARAMETERS, ["ETag", "Link", "X-Changes-Cursor"])


def list_versions() -> Json:
    rows = content({"type": "array", "items": ref("Version")}, one=[VERSION_ROW], none=[]) | in_lines()
    summary = "List the versions of an appointment, oldest first"
    return reading("listVersions", summary, rows, reads.VERSION_PARAMETERS, ["Link"], reads.VERSION_REQUIRED)


def list_changes() -> Json:
    some = content(ref("Changes"), one=Changes([VERSION_ROW], "17"), none=Changes([], "17")) | in_lines()
    summary = "List the accepted changes of an organisation in the order of their commits"
    return reading("listChanges", summary, some, reads.CHANGE_PARAMETERS, ["X-Changes-Cursor"])


def availability() -> Json:
    day = [Interval("2020-10-10T20:00:00.000Z", ROW.start), Interval(ROW.end, "2020-10-10T21:00:00.000Z")]
    evening = Availability(day[0].start, day[1].end, busy=[Interval(ROW.start, ROW.end)], free=day)
    some = content(ref("Availability"), evening=evening)
    summary = "When an organisation is busy, and when it is free"
    return reading("availability", summary, some, reads.AVAILABILITY_PARAMETERS, [], reads.AVAILABILITY_REQUIRED)


def calendar() -> Json:
    text = {"text/calendar": {"schema": {"type": "string"}, "examples": {"some": {"value": CALENDAR}}}}
    summary = "The schedule of an organisation as iCalendar (RFC 5545)"
    return reading("calendar", summary, text, reads.CALENDAR_PARAMETERS, ["ETag", "X-Changes-Cursor"])


def reading(  # noqa: PLR0913, PLR0917 - what an operation consists of
    name: str,
    summary: str,
    answer: Json,
    parameters: Mapping[str, Any],
    found: list[str],
    required: Collection[str] = (),
) -> Json:
    """An operation that takes parameters and answers with the headers `found`; what has a tag can be asked
    for again."""
    range_codes: list[Code] = ["INVALID_TIME_RANGE"] if "from" in parameters else []
    described = operation(name, summary, answer, FIELD_CODES + range_codes + FAILURE_CODES)
    described["parameters"] = [
        parameter(each, annotation, required=each in required) for each, annotation in parameters.items()
    ]
    more = {each: {"schema": {"type": "string"}, "description": HEADERS[each]} for each in found}
    described["responses"]["200"]["headers"] |= more
    if "ETag" in found:
        described["parameters"].append(IF_NONE_MATCH)
        described["responses"]["304"] = {"description": "It has not changed.", "headers": headers(304)}
    return described


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
    described = {"operationId": name, "summary": summary, "responses": responses}
    return described | ({"security": SECURITY} if "UNAUTHENTICATED" in codes else {})


def headers(status: int) -> Json:
    described = {"X-Request-Id": {"schema": {"type": "string"}, "description": "The caller's, if sane."}}
    if status in (401, 403):
        described["WWW-Authenticate"] = {"schema": {"type": "string"}, "description": "RFC 6750."}
    if status == 503:
        described["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds."}
    return described


def in_lines() -> Json:
    return {LINES.media_type: {"schema": {"type": "string", "description": "A row a line."}}}


def content(schema: Json, **examples: object) -> Json:
    values = {name: {"value": msgspec.to_builtins(value)} for name, value in examples.items()}
    return {ARRAY.media_type: {"schema": schema, "examples": values}}


def problem_example(code: Code) -> Json:
    when = KINDS[code].when
    error = ProblemError(code, when, **EXTENSIONS.get(code, {}))
    return {"summary": when, "value": msgspec.to_builtins(error.problem)}


def parameter(name: str, annotation: Any, *, required: bool) -> Json:
    schema = msgspec.json.schema(annotation)
    described = {"name": name, "in": "query", "description": PARAMETERS[name], "schema": schema, "required": required}
    return described if required else described | {"allowEmptyValue": True}  # empty: missing


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


DOCUMENT = msgspec.json.encode(build())
