"""Logs: JSON lines, or readable ones in a terminal. Every line of a request carries its id."""

import io
import logging
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import TextIO, cast

import msgspec
import structlog
from structlog import processors
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

REQUEST: ContextVar[dict[str, object]] = ContextVar("request")


def note(**facts: object) -> None:
    """Adds facts to every later log line of the current request, the final `request` line included."""
    REQUEST.get().update(facts)


def merge_request(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {**REQUEST.get({}), **event}


class Output(io.TextIOBase):
    """Standard output for log lines: a reader that has gone, or a full disk, does not fail what is logged."""

    def write(self, text: str) -> int:
        self._keep_going(partial(sys.stdout.write, text))
        return len(text)

    def flush(self) -> None:
        self._keep_going(sys.stdout.flush)

    def _keep_going(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BrokenPipeError:  # no other reader will come; Python would fail again when it flushes at the end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        except OSError:
            pass


def configure(level: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # names are Unicode, whatever the locale
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    first: list[Processor] = [merge_request, processors.add_log_level, processors.TimeStamper(fmt="iso", utc=True)]
    # Control sequences in names are escaped; a traceback by rich, if that is installed, would show passwords.
    console = structlog.dev.ConsoleRenderer(repr_native_str=True, exception_formatter=structlog.dev.plain_traceback)
    last: list[Processor] = [console]
    if not sys.stdout.isatty():
        last = [processors.format_exc_info, processors.JSONRenderer(serializer=to_json)]
    output = cast("TextIO", Output())
    structlog.configure(
        processors=[*first, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library; only their warnings and errors are kept.
    handler = logging.StreamHandler(output)
    unmarked = ProcessorFormatter.remove_processors_meta
    handler.setFormatter(ProcessorFormatter(foreign_pre_chain=first, processors=[unmarked, *last]))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def to_json(event: object, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()
