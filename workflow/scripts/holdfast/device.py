"""A device as the supervisor sees it: its worker process, whether that is ready, what is in flight there.

The worker is a process pool of one, started by spawn, so it is bound to the device for life, and its death is noticed
as ``BrokenProcessPool`` instead of a wait.
"""

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np

from . import worker
from .worker import Ready, WorkerSettings


class Device:
    """One device and the worker on it."""

    def __init__(self, settings: WorkerSettings, max_tasks: int | None) -> None:
        """Start the worker; :attr:`loading` completes when its models are loaded.

        Args:
            settings: What the worker is told.
            max_tasks: Batches after which the worker is renewed; None never.
        """
        self.settings = settings
        self.max_tasks = max_tasks
        self.ready: Ready | None = None
        self.in_flight = 0
        self.busy_s = 0.0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(1, context, initializer=worker.start, initargs=(self.settings,))
        self.loading: Future[Ready] = self._executor.submit(worker.ready)
        self._tasks = 0

    def submit(self, model: str, tokens: np.ndarray, lengths: np.ndarray) -> "Future[tuple[np.ndarray, float]]":
        """Send a batch; see :func:`worker.embed`."""
        self.in_flight += 1
        self._tasks += 1
        return self._executor.submit(worker.embed, model, tokens, lengths)

    @property
    def worn(self) -> bool:
        """Whether the worker has done its number of batches and gets no more."""
        return self.max_tasks is not None and self._tasks >= self.max_tasks

    def renew(self) -> None:
        """Replace the worker, which has nothing in flight, by a new one."""
        self.stop()
        self.ready = None
        self._start()

    def stop(self) -> None:
        """Let the worker end after what is in flight, and wait for that."""
        self._executor.shutdown(wait=True, cancel_futures=True)
