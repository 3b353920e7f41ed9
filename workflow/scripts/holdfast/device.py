"""A device as the supervisor sees it: its worker process, what is in flight there, how often it has failed.

The worker is a process pool of one, started by spawn, so it is bound to the device for life, and its death is noticed
as ``BrokenProcessPool`` instead of a wait. A worker that has died, hangs or is worn is replaced by a new one.
"""

import multiprocessing
import os
import signal
import time
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import sensors, worker
from .batching import Batch
from .progress import DeviceProgress
from .worker import Ready, WorkerSettings

STRIKES = 3


@dataclass(eq=False)
class Flight:
    """A batch on its way.

    Attributes:
        batch: What is to be embedded.
        failures: How many workers have died or hung over it.
        last: The device of the last of them.
    """

    batch: Batch
    failures: int = 0
    last: "Device | None" = None


class Device:
    """One device and the worker on it.

    Attributes:
        flights: What is at the worker, the batch in work first.
        ready: The worker's report; None while it loads.
        known: The last report of a worker; None until the first.
        restarts: Workers that have ended.
        tokens: Tokens that have been embedded here.
        strikes: Failures that may be the device's own, in a row; at :data:`STRIKES` it is retired.
    """

    def __init__(self, settings: WorkerSettings, max_tasks: int | None) -> None:
        """Make a device without a worker.

        Args:
            settings: What the worker is told.
            max_tasks: Batches after which the worker is renewed; None never.
        """
        self.settings = settings
        self.max_tasks = max_tasks
        self.flights: deque[Flight] = deque()
        self.ready: Ready | None = None
        self.known: Ready | None = None
        self.tokens = 0
        self.strikes = 0
        self.restarts = 0
        self._executor: ProcessPoolExecutor | None = None
        self._process: Future[int] | None = None
        self._tasks = 0
        self._since = 0.0

    @property
    def name(self) -> str:
        """Name of the device, such as ``cuda:0``."""
        return self.settings.name

    @property
    def retired(self) -> bool:
        """Whether the device has failed too often in a row to be trusted."""
        return self.strikes >= STRIKES

    @property
    def worn(self) -> bool:
        """Whether the worker has done its number of batches and gets no more."""
        return self.max_tasks is not None and self._tasks >= self.max_tasks

    def progress(self, busy: float) -> DeviceProgress:
        """The device for others to see, ``busy`` for so much of the time."""
        state = "retired" if self.retired else "ready" if self.ready else "loading"
        title, uuid = (self.known.device_name, self.known.uuid) if self.known else ("", "")
        told = sensors.read(uuid) or (None, None, None, None)
        return DeviceProgress(self.name, title, state, self.restarts, round(busy, 3), self.tokens, *told)

    def start(self) -> Future[Ready]:
        """Start a worker; the future completes when its models are loaded."""
        self._executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=worker.guard)
        self._process = self._executor.submit(os.getpid)
        self._tasks = 0
        self._since = time.monotonic()
        return self._executor.submit(worker.start, self.settings)

    def submit(self, flight: Flight, tokens: np.ndarray) -> Future[Any]:
        """Send a batch; the future gives what :func:`worker.embed` does.

        Raises:
            BrokenProcessPool: the worker has died meanwhile.
        """
        if self._executor is None:
            raise ValueError(f"{self.name} has no worker")
        future = self._executor.submit(worker.embed, flight.batch.model, tokens, flight.batch.lengths)
        if not self.flights:
            self._since = time.monotonic()
        self.flights.append(flight)
        self._tasks += 1
        return future

    def landed(self, flight: Flight) -> None:
        """Note that a batch has come back."""
        self.flights.remove(flight)
        self._since = time.monotonic()

    def idle_s(self) -> float:
        """Seconds for which a device that has no batch has had none."""
        return time.monotonic() - self._since

    def overdue(self, limit_s: float, budget_tokens: int) -> bool:
        """Whether the load, or the batch in work, takes longer than ``limit_s`` for every ``budget_tokens`` of it."""
        if self._executor is None or (self.ready and not self.flights):
            return False
        share = max(1.0, self.flights[0].batch.tokens / budget_tokens) if self.flights else 1.0
        return time.monotonic() - self._since > limit_s * share

    def kill(self) -> None:
        """Kill the worker; what is in flight then fails as if it had died by itself."""
        self._since = time.monotonic()  # its death is noticed a moment later, and must not be brought about twice
        if self._process is not None and self._process.done() and self._process.exception() is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.result(), signal.SIGKILL)

    def stop(self) -> None:
        """End the worker; what is in flight must have landed, or the worker must have been killed."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self.restarts += 1
        self._executor = self._process = self.ready = None
