"""Busy and free intervals of an organisation, computed from the model."""

from datetime import datetime, timedelta

from tests.model.model import Model

Intervals = list[tuple[datetime, datetime]]


def busy(model: Model, organisation: str, start: datetime, end: datetime) -> Intervals:
    merged: Intervals = []
    for _, busy_from, busy_to, _ in model.listed(organisation, start=start, end=end):
        clipped = max(busy_from, start), min(busy_to, end)
        if merged and merged[-1][1] == clipped[0]:
            merged[-1] = merged[-1][0], clipped[1]
        else:
            merged.append(clipped)
    return merged


def free(model: Model, organisation: str, start: datetime, end: datetime, minutes: int) -> Intervals:
    edges = [start, *(edge for interval in busy(model, organisation, start, end) for edge in interval), end]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return [(a, b) for a, b in gaps if a < b and b - a >= timedelta(minutes=minutes)]
