"""What schemathesis cannot read from the OpenAPI document: instants that must be in order, a cursor that
comes from a page and with a limit, a wait that would take its time."""

from typing import Any

import schemathesis

from service.contract.instants import parse_instant
from service.contract.parameters import WAIT_SECONDS_MAX

WAITS = {str(seconds) for seconds in range(1, WAIT_SECONDS_MAX + 1)}
LATER = "9999-01-01"
ORDERED = (("start", "end"), ("createdAt", "updatedAt"), ("from", "to"))
INSTANTS = {"at", "asOf", *(name for pair in ORDERED for name in pair)}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:  # noqa: ARG001 - schemathesis' names
    """Changes only copies: cases share what they are made of."""
    if isinstance(case.query, dict):
        case.query = impatient(case.query)
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if isinstance(case.body, dict):
        case.body = in_order(case.body)
    if isinstance(case.query, dict):
        case.query = in_order({name: value for name, value in case.query.items() if name != "cursor"})


def impatient(query: dict[str, Any]) -> dict[str, Any]:
    return query | ({"wait": 1} if str(query.get("wait")) in WAITS else {})


def in_order(members: dict[str, Any]) -> dict[str, Any]:
    ordered = {name: existing(value) if name in INSTANTS and value else value for name, value in members.items()}
    for first, second in ORDERED:
        if ordered.get(first) and ordered.get(second):
            ordered[first], ordered[second] = sorted((ordered[first], ordered[second]), key=parse_instant)
            if parse_instant(ordered[first]) == parse_instant(ordered[second]):
                ordered[second] = LATER
    return ordered


def existing(instant: str) -> str:
    """The pattern of the document also matches days that do not exist, such as 30 February."""
    try:
        parse_instant(instant)
    except ValueError:
        return "2020-10-10"
    return instant
