"""Schemathesis hooks for rules that the OpenAPI document cannot express: instants in order, and cursors that are valid
only if a page returned them. Long polls are shortened to one second."""

from typing import Any

import schemathesis

from service.contract.instants import parse_instant
from service.contract.parameters import WAIT_SECONDS_MAX

VALID_WAITS = {str(seconds) for seconds in range(1, WAIT_SECONDS_MAX + 1)}
CURSORS = ("cursor", "after")
FAR_FUTURE = "9999-01-01"
ORDERED_PAIRS = (("start", "end"), ("createdAt", "updatedAt"), ("from", "to"))
INSTANTS = {"at", "asOf", *(name for pair in ORDERED_PAIRS for name in pair)}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:  # noqa: ARG001 - schemathesis' names
    """Replaces body and query instead of changing them in place, because cases share them."""
    if isinstance(case.query, dict):
        case.query = with_short_wait(case.query)
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if isinstance(case.body, dict):
        case.body = in_order(case.body)
    if isinstance(case.query, dict):
        case.query = in_order({name: value for name, value in case.query.items() if name not in CURSORS})


def with_short_wait(query: dict[str, Any]) -> dict[str, Any]:
    return query | ({"wait": 1} if str(query.get("wait")) in VALID_WAITS else {})


def in_order(members: dict[str, Any]) -> dict[str, Any]:
    """Members that are not read may be anything, also where they have the name of a parameter."""
    instants = {name for name, value in members.items() if name in INSTANTS and value and isinstance(value, str)}
    ordered = {name: on_existing_day(value) if name in instants else value for name, value in members.items()}
    for first, second in ORDERED_PAIRS:
        if {first, second} <= instants:
            ordered[first], ordered[second] = sorted((ordered[first], ordered[second]), key=parse_instant)
            if parse_instant(ordered[first]) == parse_instant(ordered[second]):
                ordered[second] = FAR_FUTURE
    return ordered


def on_existing_day(instant: str) -> str:
    """The published pattern also matches days that do not exist, such as 30 February."""
    try:
        parse_instant(instant)
    except ValueError:
        return "2020-10-10"
    return instant
