"""`WORKERS` processes on one socket, and their parent, which replaces those that die.

uvicorn's own supervisor does not serve here: its workers outlive a parent that is killed, and keep
the port.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import psutil
import structlog
from prometheus_client.multiprocess import mark_process_dead

from service import logs
from service.server import run
from service.settings import Settings

log = structlog.get_logger()

SPAWN = multiprocessing.get_context("spawn")
FIGURES = "appointments-metrics-"
LIFE_SECONDS_MIN = 1  # of a worker; one that dies sooner is replaced only then


def supervise(settings: Settings, listener: socket.socket) -> None:
    """Until SIGINT or SIGTERM, which the workers get too; then until all of them have ended."""
    remove_figures_of_the_dead()
    with TemporaryDirectory(prefix=f"{FIGURES}{os.getpid()}-") as directory, received_signals() as received:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # workers look for it when they import prometheus_client
        started = time.monotonic()
        workers = [start(settings, listener) for _ in range(settings.workers)]
        while received not in wait([received, *(worker.sentinel for worker in workers)]):
            if wait([received], timeout=started + LIFE_SECONDS_MIN - time.monotonic()):
                break
            started = time.monotonic()
            workers = [worker if worker.is_alive() else replace(worker, settings, listener) for worker in workers]
        number = received.recv(1)[0]
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.ident or 0, number)
        for worker in workers:
            worker.join()


def remove_figures_of_the_dead() -> None:
    """Of parents that were killed."""
    for directory in Path(gettempdir()).glob(f"{FIGURES}*-*"):
        parent = directory.name.removeprefix(FIGURES).partition("-")[0]
        if parent.isdigit() and not psutil.pid_exists(int(parent)):
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def received_signals() -> Iterator[socket.socket]:
    """A socket that the numbers of SIGINT and SIGTERM can be read from."""
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(-1)
            for number in handlers:  # what follows is the clean-up
                signal.signal(number, signal.SIG_IGN)


def start(settings: Settings, listener: socket.socket) -> SpawnProcess:
    worker = SPAWN.Process(target=work, args=(settings, listener), daemon=True)
    worker.start()
    return worker


def replace(dead: SpawnProcess, settings: Settings, listener: socket.socket) -> SpawnProcess:
    log.error("worker died", process=dead.pid, exit_code=dead.exitcode)
    mark_process_dead(dead.pid)
    return start(settings, listener)


def work(settings: Settings, listener: socket.socket) -> None:
    logs.configure(settings.log_level)
    threading.Thread(target=end_with_parent, daemon=True).start()
    run(settings, listener)


def end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os.kill(os.getpid(), signal.SIGINT)
