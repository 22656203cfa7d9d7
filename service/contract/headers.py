"""Request headers: media types, content negotiation and conditional requests (RFC 9110)."""

import re

from starlette.types import Scope

from service.problems import ProblemError

JSON = "application/json"
LINES = "application/x-ndjson"
JSON_TYPE = re.compile(r"application/(json|[a-z0-9!#$&^_.+-]+\+json)")


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that name, given in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def sends_lines(scope: Scope, *, accepted: bool) -> bool:
    """Whether the declared media type of the body is NDJSON, if that is accepted. Raises ProblemError, a 415, for any
    type but that and JSON."""
    content_type = header(scope, b"content-type")
    declared = JSON if content_type is None else content_type.partition(";")[0].strip().lower()
    if JSON_TYPE.fullmatch(declared):
        return False
    if accepted and declared == LINES:
        return True
    expected = f"{JSON}, application/*+json or {LINES}" if accepted else f"{JSON} or application/*+json"
    raise ProblemError("UNSUPPORTED_MEDIA_TYPE", f"Expected a Content-Type of {expected}.")


def prefers_lines(scope: Scope) -> bool:
    """Whether `Accept` prefers NDJSON to JSON; some generated clients name every documented type, with equal weights.
    Source: RFC 9110, section 12.4.2."""
    weights = {JSON: 0.0, LINES: 0.0}
    for part in (header(scope, b"accept") or "").lower().split(","):
        accepted, *options = (piece.strip() for piece in part.split(";"))
        if accepted in weights:
            given = next((option for option in options if option.startswith("q=")), "q=1")
            try:
                weights[accepted] = float(given.removeprefix("q="))
            except ValueError:
                weights[accepted] = 0
    return 0 < weights[LINES] > weights[JSON]


def matches(if_none_match: str, tag: str) -> bool:
    """Source: RFC 9110, section 13.1.2. None of our tags holds a comma."""
    tags = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return bool({"*", tag.removeprefix("W/")} & tags)
