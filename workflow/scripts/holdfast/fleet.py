"""The fleet: the devices of a pool, and what is in the air between ledger and workers.

Batches go out to devices and come back as vectors, or not. A worker that dies over a batch is replaced with the models
loaded again; the batch is tried once more, elsewhere if there is an elsewhere, then in halves, until the sequence that
kills is alone, and given up. A batch that the device has no memory for is halved, and so is the budget from then on. A
device that fails three times in a row is retired.
"""

import logging
import multiprocessing
import os
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from . import worker
from .batching import Batch
from .device import STRIKES, Device, Flight
from .errors import ResourceError, WeightsError
from .ledger import Job, Ledger
from .progress import Speed
from .settings import PoolSettings
from .worker import Ready, WorkerSettings

BATCHES_AHEAD = 2
LINGER_S = 0.03
"""While samples are being read, an idle device waits so long for a batch that is not full: tiny samples then share one,
which costs little more than a batch of one of them. A device with enough to do never waits."""

log = logging.getLogger("holdfast.fleet")


class Fleet:
    """The devices of a pool.

    Attributes:
        devices: In use or retired.
        ledger: Where batches come from and vectors go; None until the first worker is ready.
        report: What the first worker that became ready said; None until then.
        speed: How fast batches come back.
        totals: Batches, sequences, tokens and seconds of device work so far, seconds in which devices were ready while
            a job was open, and batches that had to be repeated.
    """

    def __init__(
        self,
        settings: PoolSettings,
        directories: dict[str, Path],
        when: Callable[..., None],
        ready: Callable[[Ready], None],
        complete: Callable[[Job], None],
    ) -> None:
        """Make the fleet without workers.

        Args:
            settings: Of the pool.
            directories: Prepared model directories by model.
            when: ``when(future, then, *what)`` calls ``then(future, *what)`` from the supervisor's loop.
            ready: Called once, when the first worker is ready; it opens the ledger.
            complete: Called with every job that lacks nothing any more.
        """
        self.settings = settings
        self.devices: list[Device] = []
        self.ledger: Ledger | None = None
        self.report: Ready | None = None
        self.speed = Speed()
        self.totals: dict[str, float] = defaultdict(float)
        self._directories = directories
        self._when = when
        self._ready = ready
        self._complete = complete
        self._again: deque[Flight] = deque()

    @property
    def in_air(self) -> bool:
        """Whether any device has a batch."""
        return any(device.flights for device in self.devices)

    @property
    def tokens_out(self) -> int:
        """Tokens of the batches that are at a device, or have to be tried again."""
        flights = [*self._again, *(flight for device in self.devices for flight in device.flights)]
        return sum(flight.batch.tokens for flight in flights)

    def start(self) -> None:
        """Start a worker on every device to use.

        Raises:
            ResourceError: a GPU was asked for and is not there.
        """
        settings = self.settings
        names = self._device_names()
        for name in names:
            told = WorkerSettings(
                name=name,
                models=self._directories,
                precision=settings.precision,
                threads=max(1, settings.threads // len(names)),
                allocator=settings.allocator,
                memory_fraction=settings.memory_fraction,
                cache_clear_interval=settings.cache_clear_interval,
            )
            self.devices.append(Device(told, settings.max_tasks_per_worker))
        log.info("loading %s on %s", ", ".join(self._directories), ", ".join(names))
        for device in self.devices:
            self._when(device.start(), self._loaded, device)

    def _device_names(self) -> list[str]:
        """The devices to use; a GPU that was asked for and is not there is an error, never a slow surprise."""
        settings = self.settings
        processors = [f"cpu:{number}" for number in range(settings.cpu_workers)]
        if settings.device == "cpu":
            return processors
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=worker.guard) as probe:
            visible = probe.submit(worker.count_devices).result()
        wanted = settings.gpu or (visible if visible or settings.device == "auto" else 1)
        if wanted > visible:
            mask = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise ResourceError(
                f"{wanted} GPU(s) asked for (--resources gpu=N, pool.device), but torch sees {visible} CUDA device(s)"
                + ("" if mask is None else f" with CUDA_VISIBLE_DEVICES={mask}")
                + "; ask for fewer, or set pool.device: cpu and leave --resources gpu out"
            )
        if not visible:
            log.warning("no CUDA device is visible and none was asked for: working on the CPU")
            return processors
        return [f"cuda:{number}" for number in range(wanted)]

    def stop(self) -> None:
        """Close the devices, whose workers have ended or been killed."""
        for device in self.devices:
            device.stop()

    def check(self) -> None:
        """Kill workers that hang; they are then replaced like dead ones."""
        for device in self.devices:
            if device.overdue(self.settings.batch_timeout_s, self.settings.tokens_per_batch):
                log.error("%s: no answer for longer than pool.batch_timeout_s allows: killing the worker", device.name)
                device.kill()

    def dispatch(self, more: bool) -> None:
        """Keep two batches at every device, one in work and one to follow; only an idle device gets one not full.

        A batch over which a worker has died travels alone, so that the next death is known to be its own.

        Args:
            more: Whether samples are being read, so that more sequences will come soon.
        """
        if self.ledger is None:
            return
        for device in self.devices:
            if device.worn and device.ready and not device.flights:
                log.info("%s: renewing the worker after %d batches", device.name, device.max_tasks)
                device.stop()
                self._when(device.start(), self._loaded, device)
            while device.ready and not device.worn and len(device.flights) < BATCHES_AHEAD:
                flight = self.choose(device, self.ledger, more)
                if flight is None:
                    break
                try:
                    future = device.submit(flight, self.ledger.tokens(flight.batch))
                except BrokenProcessPool:  # it died with nothing to do
                    log.error("%s: the worker died while it was idle", device.name)
                    self._again.append(flight)
                    self._replace(device, "the worker died while it was idle", strike=True)
                    break
                self._when(future, self._landed, device, flight)

    def choose(self, device: Device, ledger: Ledger, more: bool) -> Flight | None:
        """What to send to a device: first what has to be tried again, a suspect on another device if there is one."""
        if any(flight.failures for flight in device.flights):
            return None
        others = [other for other in self.devices if other is not device and not other.retired]
        for flight in self._again:
            if flight.failures and flight.last is device and others:
                continue
            if flight.failures and device.flights:
                return None  # nothing more until this device is empty, for the suspect's turn to come
            self._again.remove(flight)
            return flight
        batch = ledger.next_batch(partial=not device.flights and not (more and device.idle_s() < LINGER_S))
        return None if batch is None else Flight(batch)

    def _loaded(self, future: Future[Ready], device: Device) -> None:
        error = future.exception()
        if isinstance(error, WeightsError):
            raise error
        if error is not None:
            died = isinstance(error, BrokenProcessPool)
            self._replace(device, "the worker died while loading, out of memory?" if died else str(error), strike=True)
            return
        report = device.ready = device.known = future.result()
        log.info("%s: %s ready after %.1f s, %s", device.name, report.device_name, report.load_s, report.precision)
        if self.ledger is None:
            self.report = report
            self._ready(report)

    def _landed(self, future: Future[Any], device: Device, flight: Flight) -> None:
        if self.ledger is None or flight not in device.flights:
            return  # the worker died over the batch before this one, which has been taken back
        error = future.exception()
        if error is None:
            device.landed(flight)
            device.strikes = 0
            device.tokens += flight.batch.tokens
            vectors, seconds = future.result()
            for name, value in (("batches", 1), ("sequences", len(flight.batch)), ("tokens", flight.batch.tokens)):
                self.totals[name] += value
            self.totals["device_s"] += seconds
            self.speed.add(device.name, flight.batch.tokens, seconds)
            self._finish(self.ledger.settle(flight.batch, vectors, seconds))
        elif isinstance(error, worker.OutOfMemory):
            device.landed(flight)
            self._halve(device, flight.batch, self.ledger)
        else:
            died = isinstance(error, BrokenProcessPool)
            reason = "the worker died" if died else f"{type(error).__name__}: {' '.join(str(error).split())}"
            self._crashed(device, reason, self.ledger)

    def _finish(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._complete(job)

    def _halve(self, device: Device, batch: Batch, ledger: Ledger) -> None:
        """Halve a batch that the device has no memory for, and make no more batches of that size."""
        if len(batch) == 1:
            reason = f"{device.name} has no memory for its {batch.tokens} tokens, even alone"
            log.error("a sequence is given up: %s", reason)
            self._finish(ledger.give_up(batch, reason))
            return
        budget = ledger.shrink(batch.model, batch.tokens // 2)
        log.warning(
            "%s: no memory for %d tokens; %s has a budget of %d now", device.name, batch.tokens, batch.model, budget
        )
        self._again.extend(Flight(half) for half in batch.halves())

    def _crashed(self, device: Device, reason: str, ledger: Ledger) -> None:
        """Take back what was at a worker that died: the batch in work is suspect, the one behind it is not."""
        suspect, *behind = device.flights
        device.flights.clear()
        self._again.extend(behind)
        self.totals["repeated_batches"] += 1
        batch = suspect.batch
        log.error("%s: %s over a batch of %d sequences, %d tokens", device.name, reason, len(batch), batch.tokens)
        first = suspect.failures == 0
        if first:
            self._again.append(Flight(batch, failures=1, last=device))
        elif len(batch) > 1:
            self._again.extend(Flight(half, failures=1, last=device) for half in batch.halves())
        else:
            log.error("a sequence is given up: %s over it, alone", reason)
            self._finish(ledger.give_up(batch, f"{reason} over it on {device.name}, in company and alone"))
        self._replace(device, reason, strike=first)

    def _replace(self, device: Device, reason: str, strike: bool) -> None:
        """Give a device a new worker, or retire it."""
        device.stop()
        device.strikes += strike
        if not device.retired:
            self._when(device.start(), self._loaded, device)
            return
        log.error("%s: retired after %d failures in a row, the last: %s", device.name, STRIKES, reason)
        if all(other.retired for other in self.devices):
            raise ResourceError(f"no device is left; {device.name} failed {STRIKES} times in a row, the last: {reason}")
