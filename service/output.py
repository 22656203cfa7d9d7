"""What a command writes: a file appears complete or not at all, and nothing is lost without an error."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from service.problems import StartError


@contextmanager
def output_to(file: str) -> Iterator[BinaryIO]:
    """The file to write to; `-` is standard output. A regular file appears, or is replaced, once it is complete.
    Raises StartError."""
    target = Path(file)
    try:
        if file == "-":
            with standard_output() as output:
                yield output
        elif target.exists() and not target.is_file():  # a pipe or a device, as /dev/null
            with target.open("wb") as output:
                yield output
        else:
            with replacement(target.resolve()) as output:
                yield output
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "standard output" if file == "-" else file
        raise StartError(f"Cannot write {name}: {error.strerror or error}.") from error


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Apart from sys.stdout, which would try again at exit what could not be written."""
    with os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as output:
        yield output


@contextmanager
def replacement(target: Path) -> Iterator[BinaryIO]:
    """A file beside the target that takes its name at the end, or is removed."""
    new = target.with_name(f".export-{uuid4().hex}")
    try:
        with new.open("xb") as output:
            yield output
            output.flush()
            os.fsync(output.fileno())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)
