"""What a command writes: a file appears complete or not at all, and nothing is lost without an error."""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from service.problems import StartError


def open_closed_streams() -> None:
    """What the caller has closed (`>&-`) is discarded; Python leaves None, which most libraries cannot write to."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if not getattr(sys, name):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.set_inheritable(number, True)  # for workers
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


@contextmanager
def output_to(file: str) -> Iterator[BinaryIO]:
    """The file to write to; `-` is standard output. A regular file appears, or is replaced, once it is complete,
    and keeps its permissions. Raises StartError."""
    target = Path(file)
    try:
        if file == "-":
            with standard_output() as output:
                yield output
        elif target.exists() and not target.is_file():  # a pipe or a device, as /dev/null
            with target.open("wb") as output:
                yield output
        else:
            with replacement(Path(os.path.realpath(target))) as output:
                yield output
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "standard output" if file == "-" else file
        raise StartError(f"Cannot write {name}: {error.strerror or error}.") from error


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Apart from sys.stdout, which would try again at exit what could not be written."""
    if not sys.__stdout__:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    with os.fdopen(sys.__stdout__.fileno(), "wb", closefd=False) as output:
        yield output


@contextmanager
def replacement(target: Path) -> Iterator[BinaryIO]:
    """A file beside the target that takes its name at the end, or is removed."""
    new = target.with_name(f".export-{uuid4().hex}")
    try:
        with new.open("xb") as output:
            if target.exists():
                shutil.copymode(target, new)
            yield output
            output.flush()
            os.fsync(output.fileno())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)
