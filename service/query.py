"""Query strings: every parameter known, given once, in UTF-8; an empty one counts as missing."""

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from service.fields import FIELD_KINDS, READ_ERRORS, Faults
from service.messages import Instant

LENGTH_OF_DAY_AND_GAP = len("2020-10-10T")
PLUS_HINT = " A `+` in a query string is a space: write `%2B`."


def read_query(request: Request, known: Mapping[str, Any], required: Collection[str] = ()) -> dict[str, Any]:
    """The parameters by name: read as `known` says, None where missing and not `required`.

    Raises ProblemError with every fault. Source of the spelling: WHATWG URL, section 5.1.
    """
    query_string = request.scope["query_string"]
    if not query_string and not required:
        return dict.fromkeys(known)
    faults = Faults()
    given: dict[str, str] = {}
    for part in query_string.split(b"&"):
        if part:
            add_parameter(part, known, given, faults)
    values = {name: read_parameter(name, given.get(name), kind, faults) for name, kind in known.items()}
    for name in required:
        if not given.get(name):
            kind = FIELD_KINDS[known[name]]
            faults.add(name, f"Missing. Expected {kind.expected}.", kind.code)
    faults.raise_if_any()
    return values


def add_parameter(part: bytes, known: Mapping[str, Any], given: dict[str, str], faults: Faults) -> None:
    raw_name, _, raw_value = part.partition(b"=")
    name = decode(raw_name) or ""
    if name not in known:
        faults.add(name, f"Unknown parameter. Expected: {', '.join(known) or 'none'}.")
    elif name in given:
        faults.add(name, "Given more than once. Expected one value.")
    elif (value := decode(raw_value)) is None:
        faults.add(name, "Not UTF-8. Expected percent-encoded UTF-8.")
    else:
        given[name] = value


def decode(raw: bytes) -> str | None:
    try:
        return unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        return None


def read_parameter(name: str, text: str | None, annotation: Any, faults: Faults) -> Any:
    kind = FIELD_KINDS[annotation]
    try:
        return kind.parse(text) if text else None
    except READ_ERRORS:
        hint = PLUS_HINT if annotation is Instant and text and " " in text[LENGTH_OF_DAY_AND_GAP:] else ""
        faults.add(name, f"Expected {kind.expected}.{hint}", kind.code)
        return None
