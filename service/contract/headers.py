"""Request headers: media types, content negotiation and conditional requests (RFC 9110)."""

import re
from collections.abc import Sequence

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


def media_type(scope: Scope) -> str | None:
    """The declared media type of the body, without parameters."""
    content_type = header(scope, b"content-type")
    return None if content_type is None else content_type.partition(";")[0].strip().lower()


def check_media_type(scope: Scope, *, lines: bool) -> None:
    """`lines`: NDJSON is accepted as well as JSON. Raises ProblemError, a 415."""
    declared = media_type(scope)
    if declared is None or JSON_TYPE.fullmatch(declared) or (lines and declared == LINES):
        return
    accepted = f"{JSON}, application/*+json or {LINES}" if lines else f"{JSON} or application/*+json"
    raise ProblemError("UNSUPPORTED_MEDIA_TYPE", f"Expected a Content-Type of {accepted}.")


def prefers_lines(scope: Scope) -> bool:
    """Whether `Accept` names NDJSON, with at least the weight of JSON."""
    weights = {JSON: 0.0, LINES: 0.0}
    for part in (header(scope, b"accept") or "").lower().split(","):
        accepted, *options = (piece.strip() for piece in part.split(";"))
        if accepted in weights:
            weights[accepted] = weight(options)
    return 0 < weights[LINES] >= weights[JSON]


def weight(options: Sequence[str]) -> float:
    """Source: RFC 9110, section 12.4.2."""
    for option in options:
        if option.startswith("q="):
            try:
                return float(option.removeprefix("q="))
            except ValueError:
                return 0
    return 1


def matches(if_none_match: str, tag: str) -> bool:
    """Source: RFC 9110, section 13.1.2. None of our tags holds a comma."""
    tags = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return bool({"*", tag.removeprefix("W/")} & tags)
