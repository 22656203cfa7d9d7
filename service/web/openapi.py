"""The OpenAPI 3.1 document: schemas, parameters and problems from the code, texts and examples from openapi.toml."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from service import VERSION
from service.contract import parameters
from service.contract.answers import Accepted, Availability, BatchResults, Changes, ListedAppointment, Version
from service.contract.body import AppointmentPayload
from service.contract.headers import JSON, LINES
from service.contract.parameters import Parameters
from service.problems import KINDS, Code, Problem, ProblemError

Json = dict[str, Any]

TEXTS: Json = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SCHEMAS = [AppointmentPayload, Accepted, ListedAppointment, Version, Changes, BatchResults, Availability, Problem]
FAILURE_CODES: list[Code] = ["UNAUTHENTICATED", "FORBIDDEN", "OVERLOADED", "DATABASE_UNAVAILABLE", "INTERNAL"]
BODY_CODES: list[Code] = [
    "INVALID_JSON",
    "INVALID_REQUEST",
    "FOREIGN_ORIGIN",
    "PAYLOAD_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
]


def document() -> Json:
    _, schemas = msgspec.json.schema_components(SCHEMAS, ref_template="#/components/schemas/{name}")
    for member in (member for schema in schemas.values() for member in schema["properties"].values()):
        if "enum" in member:
            member["type"] = "string"  # without a type, generators of clients take it for an object
    paths: Json = {}
    for texts in TEXTS["operations"]:
        paths.setdefault(texts["path"], {})[texts["method"]] = operation(texts)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Appointments", "version": VERSION, "description": TEXTS["description"]},
        "servers": [{"url": ".."}],  # relative to this document, also behind a proxy that strips a prefix
        "paths": paths,
        "components": {
            "schemas": schemas,
            "examples": {code: problem_example(code) for code in KINDS},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def operation(texts: Json) -> Json:
    described: Json = {name: texts[name] for name in ("operationId", "tags", "summary", "description") if name in texts}
    codes: list[Code] = texts.get("codes", [])
    answer = content(texts, "examples", texts.get("answer"), texts.get("media_type", JSON))
    responses = {"200": {"description": texts["summary"], "headers": headers(200), "content": answer}}
    if "body" in texts:
        described["requestBody"] = {"required": True, "content": content(texts, "bodies", texts["body"], JSON)}
        codes = [*BODY_CODES, *codes, *FAILURE_CODES]
    if "parameters" in texts:
        known: Parameters = getattr(parameters, texts["parameters"])
        described["parameters"] = [*(parameter(name, known) for name in known.types), TEXTS["cache_control"]]
        responses["200"]["headers"] |= {name: TEXTS["headers"][name] for name in texts["headers"]}
        codes = ["INVALID_REQUEST", "INVALID_DATE_FORMAT", *FAILURE_CODES]
        if "after" in known.types:
            codes.append("CURSOR_GONE")
        if "from" in known.types:
            codes.append("INVALID_TIME_RANGE")
        if "ETag" in texts["headers"]:
            described["parameters"].append(TEXTS["if_none_match"])
            responses["304"] = {"description": "The organisation has not changed.", "headers": headers(304)}
    if "UNAUTHENTICATED" in codes:
        described["security"] = [{}, {"bearer": []}]  # the first where authentication is switched off
    return described | {"responses": responses | problem_responses(codes)}


def content(texts: Json, examples: str, schema: str | None, media_type: str) -> Json:
    """A schema `Name[]` is an array. Any item is allowed in an array of a body: a wrong one gets its own result."""
    described: Json = {"type": "string"}
    if schema:
        name = schema.removesuffix("[]")
        described = {"$ref": f"#/components/schemas/{name}"}
        if name != schema:
            described = {"type": "array", "items": {"anyOf": [described, {}]} if examples == "bodies" else described}
    values = {name: {"value": value} for name, value in texts[examples].items()}
    lines = {LINES: {"schema": {"type": "string", "description": "One row or item a line."}}}
    return {media_type: {"schema": described, "examples": values}} | (lines if texts.get("lines") == examples else {})


def parameter(name: str, known: Parameters) -> Json:
    required = name in known.required
    described = {"name": name, "in": "query", "description": TEXTS["parameters"][name], "required": required}
    described["schema"] = schema = msgspec.json.schema(known.types[name])
    if "anyOf" in schema:  # an organisation: its pattern accepts the empty value, and a query string has no null
        schema |= schema.pop("anyOf")[0]
    elif not required:
        described["allowEmptyValue"] = True  # which counts as missing
    return described


def problem_responses(codes: Sequence[Code]) -> Json:
    """For each status one response with the examples of its codes."""
    responses = {}
    for status in sorted({KINDS[code].status for code in codes}):
        group = [code for code in codes if KINDS[code].status == status]
        examples = {code: {"$ref": f"#/components/examples/{code}"} for code in group}
        responses[str(status)] = {
            "description": " ".join(f"`{code}`: {KINDS[code].when}" for code in group),
            "headers": headers(status),
            "content": {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}
            },
        }
    return responses


def headers(status: int) -> Json:
    more = {401: "WWW-Authenticate", 403: "WWW-Authenticate", 415: "Accept-Encoding", 503: "Retry-After"}
    return {name: TEXTS["headers"][name] for name in ("X-Request-Id", more.get(status)) if name}


def problem_example(code: Code) -> Json:
    when = KINDS[code].when
    problem: Json = msgspec.to_builtins(ProblemError(code, when).problem)
    return {"summary": when, "value": problem | TEXTS["problems"].get(code, {})}
