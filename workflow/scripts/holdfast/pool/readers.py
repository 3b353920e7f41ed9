"""The reader processes as the supervisor sees them: CPU work on samples beside the devices.

When a reader dies, everything that the readers had at hand is lost, and nobody knows whose fault it was. It is all
done again, one task at a time: what kills a reader then is to blame, and only that fails.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from ..errors import ResourceError
from ..processes import beside

log = logging.getLogger("holdfast.readers")


@dataclass(eq=False)
class Task:
    """A call for a reader.

    Attributes:
        function: What is called, in a reader.
        arguments: With these.
        about: What the caller needs to know it by.
        alone: Whether no other task may run beside it.
        future: Its result and seconds, once it is at a reader.
        generation: Of the processes that it was given to.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    about: Any
    alone: bool = False
    future: Future[tuple[Any, float]] | None = None
    generation: int = 0


@dataclass(frozen=True)
class Done:
    """A task that has ended: with its result and the seconds it took, or with an error."""

    function: Callable[..., Any]
    about: Any
    result: Any = None
    seconds: float = 0.0
    error: BaseException | None = None


class Readers:
    """A set of reader processes."""

    def __init__(self, count: int) -> None:
        """Make the set without processes; ``count`` of them."""
        self._count = count
        self._running: list[Task] = []
        self._waiting: deque[Task] = deque()
        self._generation = 0

    def start(self) -> None:
        """Start the processes."""
        self._executor = beside(self._count)
        self._generation += 1

    def stop(self) -> None:
        """Close the set, whose processes have ended or been killed."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    @property
    def room(self) -> bool:
        """Whether another sample would soon be read."""
        return not self._waiting and len(self._running) < 2 * self._count

    @property
    def futures(self) -> list[Future[Any]]:
        """What :meth:`poll` will have something to say of, once one of them is done."""
        return [task.future for task in self._running if task.future]

    def send(self, function: Callable[..., Any], arguments: tuple[Any, ...], about: Any) -> None:
        """Have ``function(*arguments)`` called in a reader; :meth:`poll` gives what came of it, with ``about``."""
        task = Task(function, arguments, about)
        if self._waiting or any(running.alone for running in self._running):
            task.alone = True
            self._waiting.append(task)
        else:
            self._launch(task)

    def poll(self) -> Iterator[Done]:
        """The tasks that have ended since the last call, in the order in which they were begun."""
        for task in [task for task in self._running if task.future and task.future.done()]:
            self._running.remove(task)
            done = self._end(task)
            if done is not None:
                yield done
            if self._waiting and not self._running:
                self._launch(self._waiting.popleft())

    def _launch(self, task: Task) -> None:
        try:
            task.future = self._executor.submit(_timed, task.function, task.arguments)
        except BrokenProcessPool:  # one died with nothing to do
            self.start()
            task.future = self._executor.submit(_timed, task.function, task.arguments)
        task.generation = self._generation
        self._running.append(task)

    def _end(self, task: Task) -> Done | None:
        """What came of a task whose future is done; None if it has to be done again."""
        if task.future is None:
            raise ValueError("a task that was never begun")
        error = task.future.exception()
        if error is None:
            return Done(task.function, task.about, *task.future.result())
        if not isinstance(error, BrokenProcessPool):
            return Done(task.function, task.about, error=error)
        if task.generation == self._generation:
            log.error("a reader process died; its samples are read again, one at a time")
            self.start()
        if task.alone:
            lost = ResourceError("the process that read or wrote the sample died, twice; out of memory?")
            return Done(task.function, task.about, error=lost)
        task.alone = True
        self._waiting.append(task)
        return None


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
    began = time.perf_counter()
    return function(*arguments), time.perf_counter() - began
