"""The log file of the embedded PostgreSQL, kept small.

PostgreSQL's own collector truncates a file only when time has passed, never by size, so the total would have no limit.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOG_BYTES_MAX = 10_000_000  # then it continues in an empty file; the one before is kept
CHECK_SECONDS = 5


@contextmanager
def limited(log: Path) -> Iterator[None]:
    """Checks the size now, and again and again until the block ends."""
    ended = threading.Event()

    def keep_limit() -> None:
        while not ended.wait(CHECK_SECONDS):
            rotate(log)

    rotate(log)
    thread = threading.Thread(target=keep_limit, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def rotate(log: Path) -> None:
    """Copies and truncates, since the server has the file open, and appends to it. Lines written in between are lost;
    if there is no room for the copy, all are."""
    previous, new = log.with_name(f"{log.name}.1"), log.with_name(f"{log.name}.new")
    with suppress(OSError):
        if log.stat().st_size <= LOG_BYTES_MAX:
            return
        with suppress(OSError):
            with log.open("rb") as file:
                file.seek(-LOG_BYTES_MAX, os.SEEK_END)
                new.write_bytes(file.read(LOG_BYTES_MAX))
            new.rename(previous)
        os.truncate(log, 0)
