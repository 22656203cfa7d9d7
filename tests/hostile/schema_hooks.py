"""What schemathesis cannot read from the OpenAPI document: instants that must be in order, a cursor that
comes from a page and with a limit, a wait that would take its time."""

from typing import Any

import schemathesis

from service.instants import parse_instant
from service.messages import WAIT_SECONDS_MAX

WAITS = {str(seconds) for seconds in range(1, WAIT_SECONDS_MAX + 1)}
LATER = "9999-01-01"
ORDERED = (("start", "end"), ("createdAt", "updatedAt"), ("from", "to"))


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
    ordered = dict(members)
    for first, second in ORDERED:
        if members.get(first) and members.get(second):
            ordered[first], ordered[second] = sorted((members[first], members[second]), key=parse_instant)
            if parse_instant(ordered[first]) == parse_instant(ordered[second]):
                ordered[second] = LATER
    return ordered
