"""Processes that work beside this one and end with it."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess


def beside(count: int) -> ProcessPoolExecutor:
    """Processes for tasks, started as they are needed, by ``spawn``: a fork of a process with threads may hang.

    Signals are the business of this process. However it goes, they end at once, so that nothing is held or written on.
    """
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_guard)


def _guard() -> None:
    """Initialise one of them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
