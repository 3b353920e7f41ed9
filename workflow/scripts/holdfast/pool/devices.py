"""The devices of a pool: a worker process on each, the batches at the workers, and what comes back from them.

:meth:`Devices.dispatch` sends batches out, :meth:`Devices.poll` says what has happened since: vectors have come back, a
batch was too large, a sequence is given up. A worker that dies over a batch is replaced, its models loaded again; the
batch is tried once more, elsewhere if there is an elsewhere, then in halves, until the sequence that kills is alone,
and given up. A device that fails three times in a row is retired.
"""

import logging
import os
import signal
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ResourceError, WeightsError
from ..processes import beside
from ..spool.progress import DeviceProgress, Speed
from . import worker
from .batches import Batch, Embedded, Event, GivenUp, TooLarge
from .hardware import read_sensors
from .ledger import Ledger
from .settings import PoolSettings
from .worker import OutOfMemory, Ready, WorkerSettings

BATCHES_AHEAD = 2
LINGER_S = 0.03
"""While samples are being read, an idle device waits so long for a batch that is not full: tiny samples then share one,
which costs little more than a batch of one of them. A device with enough to do never waits."""
STRIKES = 3

log = logging.getLogger("holdfast.devices")


@dataclass(eq=False)
class Dispatch:
    """A batch on its way.

    Attributes:
        batch: What is to be embedded.
        failures: How many workers have died or hung over it.
        last: The device of the last of them.
        path: Where its block will be, once it is at a worker.
        future: What :func:`.worker.embed` will give then.
    """

    batch: Batch
    failures: int = 0
    last: "Device | None" = None
    path: Path = Path()
    future: Future[float] | None = None


class Device:
    """One device and the worker on it, a process pool of one, started by spawn and bound to the device for life.

    Attributes:
        at_worker: What has been sent, the batch in work first.
        loading: What :func:`.worker.start` will give while the models are loaded.
        ready: The worker's report; None while it loads.
        known: The last report of a worker; None until the first.
        restarts: Workers that have ended.
        tokens: Tokens that have been embedded here.
        strikes: Failures that may be the device's own, in a row; at :data:`STRIKES` it is retired.
    """

    def __init__(self, settings: WorkerSettings, max_tasks: int | None) -> None:
        """Make a device without a worker.

        Args:
            settings: Of its workers.
            max_tasks: Batches after which the worker is renewed; None never.
        """
        self.settings = settings
        self.max_tasks = max_tasks
        self.at_worker: deque[Dispatch] = deque()
        self.loading: Future[Ready] | None = None
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
        readings = read_sensors(uuid) or (None, None, None, None)
        return DeviceProgress(self.name, title, state, self.restarts, round(busy, 3), self.tokens, *readings)

    def start(self) -> None:
        """Start a worker, which loads the models."""
        self._executor = beside(1)
        self._process = self._executor.submit(os.getpid)
        self._tasks = 0
        self._since = time.monotonic()
        self.loading = self._executor.submit(worker.start, self.settings)

    def send(self, dispatch: Dispatch, tokens: np.ndarray, digests: bytes, path: Path) -> None:
        """Send a batch to the worker.

        Args:
            dispatch: The batch.
            tokens: Its sequences one behind the other, int16 [T].
            digests: SHA-256 of the tokens of each.
            path: Where its block goes.

        Raises:
            BrokenProcessPool: the worker has died meanwhile.
        """
        if self._executor is None:
            raise ValueError(f"{self.name} has no worker")
        batch, dispatch.path = dispatch.batch, path
        dispatch.future = self._executor.submit(worker.embed, batch.recipe, tokens, batch.lengths, digests, path)
        if not self.at_worker:
            self._since = time.monotonic()
        self.at_worker.append(dispatch)
        self._tasks += 1

    def take_back(self) -> Dispatch:
        """The batch that was in work, which has come back; the next one is in work now."""
        self._since = time.monotonic()
        return self.at_worker.popleft()

    def idle_s(self) -> float:
        """Seconds for which a device that has no batch has had none."""
        return time.monotonic() - self._since

    def overdue(self, limit_s: float, budgets: Mapping[str, int]) -> bool:
        """Whether the load, or the batch in work, takes longer than ``limit_s`` for every budget of its model."""
        if self._executor is None or (self.ready and not self.at_worker):
            return False
        times = 1.0
        if self.at_worker:
            batch = self.at_worker[0].batch
            times = max(times, batch.tokens / budgets[batch.recipe.weights_sha256])
        return time.monotonic() - self._since > limit_s * times

    def kill(self) -> None:
        """Kill the worker; what is at it then fails as if it had died by itself."""
        self._since = time.monotonic()  # its death is noticed a moment later, and must not be brought about twice
        if self._process is not None and self._process.done() and self._process.exception() is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.result(), signal.SIGKILL)

    def stop(self) -> None:
        """End the worker; what is at it must have come back, or the worker must have been killed."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self.restarts += 1
        self._executor = self._process = self.loading = self.ready = None


class Devices:
    """The devices of a pool.

    Attributes:
        devices: In use or retired.
        load_s: Seconds that the first worker took to load the models; 0 until then.
        speed: How fast batches come back.
        totals: Batches, sequences, tokens and seconds of device work so far, and batches that had to be repeated.
    """

    def __init__(self, settings: PoolSettings, models: dict[str, Path], precision: str) -> None:
        """Begin with no device.

        Args:
            settings: Of the pool.
            models: Directory of each prepared model.
            precision: What they compute in, ``fp32`` or ``fp16``.
        """
        self.devices: list[Device] = []
        self.load_s = 0.0
        self.speed = Speed()
        self.totals: dict[str, float] = defaultdict(float)
        self._settings = settings
        self._models = models
        self._precision = precision
        self._again: deque[Dispatch] = deque()

    def add(self, names: list[str]) -> None:
        """Add devices without workers, by their names, such as ``cuda:0``."""
        settings = self._settings
        self.devices += [
            Device(
                WorkerSettings(
                    name=name,
                    models=self._models,
                    precision=self._precision,
                    threads=max(1, settings.threads // len(names)),
                    allocator=settings.allocator,
                    memory_fraction=settings.memory_fraction,
                    cache_clear_interval=settings.cache_clear_interval,
                ),
                settings.max_tasks_per_worker,
            )
            for name in names
        ]

    def start(self, names: list[str]) -> None:
        """Start a worker on every device of these names, such as ``cuda:0``."""
        self.add(names)
        for device in self.devices:
            log.info("loading %s on %s", ", ".join(self._models), device.name)
            device.start()

    def stop(self) -> None:
        """Close the devices, whose workers have ended or been killed."""
        for device in self.devices:
            device.stop()

    @property
    def ready(self) -> list[Ready]:
        """The reports of the workers that are ready."""
        return [device.ready for device in self.devices if device.ready]

    @property
    def at_work(self) -> bool:
        """Whether any device has a batch."""
        return any(device.at_worker for device in self.devices)

    @property
    def tokens_out(self) -> int:
        """Tokens of the batches that are at a device, or have to be tried again."""
        sent = [*self._again, *(dispatch for device in self.devices for dispatch in device.at_worker)]
        return sum(dispatch.batch.tokens for dispatch in sent)

    @property
    def futures(self) -> list[Future[Any]]:
        """What :meth:`poll` will have something to say of, once one of them is done."""
        loading = [device.loading for device in self.devices]
        sent = [dispatch.future for device in self.devices for dispatch in list(device.at_worker)[:1]]
        return [future for future in (*loading, *sent) if future]

    def progress(self) -> list[DeviceProgress]:
        """The devices for others to see."""
        return [device.progress(self.speed.busy(device.name)) for device in self.devices]

    def dispatch(self, ledger: Ledger, more: bool) -> None:
        """Keep two batches at every device, one in work and one to follow; only an idle device gets one not full.

        A batch over which a worker has died travels alone, so that the next death is known to be its own.

        Args:
            ledger: Where batches come from.
            more: Whether samples are being read, so that more sequences will come soon.
        """
        for device in self.devices:
            if device.worn and device.ready and not device.at_worker:
                log.info("%s: renewing the worker after %d batches", device.name, device.max_tasks)
                device.stop()
                device.start()
            while device.ready and not device.worn and len(device.at_worker) < BATCHES_AHEAD:
                dispatch = self.choose(device, ledger, more)
                if dispatch is None:
                    break
                try:
                    device.send(dispatch, *ledger.parcel(dispatch.batch))
                except BrokenProcessPool:  # it died with nothing to do
                    log.error("%s: the worker died while it was idle", device.name)
                    self._again.append(dispatch)
                    self._replace(device, "the worker died while it was idle", strike=True)

    def choose(self, device: Device, ledger: Ledger, more: bool) -> Dispatch | None:
        """What to send to a device: first what has to be tried again, a suspect on another device if there is one."""
        if any(dispatch.failures for dispatch in device.at_worker):
            return None
        others = [other for other in self.devices if other is not device and not other.retired]
        for dispatch in self._again:
            if dispatch.failures and dispatch.last is device and others:
                continue
            if dispatch.failures and device.at_worker:
                return None  # nothing more until this device is empty, for the suspect's turn to come
            self._again.remove(dispatch)
            return dispatch
        batch = ledger.next_batch(partial=not device.at_worker and not (more and device.idle_s() < LINGER_S))
        return None if batch is None else Dispatch(batch)

    def poll(self, budgets: Mapping[str, int]) -> Iterator[Event]:
        """Handle what workers have done since the last call, and say what concerns the ledger.

        Workers that hang are killed, which shows as their death a moment later.

        Raises:
            WeightsError: models that no worker can load.
            ResourceError: no device is left.
        """
        for device in self.devices:
            if device.loading and device.loading.done():
                self._loaded(device, device.loading)
            while device.at_worker and (future := device.at_worker[0].future) and future.done():
                yield from self._came_back(device, future)
            if device.overdue(self._settings.batch_timeout_s, budgets):
                log.error("%s: no answer for longer than pool.batch_timeout_s allows: killing the worker", device.name)
                device.kill()

    def _loaded(self, device: Device, future: Future[Ready]) -> None:
        device.loading = None
        error = future.exception()
        if isinstance(error, WeightsError):
            raise error
        if error is not None:
            died = isinstance(error, BrokenProcessPool)
            self._replace(device, "the worker died while loading, out of memory?" if died else str(error), strike=True)
            return
        report = device.ready = device.known = future.result()
        self.load_s = self.load_s or report.load_s
        precision = device.settings.precision
        log.info("%s: %s ready after %.1f s, %s", device.name, report.device_name, report.load_s, precision)

    def _came_back(self, device: Device, future: Future[float]) -> Iterator[Event]:
        """Handle the end of the batch in work, good or bad."""
        error = future.exception()
        if error is None:
            done = device.take_back()
            batch, path, seconds = done.batch, done.path, future.result()
            device.strikes = 0
            device.tokens += batch.tokens
            self.speed.add(device.name, batch.tokens, seconds)
            work = {"batches": 1, "sequences": len(batch), "tokens": batch.tokens, "device_s": seconds}
            self.totals |= {name: self.totals[name] + value for name, value in work.items()}
            yield Embedded(batch, path, seconds)
        elif isinstance(error, OSError):  # the block cannot be written
            raise error
        elif isinstance(error, OutOfMemory):
            batch = device.take_back().batch
            if len(batch) > 1:
                self._again.extend(Dispatch(half) for half in batch.halves())
                yield TooLarge(batch, device.name)
            else:
                yield GivenUp(
                    batch, "too_long", f"{device.name} has no memory for its {batch.tokens} tokens, even alone"
                )
        else:
            died = isinstance(error, BrokenProcessPool)
            reason = "the worker died" if died else f"{type(error).__name__}: {' '.join(str(error).split())}"
            yield from self._crashed(device, reason)

    def _crashed(self, device: Device, reason: str) -> Iterator[Event]:
        """Take back what was at a worker that died: the batch in work is suspect, the one behind it is not."""
        suspect, *behind = device.at_worker
        device.at_worker.clear()
        self._again.extend(behind)
        self.totals["repeated_batches"] += 1
        batch = suspect.batch
        log.error("%s: %s over a batch of %d sequences, %d tokens", device.name, reason, len(batch), batch.tokens)
        first = suspect.failures == 0
        self._replace(device, reason, strike=first)
        if first:
            self._again.append(Dispatch(batch, failures=1, last=device))
        elif len(batch) > 1:
            self._again.extend(Dispatch(half, failures=1, last=device) for half in batch.halves())
        else:
            yield GivenUp(batch, "failed", f"{reason} over it on {device.name}, in company and alone")

    def _replace(self, device: Device, reason: str, strike: bool) -> None:
        """Give a device a new worker, or retire it."""
        device.stop()
        device.strikes += strike
        if not device.retired:
            device.start()
            return
        log.error("%s: retired after %d failures in a row, the last: %s", device.name, STRIKES, reason)
        if all(other.retired for other in self.devices):
            raise ResourceError(f"no device is left; {device.name} failed {STRIKES} times in a row, the last: {reason}")
