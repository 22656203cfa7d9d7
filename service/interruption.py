"""Signals that end a command before its work is done. It cleans up, and its exit status tells the shell."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

Handler = Callable[[int, FrameType | None], None]

# A hang-up that is ignored by now (nohup) stays so; uvicorn handles the other two in any case.
HANG_UP = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
SIGNALS = (signal.SIGINT, signal.SIGTERM, *HANG_UP)


def raise_when_interrupted() -> None:
    """From now on a signal raises KeyboardInterrupt with its number, except for a Ctrl-C that a script's background
    job ignores."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)


def interrupt(number: int, _: FrameType | None) -> NoReturn:
    ignore()
    raise KeyboardInterrupt(number)


def raise_instead_of(error: BaseException) -> None:
    """Raises the KeyboardInterrupt that led to the error, if one did: what cleans up after a signal may fail, too."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    if cause:
        raise cause from None


@contextmanager
def postponed() -> Iterator[None]:
    """A signal that raises KeyboardInterrupt does so at the end of the block, which keeps what it has started."""
    received: list[int] = []
    mine = [number for number in SIGNALS if signal.getsignal(number) is interrupt]
    for number in mine:
        signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, interrupt)
        if received:
            interrupt(received[0], None)


def handle(handler: Handler) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


def ignore() -> None:
    """Only the clean-up follows, and a second signal must not disturb it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_by(number: int) -> int:
    """Ends the process by the signal, which a shell shows as 128 + number. The first process of a container survives
    that, and gets the same number as an exit status."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number
