"""The pool's supervisor: takes jobs from the spool, has them read, embedded and written, and leaves receipts.

One loop in one thread, without torch: claim, dispatch, poll. A job goes claimed → reading (a reader process) →
embedding (the :mod:`.ledger`, batches on :mod:`.devices`) → writing (a reader process) → receipt. Whatever dies on the
way, a worker or a reader, is replaced, and what it was doing is done again until the one that kills is found; see
docs/reliability.md.
"""

import errno
import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import HoldfastError, ResourceError
from ..models.registry import Prepared, read_prepared
from ..spool.job import Manifest, software
from ..spool.progress import History, LastErrors, Moment, Progress
from ..spool.spool import Spool
from ..spool.state import Launcher, Observer, PoolState, read_state, state_path
from .batches import WINDOW_BATCHES, Embedded, GivenUp, TooLarge, batch_budgets, make_recipe
from .claims import Claim, needed_memory
from .devices import Devices
from .distinct import DistinctSequences
from .exchange import Exchange
from .finish import EMBEDDINGS_FILE, copy_sample, finish_sample, join_parts
from .hardware import find_devices, torch_versions
from .ledger import Job, Ledger
from .readers import Done, Readers
from .sample import Contents, read_part, read_sample
from .settings import PoolSettings

SHORTEST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.25
PAUSE_SHARE = 0.01
"""Between two looks at the spool passes this share of the time since a job last came or went, within these limits."""
BEAT_S = 1.0
TAKE_OVER_S = 2.0
DRAIN_S = 7.0
PACKAGES = ("h5py", "numpy", "safetensors", "tokenizers")
NOT_THE_SAMPLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)

log = logging.getLogger("holdfast.pool")


class Supervisor:
    """The supervisor of one pool."""

    def __init__(self, settings: PoolSettings, state: PoolState, endpoint: Path, published: Callable[[], None]) -> None:
        """Prepare a pool that serves ``state.spool`` as long as ``endpoint`` exists; ``published`` is called each beat.

        Raises:
            HoldfastError: the spool, a prepared model or a device cannot be used.
        """
        self.settings, self.state, self.endpoint, self.published = settings, state, endpoint, published
        self.name = state.identity.pool
        self.spool = Spool(state.spool)
        self.directories = {model: Path(directory).absolute() for model, directory in settings.models.items()}
        self.models = {model: read_prepared(directory) for model, directory in self.directories.items()}
        state.models = {model: description.weights_sha256 for model, description in self.models.items()}
        self.held = {digest: model for model, digest in state.models.items()}
        state.precision, state.lease_s = settings.precision, settings.lease_s
        self.signal = self.stop_reason = ""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # under nohup it is to be ignored
            signal.signal(signal.SIGHUP, self._signalled)
        self.launcher, self.observer, self.errors = Launcher(), Observer(), LastErrors()
        self.history = History(self.spool.root / "pools" / f"{self.name}.tsv")
        found, self.precision = find_devices(settings)
        self.claim = Claim(settings, found, needed_memory(self.directories, self.precision))
        self.devices = Devices(settings, self.directories, self.precision)
        self.readers = Readers(1 if settings.device == "cpu" else max(1, settings.threads - 1))
        budgets = batch_budgets(self.models.values(), settings.tokens_per_batch, found[0].name)
        self.ledger = Ledger(budgets, self.precision, self._blocks, self.name)
        self.software = software(PACKAGES) | torch_versions()
        where = (self._blocks, state.identity, self.spool.root, self.software)
        self.cache = Exchange.open(settings.cache, self.precision, *where)
        self.jobs, self.number = dict[int, Job](), 0
        self.outcomes, self.read_bytes, self.read_tokens = Counter(done=0, failed=0), Counter[str](), Counter[str]()
        self.last_work = self.counted = time.monotonic()
        self.beaten = self.looked = self.ready_s = 0.0

    def run(self) -> None:
        """Serve until asked to end; claims that are not finished by then go back to ``incoming/``."""
        try:
            self._publish()
            self.spool.enroll(self.name)
            self._take_over()
            self.readers.start()
            self.devices.start(self.claim.wait(self.state, self._ended, self._beat))
            self.last_work = time.monotonic()
            while not self._ended():
                self._claim()
                self.devices.dispatch(self.ledger, more=any(job.is_unread for job in self.jobs.values()))
                self._poll()
                self._beat()
            self._drain()
        except FileNotFoundError:  # a directory of its own, in the middle of a write, when it wakes up too late
            self.spool.check_claims(self.name)
            raise
        finally:
            self._leave()

    def _signalled(self, number: int, _: object) -> None:
        self.signal = self.signal or signal.Signals(number).name

    def _stop(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason

    def _ended(self) -> bool:
        idle_s = time.monotonic() - self.last_work if self.devices.devices and not self.jobs else 0.0
        if self.signal:  # the ordinary end, if nothing is left undone: so Snakemake ends its services
            self._stop(self.signal.replace("SIGINT", "interrupted") if self.jobs else f"no job open at {self.signal}")
        elif not self.endpoint.exists():
            self._stop("the endpoint file is gone, nobody waits any more")
        elif self.launcher.is_gone():
            self._stop("the Snakemake that started the pool is gone")
        elif self.settings.idle_timeout_s is not None and idle_s > self.settings.idle_timeout_s:
            self._stop(f"idle for {self.settings.idle_timeout_s:g} s")
        return bool(self.stop_reason)

    def _drain(self) -> None:
        """Wait a while for the batches in work; what they give is kept for the next run."""
        log.info("ending: %s", self.stop_reason)
        until = time.monotonic() + DRAIN_S
        while self.devices.at_work and time.monotonic() < until:
            self._poll()
            self._beat()

    def _leave(self) -> None:
        """End every process, whatever it is doing, and hand back what is not finished."""
        with suppress(OSError):
            self._publish()
            self.history.write()
        for child in multiprocessing.active_children():
            child.kill()
        self.devices.stop()
        self.readers.stop()
        total = self._progress()
        log.info(
            "%d jobs done, %d failed; %d sequences of %d tokens in %d batches, %.1f s of work on devices",
            *(total.done, total.failed, total.sequences, total.tokens, total.batches, total.device_s),
        )
        others = [state for state in self.spool.living(self.observer) if state.identity.pool != self.name]
        returned = len(self.jobs) if others else self.spool.give_back(self.name)  # others take jobs with their vectors
        if returned:
            log.info("%d unfinished jobs went back to the spool, the vectors they have are kept", returned)
        else:
            shutil.rmtree(self._blocks, ignore_errors=True)

    @property
    def _blocks(self) -> Path:
        return self.spool.root / "blocks" / self.name

    def _take_over(self) -> None:
        """Return the claims of dead pools to the spool, and keep their blocks for the work that is repeated."""
        self.looked = time.monotonic()
        for other in self.spool.pools() - {self.name}:
            path = state_path(self.spool.root, other)
            state = read_state(path)
            if state is None and path.exists():
                continue  # of another version, or not readable just now: nobody can say that it is dead
            if state is None or state.state in ("ended", "failed") or self.observer.is_dead(state):
                returned = self.spool.give_back(other)
                blocks = self.spool.adopt_blocks(other, self._blocks)
                path.unlink(missing_ok=True)
                if returned or blocks:
                    log.info("pool %s is dead: took over %d jobs and %d blocks", other, returned, blocks)
        self.ledger.refresh()

    # From claim to receipt

    def _claim(self) -> None:
        """Claim as many jobs as keep readers and devices busy, and no more: other pools may want them, too."""
        ahead_tokens = WINDOW_BATCHES * max(self.ledger.budgets.values()) * len(self.devices.devices)
        if self.ledger.waiting_tokens > ahead_tokens or not self.readers.room:
            return
        for manifest in self.spool.claim(self.name, self._accepts):
            if any(job.manifest.job == manifest.job for job in self.jobs.values()):
                continue  # handed in again by another client, after it was claimed
            if not self.jobs:
                self.devices.speed.restart()
            part = self.spool.part_directory(manifest) if manifest.part >= 0 else None
            directory = part or self.spool.work_directory(self.name, manifest.job)
            job = self.jobs[self.number] = Job(self.number, manifest, directory, time.monotonic())
            self.number += 1
            self.last_work = time.monotonic()
            self._read(job, self.spool.twin(manifest))
            if not self.readers.room:
                return

    def _read(self, job: Job, twin: Path | None) -> None:
        """Have a job read, or copied from a finished one that was the same work, if there is one."""
        manifest, models = job.manifest, self._models_of(job.manifest)
        if manifest.part >= 0:
            self.readers.send(read_part, (manifest, job.directory, models, self.cache), job)
        elif twin is not None:
            self.readers.send(copy_sample, (manifest, job.directory, twin), job)
        else:
            self.readers.send(read_sample, (manifest, job.directory, models, self.precision, self.cache), job)

    def _accepts(self, job: Manifest) -> bool:
        """Whether a job is for this pool: its models, and for a part of a sample what the others are computed in."""
        return self.state.serves(job.weights, job.precision) and job.computed_in in ("", self.precision)

    def _poll(self) -> None:
        """Handle what readers and devices have done, or wait a little for it."""
        pause_s = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, PAUSE_SHARE * (time.monotonic() - self.last_work)))
        futures = [*self.readers.futures, *self.devices.futures]
        if futures:
            wait(futures, pause_s, FIRST_COMPLETED)
        else:
            time.sleep(pause_s)
        self.spool.check_claims(self.name)
        for done in self.readers.poll():
            self._reader_done(done.about, done)
        complete: list[Job] = []
        for event in self.devices.poll(self.ledger.budgets):
            match event:
                case Embedded(batch, path, seconds):
                    complete += self.ledger.settle(batch, path, seconds)
                case TooLarge(batch, device):
                    weights, tokens = batch.recipe.weights_sha256, batch.tokens
                    held, budget = self.held[weights], self.ledger.shrink(weights, tokens // 2)
                    log.warning("%s: no memory for %d tokens; %s has a budget of %d now", device, tokens, held, budget)
                case GivenUp(batch, status, reason):
                    log.error("a sequence is given up: %s", reason)
                    complete += self.ledger.give_up(batch, status, reason)
        for job in complete:
            self._write(job)
        self._notice_ready()

    def _notice_ready(self) -> None:
        """Count the seconds in which devices could have worked: ready, with a job open; say when the first one is."""
        now, ready = time.monotonic(), self.devices.ready
        if self.jobs:
            self.ready_s += (now - self.counted) * len(ready)
        self.counted = now
        if ready and self.state.state == "starting":
            self.state.state, self.beaten = "ready", 0.0
            self.devices.speed.restart()

    def _reader_done(self, job: Job, done: Done) -> None:
        """Go on with a job that has been read or written, or end it."""
        if done.error is not None:
            self._failed(job, done.error)
        elif done.function in (read_sample, read_part):
            self._admit(job, done.result, done.seconds)
        elif done.function is copy_sample and done.result is None:  # the finished one has gone meanwhile
            self._read(job, None)
        elif done.function is copy_sample:
            job.take_over(done.result)
            self._receipt(job, "", {})
        elif done.function is join_parts:
            self._receipt(job, "", job.take_together())
            self.spool.drop_parts(job.manifest.whole)
        else:
            job.counts |= done.result.counts
            job.origins = done.result.origins
            self._receipt(job, "", done.result.given_up)

    def _admit(self, job: Job, found: Contents, seconds: float) -> None:
        """Enter a job that has been read into the ledger."""
        job.counts, job.input_sha256, job.read_s = found.counts, found.sha256, seconds
        job.warnings, job.fetched = found.warnings, found.fetched
        for warning in found.warnings:
            log.warning("%s: %s", job.manifest.sample, warning)
        if job.manifest.part < 0:
            self.read_bytes[job.manifest.kind] += job.manifest.size_bytes
        if found.parts:
            job.parts = dict.fromkeys(range(found.parts))
            return
        asked = job.manifest.models
        job.recipes = {model: make_recipe(request, job.manifest.store_dtype) for model, request in asked.items()}
        job.sequences = {model: DistinctSequences(job.directory, model) for model in asked}
        job.counts["sequences"] = sum(len(sequences.digests) for sequences in job.sequences.values())
        job.counts["tokens"] = sum(int(sequences.lengths.sum()) for sequences in job.sequences.values())
        self.read_tokens[job.manifest.kind] += job.counts["tokens"]
        if self.ledger.admit(job):
            self._write(job)

    def _look_at_parts(self) -> None:
        """Have the parts of large samples joined when all are done, here or by other pools."""
        for job in [job for job in self.jobs.values() if job.lacks_parts]:
            for number in [number for number, outcome in job.parts.items() if outcome is None]:
                outcome = job.parts[number] = self.spool.part_outcome(replace(job.manifest, part=number))
                if outcome is not None and outcome.state == "failed":
                    self._receipt(job, outcome.error)
                    break
            else:
                if not job.lacks_parts:
                    parts = [self.spool.part_directory(replace(job.manifest, part=number)) for number in job.parts]
                    self.readers.send(join_parts, (job.directory, parts, self.software), job)

    def _write(self, job: Job) -> None:
        """Have the embeddings of a job written, now that it lacks nothing."""
        descriptions = {model: known for model, (known, _) in self._models_of(job.manifest).items()}
        computed = (descriptions, self.ledger.places(job), job.failures, self.precision, self.software, self.cache)
        self.readers.send(finish_sample, (job.manifest, job.directory, *computed), job)

    def _models_of(self, manifest: Manifest) -> dict[str, tuple[Prepared, Path]]:
        """By the job's names, the prepared models that it asks for, and where they are."""
        names = {model: self.held[request.weights_sha256] for model, request in manifest.models.items()}
        return {model: (self.models[name], self.directories[name]) for model, name in names.items()}

    def _failed(self, job: Job, error: BaseException) -> None:
        """End one job for what was wrong with it; whatever that is, the others go on."""
        number = error.errno if isinstance(error, OSError) else None
        if number in NOT_THE_SAMPLE:
            raise ResourceError(f"{self.spool.root}: {os.strerror(number)}; mend that and run again") from None
        if isinstance(error, HoldfastError | OSError):
            self._receipt(job, str(error))
        else:
            log.error("unexpected error in sample %s", job.manifest.sample, exc_info=error)
            self._receipt(job, f"unexpected {type(error).__name__}: {error}; please report it with the pool's log")

    def _receipt(self, job: Job, error: str, failures: dict[str, str] | None = None) -> None:
        """Leave the receipt of a job; an empty ``error`` means done."""
        embeddings = self.spool.root / "done" / job.manifest.job / EMBEDDINGS_FILE
        synthetic = sorted(name for name, (known, _) in self._models_of(job.manifest).items() if known.synthetic)
        made_by = {"synthetic": synthetic, "pool": self._description(), "software": self.software}
        outcome = job.receipt(error, embeddings, failures or {}, **made_by)
        self.spool.finish(self.name, outcome, job.directory)
        del self.jobs[job.number]
        self.last_work = time.monotonic()
        self.ledger.close(job)
        if not self.jobs and not self.spool.waiting():  # the jobs of adopted blocks have gone elsewhere
            self.ledger.sweep()
        self.outcomes["failed" if error else "done"] += job.manifest.part < 0
        if error:
            log.error("%s: failed: %s", job.title, error)
        else:
            log.info("%s: done, %d rows in %.1f s", job.title, job.counts["rows"], outcome.seconds["total_s"])
        for row, reason in outcome.failures.items() if not job.parts else ():
            log.error("%s: %s was given up: %s", outcome.sample, row, reason)

    # What others see

    def _beat(self) -> None:
        """Publish the state about once a second, and look for dead pools now and then."""
        now = time.monotonic()
        if now - self.beaten > BEAT_S:
            self._look_at_parts()
            self._publish()
        if now - self.looked > TAKE_OVER_S and not self.stop_reason:
            self._take_over()

    def _publish(self) -> None:
        self.beaten = time.monotonic()
        self.state.beat += 1
        self.state.progress = self._progress()
        self.state.write()
        self.published()
        if devices := len(self.devices.ready):
            done = (int(self.devices.totals["tokens"]), round(self.devices.totals["device_s"], 3))
            self.history.note(Moment(round(time.time(), 2), devices, *done), self.devices.at_work)

    def _progress(self) -> Progress:
        devices, ledger = self.devices, self.ledger
        totals: dict[str, Any] = {
            name: round(value, 3) if name.endswith("_s") else int(value) for name, value in devices.totals.items()
        }
        return Progress(
            precision=self.precision,
            load_s=round(devices.load_s, 3),
            devices=devices.progress(),
            jobs=[job.progress(devices.load_s > 0) for job in self.jobs.values()],
            errors=list(self.errors.last),
            errors_logged=self.errors.count,
            budgets={self.held[weights]: budget for weights, budget in ledger.budgets.items()},
            ready_s=round(self.ready_s, 3),
            tokens_per_s=round(devices.speed.tokens_per_s(), 3),
            tokens_left=ledger.waiting_tokens + devices.tokens_out,
            read_bytes=dict(self.read_bytes),
            read_tokens=dict(self.read_tokens),
            **self.outcomes,
            **totals,
        )

    def _description(self) -> dict[str, str | float]:
        """The pool as receipts name it."""
        return {
            "id": self.name,
            "host": self.state.identity.host,
            "devices": ", ".join(report.device_name for report in self.devices.ready),
            "precision": self.precision,
            "load_s": round(self.devices.load_s, 3),
            "device_s": round(self.devices.totals["device_s"], 3),
            "ready_s": round(self.ready_s, 3),
        }
