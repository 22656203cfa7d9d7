"""`WORKERS` processes on one socket, and their parent, which replaces workers that die.

uvicorn's own supervisor is not used: its workers survive a parent that is killed, and keep the port.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import psutil
import structlog
from prometheus_client.multiprocess import mark_process_dead

from service import interruption, logs
from service.problems import StartError
from service.settings import Settings
from service.supervisor import BACK_OFF_SECONDS, STEADY_SECONDS, pause_after
from service.web.server import CreateApp, run

log = structlog.get_logger()

SPAWN = multiprocessing.get_context("spawn")
METRICS = "appointments-metrics-"  # the prefix of the folder in which the workers share their metrics
RECEIVED_BYTES_MAX = 64  # signals, one byte each
END_SECONDS_MAX = 2  # after the grace time, for the clean-up of a worker


def run_workers(create_app: CreateApp, settings: Settings, listener: socket.socket) -> None:
    """Serves until a signal, which is passed on to the workers; then waits until all of them have ended.
    Raises StartError if one had to be killed, and KeyboardInterrupt if none ended well, as when they were not ready."""

    def start() -> SpawnProcess:
        worker = SPAWN.Process(target=work, args=(create_app, settings, listener), daemon=True)
        # The worker inherits the mask, and cannot handle signals yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, interruption.SIGNALS)
        worker.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interruption.SIGNALS)
        return worker

    def restart(dead: SpawnProcess) -> SpawnProcess:
        log.error("worker died", process=dead.pid, exit_code=dead.exitcode)
        mark_process_dead(dead.pid)
        return start()

    remove_stale_metrics()
    resource_tracker.ensure_running()  # here, because its start unblocks SIGINT and SIGTERM
    with TemporaryDirectory(prefix=f"{METRICS}{os.getpid()}-") as directory, received_signals() as received:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # read when a worker imports prometheus_client
        started, deaths = time.monotonic(), 0  # deaths: in a row, each soon after the last start
        workers = [start() for _ in range(settings.workers)]
        while received not in wait([received, *(worker.sentinel for worker in workers)]):
            deaths = 1 if time.monotonic() - started > STEADY_SECONDS else deaths + 1
            if wait([received], timeout=pause_after(deaths, BACK_OFF_SECONDS)):
                break
            started = time.monotonic()
            workers = [worker if worker.is_alive() else restart(worker) for worker in workers]
        end(workers, received, settings)


def end(workers: Sequence[SpawnProcess], received: socket.socket, settings: Settings) -> None:
    """Passes signals on until the workers have ended. Kills those that take longer than a shutdown may, and then raises
    StartError. Raises KeyboardInterrupt if none ended well."""
    ending = ceil(settings.shutdown_grace_ms / 1e3) + END_SECONDS_MAX
    deadline = time.monotonic() + settings.shutdown_drain_ms / 1e3 + ending
    first = received.recv(1, socket.MSG_PEEK)[0]
    while alive := [worker for worker in workers if worker.is_alive()]:
        ready = wait([received, *(worker.sentinel for worker in alive)], timeout=deadline - time.monotonic())
        for number in received.recv(RECEIVED_BYTES_MAX) if received in ready else b"":
            if number != signal.SIGTERM:  # no drain period
                deadline = min(deadline, time.monotonic() + ending)
            for worker in alive:
                os.kill(worker.ident or 0, number)
        if time.monotonic() > deadline:
            for worker in alive:
                worker.kill()
                worker.join()
            raise StartError(f"Workers killed, since they did not end within {ending} seconds: {len(alive)}.")
    if all(worker.exitcode for worker in workers):
        raise KeyboardInterrupt(first)


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
    interruption.handle(lambda number, _: sys.exit(interruption.end_by(number)))  # until the server takes over
    signal.pthread_sigmask(signal.SIG_UNBLOCK, interruption.SIGNALS)
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
