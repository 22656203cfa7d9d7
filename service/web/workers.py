"""`WORKERS` processes on one socket, and their parent, which replaces workers that die.

uvicorn's own supervisor is not used: its workers survive a parent that is killed, and keep the port.
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

from service import interruption, logs
from service.settings import Settings
from service.web.server import CreateApp, run

log = structlog.get_logger()

SPAWN = multiprocessing.get_context("spawn")
METRICS = "appointments-metrics-"  # the prefix of the folder in which the workers share their metrics
LIFE_SECONDS_MIN = 1  # a worker that dies earlier is replaced only after this time


def run_workers(create_app: CreateApp, settings: Settings, listener: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM, which is passed on to the workers; then waits until all of them have ended.
    Raises KeyboardInterrupt if none ended well, as when they were not ready yet."""

    def start() -> SpawnProcess:
        worker = SPAWN.Process(target=work, args=(create_app, settings, listener), daemon=True)
        worker.start()
        return worker

    def restart(dead: SpawnProcess) -> SpawnProcess:
        log.error("worker died", process=dead.pid, exit_code=dead.exitcode)
        mark_process_dead(dead.pid)
        return start()

    remove_stale_metrics()
    with TemporaryDirectory(prefix=f"{METRICS}{os.getpid()}-") as directory, received_signals() as received:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # read when a worker imports prometheus_client
        started = time.monotonic()
        workers = [start() for _ in range(settings.workers)]
        while received not in wait([received, *(worker.sentinel for worker in workers)]):
            if wait([received], timeout=started + LIFE_SECONDS_MIN - time.monotonic()):
                break
            started = time.monotonic()
            workers = [worker if worker.is_alive() else restart(worker) for worker in workers]
        number = received.recv(1)[0]
        for worker in filter(SpawnProcess.is_alive, workers):
            os.kill(worker.ident or 0, number)
        for worker in workers:
            worker.join()
        if all(worker.exitcode for worker in workers):
            raise KeyboardInterrupt(number)


def remove_stale_metrics() -> None:
    """Removes the folders that killed parents left behind."""
    for directory in Path(gettempdir()).glob(f"{METRICS}*-*"):
        parent = directory.name.removeprefix(METRICS).partition("-")[0]
        if parent.isdigit() and not psutil.pid_exists(int(parent)):
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def received_signals() -> Iterator[socket.socket]:
    """A socket from which the numbers of received signals can be read."""
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        interruption.handle(lambda *_: None)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(-1)
            interruption.ignore()


def work(create_app: CreateApp, settings: Settings, listener: socket.socket) -> None:
    logs.configure(settings.log_level)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        run(create_app, settings, listener)
    except KeyboardInterrupt as error:
        interruption.end_by(*error.args)


def end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os.kill(os.getpid(), signal.SIGINT)
