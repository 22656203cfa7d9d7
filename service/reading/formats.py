"""Formats: how the rows of a list become a body."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from service.contract.headers import JSON, LINES, prefers_lines

Rows = Sequence[Mapping[int | str, Any]]


@dataclass(frozen=True)
class Format:
    """The texts of rows, joined by `between`, within `opening` and `closing`."""

    name: str
    media_type: str
    opening: str
    between: str
    closing: str
    headers: dict[str, str] = field(default_factory=dict)

    def texts(self, rows: Rows) -> list[str]:
        """The last column. A list without appointments has one row, in which it is null."""
        return [row[-1] for row in rows if row[-1] is not None]

    def body(self, texts: Sequence[str]) -> str:
        return self.opening + self.between.join(texts) + (self.closing if texts or self is not NDJSON else "")


ARRAY = Format("array", JSON, "[", ",", "]")
NDJSON = Format("lines", LINES, "", "\n", "\n")
PIECES = Format("pieces", JSON, "", "", "")  # rows that are parts of one object


def accepted_format(scope: Scope) -> Format:
    """One row a line for clients that prefer it, otherwise an array."""
    return NDJSON if prefers_lines(scope) else ARRAY
