"""The pool's supervisor: takes jobs from the spool, has them read, embedded and written, and leaves receipts.

One loop in one thread, without torch. A job goes claimed → reading (a reader process) → waiting for vectors (batches
on devices) → finishing (a reader process) → receipt. Sequences of all open jobs share the batches; vectors come back
into :mod:`blocks` on disk before anything counts them as done.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from . import prepared, reader, status, worker
from .batching import WINDOW_BATCHES, Batch, Queue
from .blocks import BlockStore
from .device import Device
from .errors import HoldfastError, ResourceError
from .manifest import Manifest
from .receipt import Receipt
from .sequences import Sequences
from .settings import PoolSettings
from .spool import Spool
from .status import Observer, PoolState

POLL_S = 0.05
BEAT_S = 1.0
TAKE_OVER_S = 10.0
BATCHES_AHEAD = 2

log = logging.getLogger("holdfast.pool")


@dataclass
class Job:
    """An open job."""

    number: int
    manifest: Manifest
    directory: Path
    claimed: float
    counts: dict[str, int] = field(default_factory=dict)
    sequences: dict[str, Sequences] = field(default_factory=dict)
    missing: int = 0
    read_s: float = 0.0
    device_s: float = 0.0


class Pool:
    """The supervisor of one pool."""

    def __init__(self, settings: PoolSettings, state: PoolState, endpoint: Path) -> None:
        """Prepare a pool that serves ``state.spool`` as long as ``endpoint`` exists.

        Raises:
            HoldfastError: the spool or a prepared model cannot be used.
        """
        self.settings = settings
        self.state = state
        self.endpoint = endpoint
        self.name = state.identity.pool
        self.spool = Spool(state.spool)
        self.models = {model: prepared.read(directory) for model, directory in settings.models.items()}
        self.directories = {model: Path(directory).absolute() for model, directory in settings.models.items()}
        self.queues = {model: Queue(model, settings.tokens_per_batch) for model in self.models}
        self.stores: dict[str, BlockStore] = {}
        self.waiters: dict[str, dict[bytes, list[Job]]] = {model: {} for model in self.models}
        self.devices: list[Device] = []
        self.jobs: dict[int, Job] = {}
        self.futures: dict[Future[Any], tuple[Any, ...]] = {}
        self.held: list[Job] = []
        self.totals: dict[str, float] = defaultdict(float)
        self.observer = Observer()
        self.parent = os.getppid()
        self.stop_reason = ""
        self.last_work = time.monotonic()
        self.beaten = self.looked = 0.0
        self.number = 0
        self.precision = ""
        self.software: dict[str, str] = {}

    def run(self) -> None:
        """Serve until told to end; claims that are not finished by then go back to ``incoming/``."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: self._stop(signal.Signals(received).name))
        readers = 1 if self.settings.device == "cpu" else max(1, self.settings.threads - 1)
        with ProcessPoolExecutor(readers, multiprocessing.get_context("spawn"), initializer=_quiet) as executor:
            self.readers, self.reader_slots = executor, readers
            try:
                self._take_over()
                self._start_devices()
                self._loop()
            finally:
                for device in self.devices:
                    device.stop()
                executor.shutdown(wait=True, cancel_futures=True)
                returned = self.spool.give_back(self.name)
        if returned:
            log.info("%d unfinished jobs went back to the spool", returned)
        else:
            shutil.rmtree(self.spool.root / "blocks" / self.name, ignore_errors=True)

    def _stop(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason

    # Starting

    def _start_devices(self) -> None:
        for name in self._device_names():
            worker_settings = worker.WorkerSettings(
                device=name,
                models=self.directories,
                precision=self.settings.precision,
                threads=self.settings.threads,
                allocator=self.settings.allocator,
                memory_fraction=self.settings.memory_fraction,
                cache_clear_interval=self.settings.cache_clear_interval,
            )
            device = Device(worker_settings, self.settings.max_tasks_per_worker)
            self.devices.append(device)
            self._send(device.loading, "loading", device)
        log.info("loading %s on %s", ", ".join(self.models), ", ".join(d.settings.device for d in self.devices))

    def _device_names(self) -> list[str]:
        """The devices to use; a GPU that was asked for and is not there is an error, never a slow surprise."""
        settings = self.settings
        if settings.device == "cpu":
            return ["cpu"]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_quiet) as probe:
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
            return ["cpu"]
        return [f"cuda:{number}" for number in range(wanted)]

    def _take_over(self) -> None:
        """Return the claims of dead pools to the spool, and keep their blocks for the work that is repeated."""
        self.looked = time.monotonic()
        root = self.spool.root
        others = {path.stem for path in (root / "pools").glob("*.json")}
        others |= {path.name for place in ("claimed", "work", "blocks") for path in (root / place).iterdir()}
        for other in sorted(others - {self.name}):
            state = status.read(status.state_path(root, other))
            if state is None or self.observer.is_dead(state):
                returned = self.spool.give_back(other)
                for path in (root / "blocks" / other).glob("*/*.npy"):
                    mine = self._block_directory(path.parent.name) / path.name
                    mine.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    with suppress(FileNotFoundError):
                        os.rename(path, mine)
                shutil.rmtree(root / "blocks" / other, ignore_errors=True)
                status.state_path(root, other).unlink(missing_ok=True)
                if returned:
                    log.info("pool %s has ended: its %d unfinished jobs are taken over", other, returned)
        for store in self.stores.values():
            store.refresh()

    def _block_directory(self, key: str) -> Path:
        return self.spool.root / "blocks" / self.name / key

    # Working

    def _loop(self) -> None:
        while not self._ended():
            self._claim()
            self._dispatch()
            self._advance(POLL_S)
            self._beat()
        log.info("ending: %s", self.stop_reason)
        while any(device.in_flight for device in self.devices):
            self._advance(POLL_S)
            self._beat()

    def _ended(self) -> bool:
        now = time.monotonic()
        if self.jobs:
            self.last_work = now
        if not self.endpoint.exists():
            self._stop("the endpoint file is gone, nobody waits any more")
        elif os.getppid() != self.parent:
            self._stop("the process that started the pool is gone")
        elif self.settings.idle_timeout_s is not None and now - self.last_work > self.settings.idle_timeout_s:
            self._stop(f"idle for {self.settings.idle_timeout_s:g} s")
        return bool(self.stop_reason)

    def _claim(self) -> None:
        """Claim as many jobs as keep the readers and the devices busy, no more: others may want them, too."""
        reading = sum(task[0] == "reading" for task in self.futures.values())
        ahead_tokens = WINDOW_BATCHES * self.settings.tokens_per_batch * max(1, len(self.devices))
        for model, queue in self.queues.items():
            held = [job.sequences[model].lengths for job in self.held if model in job.sequences]
            if queue.waiting_tokens + sum(int(lengths.sum()) for lengths in held) > ahead_tokens:
                return
        if reading >= 2 * self.reader_slots:
            return
        for manifest in self.spool.claim(self.name):
            job = Job(self.number, manifest, self.spool.work_directory(self.name, manifest.job), time.monotonic())
            self.number += 1
            self.jobs[job.number] = job
            wrong = self._mismatch(manifest)
            if wrong:
                self._finish(job, wrong)
                continue
            self._send(self.readers.submit(_timed_read, manifest, job.directory, self.directories), "reading", job)
            reading += 1
            if reading >= 2 * self.reader_slots:
                return

    def _mismatch(self, manifest: Manifest) -> str:
        """Why this pool cannot do a job, or nothing: never mix models or precisions that were not asked for."""
        for model, digest in manifest.models.items():
            if model not in self.models:
                return f"the pool does not hold {model}, which kind {manifest.kind} needs"
            if self.models[model].weights_sha256 != digest:
                return (
                    f"the pool holds other weights of {model} ({self.models[model].weights_sha256[:12]}) than asked for"
                )
        if manifest.precision != self.settings.precision:
            return f"the pool computes in precision {self.settings.precision}, asked for was {manifest.precision}"
        return ""

    def _send(self, future: "Future[Any]", stage: str, *what: Any) -> None:
        self.futures[future] = (stage, *what)

    def _dispatch(self) -> None:
        """Keep two batches at every device, one in work and one to follow; only an idle device gets one not full."""
        for device in self.devices:
            if device.worn and not device.in_flight:
                log.info(
                    "%s: renewing the worker after %d batches",
                    device.settings.device,
                    self.settings.max_tasks_per_worker,
                )
                device.renew()
                self._send(device.loading, "loading", device)
            while device.ready and not device.worn and device.in_flight < BATCHES_AHEAD:
                batch = self._next_batch(partial=device.in_flight == 0)
                if batch is None:
                    break
                tokens = [
                    self.jobs[job].sequences[batch.model].tokens(number)
                    for job, number in zip(batch.jobs.tolist(), batch.sequences.tolist(), strict=True)
                ]
                future = device.submit(batch.model, np.concatenate(tokens), batch.lengths)
                self._send(future, "batch", device, batch)

    def _next_batch(self, partial: bool) -> Batch | None:
        """The next batch of the model whose oldest job is the oldest."""
        waiting = [(queue.oldest, queue) for queue in self.queues.values() if queue.oldest is not None]
        for _, queue in sorted(waiting, key=lambda entry: entry[0]):
            batch = queue.next(partial)
            if batch is not None:
                return batch
        return None

    def _advance(self, timeout_s: float) -> None:
        """Handle what has completed since the last call; wait for it at most ``timeout_s``."""
        if not self.futures:
            time.sleep(timeout_s)
            return
        for future in wait(self.futures, timeout_s, FIRST_COMPLETED).done:
            stage, *what = self.futures.pop(future)
            handlers: dict[str, Callable[..., None]] = {
                "loading": self._loaded,
                "reading": self._read,
                "batch": self._embedded,
                "finishing": self._finished,
            }
            handlers[stage](future, *what)

    def _loaded(self, future: "Future[worker.Ready]", device: Device) -> None:
        name = device.settings.device
        try:
            device.ready = future.result()
        except BrokenProcessPool:
            raise ResourceError(f"{name}: the worker died while loading the models; out of memory?") from None
        log.info(
            "%s: %s ready after %.1f s, %s", name, device.ready.device_name, device.ready.load_s, device.ready.precision
        )
        self.totals["load_s"] = max(self.totals["load_s"], device.ready.load_s)
        if not self.stores:
            self.precision, self.software = device.ready.precision, device.ready.software
            for model, description in self.models.items():
                directory = self._block_directory(f"{model}-{description.weights_sha256[:16]}-{self.precision}")
                self.stores[model] = BlockStore(directory, description.width, self.name)
                if len(self.stores[model]):
                    log.info("%d vectors of %s are left from an earlier run", len(self.stores[model]), model)
            held, self.held = self.held, []
            for job in held:
                self._admit(job)
        self.state.state = "ready"
        self._beat(now=True)

    def _read(self, future: "Future[tuple[dict[str, int], float]]", job: Job) -> None:
        try:
            job.counts, job.read_s = future.result()
        except BrokenProcessPool:
            raise ResourceError("a reader process died; out of memory?") from None
        except Exception as error:  # the boundary around one job: whatever its input does, the others go on
            self._finish(job, _explain(error))
            return
        job.sequences = {model: Sequences(job.directory, model) for model in job.manifest.models}
        if self.stores:
            self._admit(job)
        else:
            self.held.append(job)

    def _admit(self, job: Job) -> None:
        """Queue those sequences of a job that are neither on disk nor on their way for another job."""
        for model, sequences in job.sequences.items():
            store, waiters = self.stores[model], self.waiters[model]
            fresh = []
            for number, digest in enumerate(sequences.digests):
                if store.use(digest):
                    continue
                job.missing += 1
                if digest in waiters:
                    waiters[digest].append(job)
                else:
                    waiters[digest] = [job]
                    fresh.append(number)
            chosen = np.array(fresh, np.int64)
            self.queues[model].add(job.number, chosen, sequences.lengths[chosen])
            job.counts[f"{model}_sequences"] = len(sequences.digests)
            job.counts[f"{model}_tokens"] = int(sequences.lengths.sum())
        if not job.missing:
            self._complete(job)

    def _embedded(self, future: "Future[tuple[np.ndarray, float]]", device: Device, batch: Batch) -> None:
        device.in_flight -= 1
        try:
            vectors, seconds = future.result()
        except BrokenProcessPool:
            raise ResourceError(
                f"{device.settings.device}: the worker died in a batch of {batch.tokens} tokens"
            ) from None
        except RuntimeError as error:
            raise ResourceError(f"{device.settings.device}: a batch of {batch.tokens} tokens failed: {error}") from None
        device.busy_s += seconds
        waiters = self.waiters[batch.model]
        owners = [self.jobs[number] for number in batch.jobs.tolist()]
        numbers = batch.sequences.tolist()
        digests = [job.sequences[batch.model].digests[i] for job, i in zip(owners, numbers, strict=True)]
        self.stores[batch.model].add(digests, vectors, uses=sum(len(waiters[digest]) for digest in digests))
        for job, digest, length in zip(owners, digests, batch.lengths.tolist(), strict=True):
            job.device_s += seconds * length / batch.tokens
            for waiter in waiters.pop(digest):
                waiter.missing -= 1
                if not waiter.missing:
                    self._complete(waiter)
        self.totals["sequences"] += len(digests)
        self.totals["tokens"] += batch.tokens
        self.totals["batches"] += 1
        self.totals["device_s"] += seconds
        self.last_work = time.monotonic()

    def _complete(self, job: Job) -> None:
        """Have the embeddings of a job written, now that every vector is on disk."""
        places = {model: self.stores[model].locate(sequences.digests) for model, sequences in job.sequences.items()}
        descriptions = {model: self.models[model] for model in job.sequences}
        arguments = (job.manifest, job.directory, descriptions, places, self.precision, self.software)
        self._send(self.readers.submit(reader.finish_sample, *arguments), "finishing", job)

    def _finished(self, future: "Future[None]", job: Job) -> None:
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            raise ResourceError("a reader process died; out of memory?")
        self._finish(job, "" if error is None else _explain(error))
        for model, sequences in job.sequences.items():
            self.stores[model].release(sequences.digests)

    def _finish(self, job: Job, error: str) -> None:
        """Leave the receipt of a job; an empty ``error`` means done."""
        target = self.spool.root / "done" / job.manifest.job / reader.EMBEDDINGS_FILE
        outcome = Receipt(
            job=job.manifest.job,
            sample=job.manifest.sample,
            state="failed" if error else "done",
            error=error,
            embeddings="" if error else str(target),
            counts=job.counts,
            pool=self._describe(),
            seconds={
                "read_s": round(job.read_s, 3),
                "device_s": round(job.device_s, 3),
                "total_s": round(time.monotonic() - job.claimed, 3),
            },
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.spool.finish(self.name, outcome, job.directory)
        del self.jobs[job.number]
        self.totals["failed" if error else "done"] += 1
        if error:
            log.error("%s: failed: %s", job.manifest.sample, error)
        else:
            log.info("%s: done, %d rows in %.1f s", job.manifest.sample, job.counts["rows"], outcome.seconds["total_s"])

    def _describe(self) -> dict[str, str | float]:
        ready = [device.ready for device in self.devices if device.ready]
        return {
            "id": self.name,
            "devices": ", ".join(report.device_name for report in ready),
            "precision": ready[0].precision if ready else "",
            "load_s": round(self.totals["load_s"], 3),
        }

    def _beat(self, now: bool = False) -> None:
        """Publish the state about once a second, and look for dead pools now and then."""
        clock = time.monotonic()
        if now or clock - self.beaten > BEAT_S:
            self.beaten = clock
            self.state.beat += 1
            self.state.progress = {
                **self._describe(),
                **{name: round(value, 3) for name, value in self.totals.items()},
                "open_jobs": len(self.jobs),
                "waiting_jobs": len(self.spool.waiting()),
                "waiting_tokens": sum(queue.waiting_tokens for queue in self.queues.values()),
            }
            self.state.write()
        if clock - self.looked > TAKE_OVER_S:
            self._take_over()


def _explain(error: BaseException) -> str:
    """The message of a user's error; of anything else also its type, and the traceback in the log."""
    if isinstance(error, HoldfastError | OSError):
        return str(error)
    log.error("unexpected error", exc_info=error)
    return f"unexpected {type(error).__name__}: {error}; please report it with the pool's log"


def _quiet() -> None:
    """Initialise a reader: signals are the supervisor's business, and its end is the reader's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker.end_with_parent()


def _timed_read(manifest: Manifest, directory: Path, models: dict[str, Path]) -> tuple[dict[str, int], float]:
    began = time.perf_counter()
    return reader.read_sample(manifest, directory, models), time.perf_counter() - began


def serve(settings: PoolSettings, state: PoolState, endpoint: Path) -> None:
    """Run a pool to its end and publish how it ended.

    Raises:
        HoldfastError: why the pool could not start or go on; also published, for consumers to read.
    """
    log.info("pool %s, spool %s", state.identity.pool, state.spool)
    try:
        pool = Pool(settings, state, endpoint)
        pool.run()
        state.state, state.reason = "ended", pool.stop_reason
    except HoldfastError as error:
        state.state, state.reason = "failed", str(error)
        raise
    finally:
        if state.state not in ("ended", "failed"):
            state.state, state.reason = "failed", "unexpected error; see the pool's log"
        with suppress(OSError):
            state.write()
