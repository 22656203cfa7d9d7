"""Request headers: media types, content negotiation and conditional requests (RFC 9110)."""

import re
from collections.abc import Iterable
from math import inf

from starlette.types import Scope

from service.contract.cursors import number_of
from service.problems import ProblemError

JSON = "application/json"
LINES = "application/x-ndjson"
RANGES = {JSON, LINES, "application/*", "*/*"}  # the media ranges that include one of them
JSON_TYPE = re.compile(r"application/(json|[a-z0-9!#$&^_.+-]+\+json)")
# A comma outside quotes is none of a parameter: it separates the values of several lines.
MEDIA_TYPE = re.compile(r'([^";,]*)(;([^",]|"[^"]*")*)?')
LIST_ITEM = re.compile(r'([^",]|"[^"]*")+')
WEIGHT = re.compile(r"0?\.[0-9]+|0\.?|1(\.0*)?")
DIGITS = re.compile("[0-9]+")
ENTITY_TAG = re.compile(r'"([^"]*)"')
# What servers in front append to the tag of an answer that they compress: Apache, Caddy `-gzip`, Jetty `--gzip`,
# LiteSpeed `;gz`.
CODING_SUFFIX = re.compile(r"((--?|;)(gzip|x-gzip|gz|deflate|br|zstd))*")


def header(scope: Scope, name: bytes) -> str | None:
    """The value of the header of that name, given in lower case. Different lines of it are one list, joined by commas
    (RFC 9110, section 5.3), which is no valid value of a header that is not a list."""
    value = (scope.get("header_values") or header_values(scope)).get(name)
    return None if value is None else str(value, "latin-1")


def header_values(scope: Scope) -> dict[bytes, bytes]:
    """Kept in the scope, since each request has many headers looked up."""
    values = scope["header_values"] = dict(scope["headers"])
    if len(values) < len(scope["headers"]):
        values |= joined_lines(scope["headers"])
    return values


def joined_lines(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    lines: dict[bytes, list[bytes]] = {}
    for name, line in headers:
        if line not in lines.setdefault(name, []):
            lines[name].append(line)
    return {name: b", ".join(different) for name, different in lines.items()}


def require_identity(scope: Scope) -> None:
    """Raises ProblemError, a 415, for a body with a content coding. Source: RFC 9110, sections 8.4 and 12.5.3."""
    codings = header(scope, b"content-encoding")
    if codings and not {coding.strip().lower() for coding in codings.split(",")} <= {"", "identity"}:
        detail = "Expected a body without a Content-Encoding."
        raise ProblemError("UNSUPPORTED_MEDIA_TYPE", detail, headers={"Accept-Encoding": "identity"})


def sends_lines(scope: Scope, *, accepted: bool) -> bool:
    """Whether the declared media type of the body is NDJSON, if that is accepted. Raises ProblemError, a 415, for any
    type but that and JSON. Parameters such as `charset` have no effect: both are UTF-8 (RFC 8259, section 11)."""
    content_type = header(scope, b"content-type")
    if content_type is None or content_type == JSON:
        return False
    media_type = MEDIA_TYPE.fullmatch(content_type)
    declared = media_type[1].strip().lower() if media_type else ""
    if JSON_TYPE.fullmatch(declared):
        return False
    if accepted and declared == LINES:
        return True
    expected = f"{JSON}, application/*+json or {LINES}" if accepted else f"{JSON} or application/*+json"
    raise ProblemError("UNSUPPORTED_MEDIA_TYPE", f"Expected a Content-Type of {expected}.")


def prefers_lines(scope: Scope) -> bool:
    """Whether `Accept` gives NDJSON more weight than JSON, or the same and names only NDJSON; some generated clients
    name every documented type. If neither is acceptable, JSON is sent. Source: RFC 9110, section 12.5.1."""
    weights = range_weights(header(scope, b"accept") or "")
    json, lines = (
        next((weights[each] for each in (media_type, "application/*", "*/*") if each in weights), 0.0)
        for media_type in (JSON, LINES)
    )
    return lines > json or (0 < lines == json and LINES in weights and JSON not in weights)


def range_weights(accept: str) -> dict[str, float]:
    """The weights of those media ranges that matter here. One with parameters counts only if it is not given without
    them too; one whose weight is not valid does not count."""
    weights: dict[str, float] = {}
    for item in LIST_ITEM.finditer(accept.lower()):
        media_range, *parameters = (part.strip() for part in item[0].split(";"))
        if media_range not in RANGES:
            continue
        given = {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in parameters)}
        weight = given.pop("q", "1")
        if WEIGHT.fullmatch(weight) and not (any(given) and media_range in weights):
            weights[media_range] = float(weight)
    return weights


def seconds_old_max(scope: Scope) -> float:
    """How old the answer may be, by `Cache-Control`: `no-cache`, and the `max-age=0` of a browser's reload, want the
    present. `no-store` says nothing about age. Source: RFC 9111, sections 5.2.1 and 4.2.1: a faulty age is 0."""
    seconds = inf
    for item in LIST_ITEM.finditer((header(scope, b"cache-control") or "").lower()):
        name, _, value = (part.strip(' \t"') for part in item[0].partition("="))
        if name == "no-cache":
            seconds = 0
        elif name == "max-age":
            seconds = min(seconds, int(value[:10]) if DIGITS.fullmatch(value) else 0)
    return seconds


def latest_change(if_none_match: str) -> int:
    """The largest number of a change in the tags, which begin with it."""
    return max(map(number_of, ENTITY_TAG.findall(if_none_match)), default=0)


def matches(if_none_match: str, tag: str) -> bool:
    """Whether the list of entity tags has this one, coded or not. Source: RFC 9110, section 13.1.2."""
    if if_none_match.strip() == "*":
        return True
    [opaque] = ENTITY_TAG.findall(tag)
    return any(
        given.startswith(opaque) and CODING_SUFFIX.fullmatch(given, len(opaque))
        for given in ENTITY_TAG.findall(if_none_match)
    )
