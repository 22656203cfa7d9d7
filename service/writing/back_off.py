"""Back-off from a database that does not answer: writes are refused without asking it, so that it can recover."""

from time import monotonic

from service.problems import ProblemError
from service.supervisor import pause_after

BACK_OFF_SECONDS = (0.05, 0.1, 0.2, 0.5)  # before another attempt; the last one from then on
NOTHING_WRITTEN = "The database does not answer; nothing was written."


class Outage:
    """Failures in a row. The first is followed by another attempt at once, the others by a pause."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause_ends = 0.0

    def failed(self) -> None:
        self._failures += 1
        if self._failures > 1:
            self._pause_ends = monotonic() + pause_after(self._failures - 1, BACK_OFF_SECONDS)

    def ended(self) -> None:
        self._failures = 0

    def lasts(self) -> bool:
        return self._failures > 1

    def pauses(self) -> bool:
        return self.lasts() and monotonic() < self._pause_ends


def unavailable() -> ProblemError:
    return ProblemError("DATABASE_UNAVAILABLE", NOTHING_WRITTEN)
