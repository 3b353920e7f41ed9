"""The pool's supervisor: takes jobs from the spool, has them read, embedded and written, and leaves receipts.

One loop in one thread, without torch. A job goes claimed → reading (a reader process) → waiting for vectors (the
:mod:`ledger`, batches on devices) → finishing (a reader process) → receipt. Whatever dies on the way, a worker or a
reader, is replaced, and what it was doing is done again until the one that kills is found; see docs/reliability.md.
"""

import errno
import logging
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from . import prepared, reader, settings, status
from .batching import WINDOW_BATCHES
from .errors import HoldfastError, ResourceError
from .fleet import Fleet
from .ledger import Job, Ledger
from .pace import Moment, Pace
from .progress import JobProgress, Progress, Trouble
from .reader import Contents
from .readers import Readers
from .receipt import Receipt
from .sequences import Sequences
from .settings import PoolSettings
from .spool import Spool
from .status import Launcher, Observer, PoolState
from .worker import Ready

SHORTEST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.25
PAUSE_SHARE = 0.01
"""Between two looks at the spool passes this share of the time since a job last came or went, within these limits."""
ERRORS = 5
BEAT_S = 1.0
TAKE_OVER_S = 2.0
DRAIN_S = 7.0
UNITS = ("sequences", "tokens")
NOT_THE_SAMPLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)

log = logging.getLogger("holdfast.pool")


class LastErrors(logging.Handler):
    """The last errors of the pool's log, for others to see."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last: deque[Trouble] = deque(maxlen=ERRORS)
        logging.getLogger("holdfast").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds")
        self.last.append(Trouble(when, record.getMessage()))


class Pool:
    """The supervisor of one pool."""

    def __init__(self, told: PoolSettings, state: PoolState, endpoint: Path) -> None:
        """Prepare a pool that serves ``state.spool`` as long as ``endpoint`` exists.

        Raises:
            HoldfastError: the spool or a prepared model cannot be used.
        """
        self.settings = told
        self.state = state
        self.endpoint = endpoint
        self.name = state.identity.pool
        self.spool = Spool(state.spool)
        self.models = {model: prepared.read(directory) for model, directory in told.models.items()}
        state.models = {model: description.weights_sha256 for model, description in self.models.items()}
        state.precision = told.precision
        state.lease_s = told.lease_s
        self.directories = {model: Path(directory).absolute() for model, directory in told.models.items()}
        self.fleet = Fleet(told, self.directories, self._when, self._open_ledger, self._write)
        self.readers = Readers(1 if told.device == "cpu" else max(1, told.threads - 1), self._when)
        self.jobs: dict[int, Job] = {}
        self.read: list[Job] = []
        self.futures: dict[Future[Any], tuple[Callable[..., None], tuple[Any, ...]]] = {}
        self.outcomes = {"done": 0, "failed": 0}
        self.pace = Pace(self.spool.root / "pools" / f"{self.name}.tsv")
        self.read_bytes: Counter[str] = Counter()
        self.read_tokens: Counter[str] = Counter()
        self.errors = LastErrors()
        self.observer = Observer()
        self.launcher = Launcher()
        self.signal = self.stop_reason = ""
        self.number = 0
        self.last_work = time.monotonic()
        self.beaten = self.looked = 0.0
        self.counted = time.monotonic()

    def run(self) -> None:
        """Serve until told to end; claims that are not finished by then go back to ``incoming/``."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # under nohup it is to be ignored
            signal.signal(signal.SIGHUP, self._signalled)
        try:
            self._publish()
            self.spool.enroll(self.name)
            self._take_over()
            self.readers.start()
            self.fleet.start()
            while not self._ended():
                self._claim()
                self.fleet.dispatch(more=any(not job.sequences for job in self.jobs.values()))
                self._advance()
                self._beat()
            self._drain()
        finally:
            self._leave()

    def _signalled(self, number: int, _: object) -> None:
        self.signal = self.signal or signal.Signals(number).name

    def _stop(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason

    def _drain(self) -> None:
        """Wait a while for the batches in work; what they give is kept for the next run."""
        log.info("ending: %s", self.stop_reason)
        until = time.monotonic() + DRAIN_S
        while self.fleet.in_air and time.monotonic() < until:
            self._advance()
            self._beat()

    def _leave(self) -> None:
        """End every process, whatever it is doing, and hand back what is not finished."""
        with suppress(OSError):
            self._note_pace()
            self.pace.write()
        for child in multiprocessing.active_children():
            child.kill()
        self.fleet.stop()
        self.readers.stop()
        told = self._progress()
        log.info(
            "%d jobs done, %d failed; %d sequences of %d tokens in %d batches, %.1f s of work on devices",
            *(told.done, told.failed, told.sequences, told.tokens, told.batches, told.device_s),
        )
        returned = self.spool.give_back(self.name)
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
            path = status.state_path(self.spool.root, other)
            state = status.read(path)
            if state is None and path.exists():
                continue  # of another version, or not readable just now: nobody can say that it is dead
            if state is None or state.state in ("ended", "failed") or self.observer.is_dead(state):
                returned = self.spool.give_back(other)
                vectors = self.spool.adopt_blocks(other, self._blocks)
                path.unlink(missing_ok=True)
                if returned or vectors:
                    log.info("pool %s is dead: took over %d jobs and %d blocks", other, returned, vectors)
        if self.fleet.ledger:
            self.fleet.ledger.refresh()

    def _ended(self) -> bool:
        idle_s = 0.0 if self.jobs else time.monotonic() - self.last_work
        if self.signal:  # the ordinary end, if nothing is left undone: so Snakemake ends its services
            self._stop(self.signal if self.jobs else f"told to, with no job open ({self.signal})")
        elif not self.endpoint.exists():
            self._stop("the endpoint file is gone, nobody waits any more")
        elif self.launcher.is_gone():
            self._stop("the Snakemake that started the pool is gone")
        elif self.settings.idle_timeout_s is not None and idle_s > self.settings.idle_timeout_s:
            self._stop(f"idle for {self.settings.idle_timeout_s:g} s")
        return bool(self.stop_reason)

    def _when(self, future: Future[Any], then: Callable[..., None], *what: Any) -> None:
        """Call ``then(future, *what)`` from the loop once the future is done."""
        self.futures[future] = (then, what)

    def _advance(self) -> None:
        """Handle what has completed, in the order in which it was begun, or wait a little for it."""
        pause_s = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, PAUSE_SHARE * (time.monotonic() - self.last_work)))
        if not self.futures:
            time.sleep(pause_s)
        done = wait(self.futures, pause_s, FIRST_COMPLETED).done if self.futures else set()
        self.spool.check_claims(self.name)
        for future in [future for future in self.futures if future in done]:
            then, what = self.futures.pop(future, (None, ()))
            if then is not None:
                then(future, *what)
        self.fleet.check()
        self._count()

    def _count(self) -> None:
        """Count the seconds in which devices could have worked: ready, with a job open."""
        now = time.monotonic()
        if self.jobs:
            self.fleet.totals["ready_s"] += (now - self.counted) * sum(bool(each.ready) for each in self.fleet.devices)
        self.counted = now

    def _beat(self) -> None:
        """Publish the state about once a second, and look for dead pools now and then."""
        now = time.monotonic()
        if now - self.beaten > BEAT_S:
            self._publish()
        if now - self.looked > TAKE_OVER_S and not self.stop_reason:
            self._take_over()

    def _publish(self) -> None:
        self.beaten = time.monotonic()
        self.state.beat += 1
        self.state.progress = self._progress()
        self.state.write()
        self._note_pace()

    def _note_pace(self) -> None:
        """Note what has been done by now."""
        devices = sum(device.ready is not None for device in self.fleet.devices)
        if devices:
            totals = self.fleet.totals
            now = Moment(
                round(time.time(), 2), devices, int(totals.get("tokens", 0)), round(totals.get("device_s", 0.0), 3)
            )
            self.pace.note(now, self.fleet.in_air)

    def _progress(self) -> Progress:
        fleet, ledger = self.fleet, self.fleet.ledger
        totals: dict[str, Any] = {
            name: round(value, 3) if name.endswith("_s") else int(value) for name, value in fleet.totals.items()
        }
        return Progress(
            precision=fleet.report.precision if fleet.report else "",
            load_s=round(fleet.report.load_s, 3) if fleet.report else 0.0,
            devices=[device.progress(fleet.speed.busy(device.name)) for device in fleet.devices],
            jobs=[self._job_progress(job) for job in self.jobs.values()],
            errors=list(self.errors.last),
            budgets={model: queue.budget_tokens for model, queue in ledger.queues.items()} if ledger else {},
            tokens_per_s=round(fleet.speed.tokens_per_s(), 3),
            tokens_left=self._tokens_waiting() + fleet.tokens_out,
            read_bytes=dict(self.read_bytes),
            read_tokens=dict(self.read_tokens),
            **self.outcomes,
            **totals,
        )

    def _job_progress(self, job: Job) -> JobProgress:
        manifest, counts, waits = job.manifest, job.counts, job in self.read
        sequences, tokens = (sum(counts.get(f"{m}_{what}", 0) for m in manifest.models) for what in UNITS)
        return JobProgress(
            job=manifest.job,
            sample=manifest.sample,
            kind=manifest.kind,
            state="waiting" if waits else "embedding" if job.missing else "writing" if job.sequences else "reading",
            age_s=round(time.monotonic() - job.claimed, 1),
            size_bytes=manifest.size_bytes,
            sequences=sequences,
            sequences_left=sequences if waits else job.missing,
            tokens=tokens,
            tokens_left=tokens if waits else job.missing_tokens,
        )

    def _tokens_waiting(self) -> int:
        """Tokens of the samples that have been read that wait to be sent to a device."""
        unready = sum(int(s.lengths.sum()) for job in self.read for s in job.sequences.values())
        return unready + (self.fleet.ledger.waiting_tokens if self.fleet.ledger else 0)

    def _claim(self) -> None:
        """Claim as many jobs as keep readers and devices busy, and no more: other pools may want them, too."""
        ahead_tokens = WINDOW_BATCHES * self.settings.tokens_per_batch * len(self.fleet.devices)
        if self._tokens_waiting() > ahead_tokens or not self.readers.room:
            return
        for manifest in self.spool.claim(self.name, lambda job: self.state.serves(job.models, job.precision)):
            if any(job.manifest.job == manifest.job for job in self.jobs.values()):
                continue  # handed in again by another consumer, after it was claimed
            if not self.jobs:
                self.fleet.speed.restart()
            directory = self.spool.work_directory(self.name, manifest.job)
            job = self.jobs[self.number] = Job(self.number, manifest, directory, time.monotonic())
            self.number += 1
            self.last_work = time.monotonic()
            self._read(job)
            if not self.readers.room:
                return

    def _read(self, job: Job) -> None:
        arguments = (job.manifest, job.directory, self.directories)
        self.readers.send(reader.read_sample, arguments, partial(self._has_read, job), partial(self._failed, job))

    def _has_read(self, job: Job, found: Contents, seconds: float) -> None:
        job.counts, job.input_sha256, job.read_s = found.counts, found.sha256, seconds
        job.sequences = {model: Sequences(job.directory, model) for model in job.manifest.models}
        for model, sequences in job.sequences.items():
            job.counts[f"{model}_sequences"] = len(sequences.digests)
            job.counts[f"{model}_tokens"] = int(sequences.lengths.sum())
            self.read_tokens[job.manifest.kind] += job.counts[f"{model}_tokens"]
        self.read_bytes[job.manifest.kind] += job.manifest.size_bytes
        if self.fleet.ledger is None:
            self.read.append(job)
        elif self.fleet.ledger.admit(job):
            self._write(job)

    def _open_ledger(self, report: Ready) -> None:
        """Start to embed, now that a worker is ready, with the samples that have been read in the meantime."""
        self.state.state, self.state.reason = "ready", ""
        self.beaten = 0.0
        ledger = Ledger(self.models, report.precision, self._blocks, self.name, self.settings.tokens_per_batch)
        for model, store in ledger.stores.items():
            if len(store):
                log.info("%d vectors of %s are there from an earlier run", len(store), model)
        self.fleet.ledger = ledger
        self.fleet.speed.restart()
        read, self.read = self.read, []
        for job in read:
            if ledger.admit(job):
                self._write(job)

    def _write(self, job: Job) -> None:
        """Have the embeddings of a job written, now that it lacks nothing."""
        if self.fleet.ledger is None or self.fleet.report is None:
            raise ValueError("no job is complete before a worker is ready")
        descriptions = {model: self.models[model] for model in job.sequences}
        places = self.fleet.ledger.places(job)
        facts = (job.failures, self.fleet.report.precision, self.fleet.report.software)
        arguments = (job.manifest, job.directory, descriptions, places, *facts)
        self.readers.send(reader.finish_sample, arguments, partial(self._written, job), partial(self._failed, job))

    def _written(self, job: Job, failures: dict[str, str], seconds: float) -> None:
        job.counts["failed"] = len(failures)
        self._receipt(job, "", failures)

    def _failed(self, job: Job, error: BaseException) -> None:
        """End one job for what was wrong with it; whatever that is, the others go on."""
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := re.search(r"errno = (\d+)", str(error))):
            number = int(found[1])  # HDF5 says it in its message only
        if number in NOT_THE_SAMPLE:
            raise ResourceError(f"{self.spool.root}: {os.strerror(number)}; mend that and run again") from None
        if isinstance(error, HoldfastError | OSError):
            self._receipt(job, str(error))
        else:
            log.error("unexpected error in sample %s", job.manifest.sample, exc_info=error)
            self._receipt(job, f"unexpected {type(error).__name__}: {error}; please report it with the pool's log")

    def _receipt(self, job: Job, error: str, failures: dict[str, str] | None = None) -> None:
        """Leave the receipt of a job; an empty ``error`` means done."""
        sample = job.manifest.sample
        target = self.spool.root / "done" / job.manifest.job / reader.EMBEDDINGS_FILE
        job.counts |= {"computed_tokens": job.computed_tokens, "inherited": job.inherited}
        report = self.fleet.report
        outcome = Receipt(
            job=job.manifest.job,
            sample=sample,
            state="failed" if error else "done",
            error=error,
            embeddings="" if error else str(target),
            input_sha256=job.input_sha256,
            counts=job.counts,
            pool=self._description(),
            software=report.software if report else {},
            seconds={
                "read_s": round(job.read_s, 3),
                "device_s": round(job.device_s, 3),
                "total_s": round(time.monotonic() - job.claimed, 3),
            },
            failures=failures or {},
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            size_bytes=job.manifest.size_bytes,
            mtime_ns=job.manifest.mtime_ns,
        )
        self.spool.finish(self.name, outcome, job.directory)
        del self.jobs[job.number]
        self.last_work = time.monotonic()
        if self.fleet.ledger:
            self.fleet.ledger.close(job)
            if not self.jobs and not self.spool.waiting():  # the jobs of adopted blocks have gone elsewhere
                self.fleet.ledger.sweep()
        self.outcomes["failed" if error else "done"] += 1
        if error:
            log.error("%s: failed: %s", sample, error)
        else:
            log.info("%s: done, %d rows in %.1f s", sample, job.counts["rows"], outcome.seconds["total_s"])
        for row, reason in outcome.failures.items():
            log.error("%s: %s was given up: %s", sample, row, reason)

    def _description(self) -> dict[str, str | float]:
        ready = [device.ready for device in self.fleet.devices if device.ready]
        report = self.fleet.report
        return {
            "id": self.name,
            "host": self.state.identity.host,
            "devices": ", ".join(each.device_name for each in ready),
            "precision": report.precision if report else "",
            "load_s": round(report.load_s, 3) if report else 0.0,
            **{name: round(self.fleet.totals.get(name, 0.0), 3) for name in ("device_s", "ready_s")},
        }


def serve(config: Path, state: PoolState, endpoint: Path) -> None:
    """Run a pool to its end and publish how it ended.

    Args:
        config: Settings of the pool, see :mod:`settings`.
        state: Its state so far.
        endpoint: The pool ends when this file goes.

    Raises:
        SystemExit: the pool could not start or go on; the reason is in its log and published, for consumers to read.
    """
    log.info("pool %s, spool %s", state.identity.pool, state.spool)
    state.state, state.reason = "failed", "unexpected error; see the pool's log"
    try:
        pool = Pool(settings.read(config), state, endpoint)
        state.state, state.reason = "starting", ""
        pool.run()
        state.state, state.reason = "ended", pool.stop_reason
    except HoldfastError as error:
        state.state, state.reason = "failed", str(error)
        _give_up(error)
    except OSError as error:
        where = error.filename or state.spool
        state.reason = f"{where}: {error.strerror or error}; mend that and run again, finished work is kept"
        state.state = "failed"
        _give_up(ResourceError(state.reason))
    finally:
        if state.state in ("starting", "ready"):
            state.state, state.reason = "failed", "unexpected error; see the pool's log"
        with suppress(OSError):
            state.write()


def _give_up(error: HoldfastError) -> NoReturn:
    """End like every entry point, but with a line that has the form of the log's others."""
    log.critical("holdfast: error: %s", error)
    raise SystemExit(error.exit_code) from None
