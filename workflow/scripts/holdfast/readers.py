"""The reader processes as the supervisor sees them: CPU work on samples beside the devices.

When a reader dies, everything that the readers had at hand is lost, and nobody knows whose fault it was. It is all
done again, one task at a time: what kills a reader then is to blame, and only that fails.
"""

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from . import worker
from .errors import ResourceError

log = logging.getLogger("holdfast.readers")


@dataclass(eq=False)
class Task:
    """A call for a reader, and what to do with its result and seconds, or with its error."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    then: Callable[[Any, float], None]
    failed: Callable[[BaseException], None]
    alone: bool = False


class Readers:
    """A set of reader processes."""

    def __init__(self, count: int, when: Callable[..., None]) -> None:
        """Make the set without processes.

        Args:
            count: Processes.
            when: ``when(future, then, *what)`` calls ``then(future, *what)`` from the supervisor's loop.
        """
        self._count = count
        self._when = when
        self._running: set[Task] = set()
        self._waiting: deque[Task] = deque()
        self._generation = 0

    def start(self) -> None:
        """Start the processes."""
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(self._count, context, initializer=worker.guard)
        self._generation += 1

    def stop(self) -> None:
        """Close the set, whose processes have ended or been killed."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    @property
    def room(self) -> bool:
        """Whether another sample would soon be read."""
        return not self._waiting and len(self._running) < 2 * self._count

    def send(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        then: Callable[[Any, float], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Have ``function(*arguments)`` called in a reader."""
        task = Task(function, arguments, then, failed)
        if self._waiting or any(running.alone for running in self._running):
            task.alone = True
            self._waiting.append(task)
        else:
            self._launch(task)

    def _launch(self, task: Task) -> None:
        try:
            future = self._executor.submit(_timed, task.function, task.arguments)
        except BrokenProcessPool:  # one died with nothing to do
            self.start()
            future = self._executor.submit(_timed, task.function, task.arguments)
        self._running.add(task)
        self._when(future, self._done, task, self._generation)

    def _done(self, future: Future[tuple[Any, float]], task: Task, generation: int) -> None:
        self._running.discard(task)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            if generation == self._generation:
                log.error("a reader process died; its samples are read again, one at a time")
                self.start()
            if task.alone:
                task.failed(ResourceError("the process that read or wrote the sample died, twice; out of memory?"))
            else:
                task.alone = True
                self._waiting.append(task)
        elif error is not None:
            task.failed(error)
        else:
            task.then(*future.result())
        if self._waiting and not self._running:
            self._launch(self._waiting.popleft())


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
    began = time.perf_counter()
    return function(*arguments), time.perf_counter() - began
