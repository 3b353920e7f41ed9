"""What goes on in a run now, for the lines that it writes to Snakemake's log.

It is taken from what lies on the shared file system, the states that pools publish and the receipts; so it is the same
wherever the pools are: below this Snakemake, on other nodes, or started by hand and shared with others. A file that
cannot be read just now counts as it did the last time. What goes on in a spool says :mod:`holdfast.spool.view`.
"""

import atexit
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from ..errors import HoldfastError
from ..models.registry import read_prepared
from ..spool.job import read_receipt
from ..spool.progress import in_words, work_left
from ..spool.state import Observer, PoolState, published_states
from .config import Sample
from .pending import Place, directory_of
from .plan import DEFAULT_SPOOL, Plan

LOOKED_AT = 200
"""Receipts looked for at once: thousands of samples on a network file system must not cost thousands of calls."""
LOOK_S = 1.0
ENDPOINT_AWAITED = re.compile(
    r"Waiting at most \d+ seconds for missing files:(\n\S*\.holdfast/pool\.\d+\.json \(missing locally\))+"
)
FIRST_PAUSE_S = 2.0
LAST_PAUSE_S = 30.0


@dataclass
class WatchedSample:
    """A sample of the run, with its file, kind and receipt, and how far it is.

    Attributes:
        state: ``unread``, ``open`` or, as its receipt says, ``done`` or ``failed``.
        sequences: Its distinct sequences that have a vector, over all models.
    """

    fasta: Path
    kind: str
    receipt: Path
    state: str = "unread"
    sequences: int = 0

    def __post_init__(self) -> None:
        """Look at the receipt of an earlier run, and at the file, which may still have to be made."""
        self._before = _changed(self.receipt)
        self._size_bytes = -1

    @property
    def size_bytes(self) -> int:
        """Size of the file; -1 as long as it is not there."""
        if self._size_bytes < 0:
            with suppress(OSError):
                self._size_bytes = os.stat(self.fasta).st_size
        return self._size_bytes

    def has_ended(self) -> bool:
        """Whether this run has written a receipt; it says what became of the sample."""
        try:
            outcome = read_receipt(self.receipt) if _changed(self.receipt) != self._before else None
        except (OSError, HoldfastError):
            return False
        if outcome is None:
            return False
        self.state = outcome.state
        if outcome.state == "done":
            self.sequences = outcome.counts.get("sequences", 0)
        return True


def _changed(path: Path) -> int:
    """When a file was changed last, ns since the epoch; 0 if it is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


class RunWatch:
    """Counts what has become of the samples of a run."""

    def __init__(
        self,
        samples: Mapping[str, WatchedSample],
        spool: Path,
        models: Mapping[str, str],
        precision: str,
        external: bool,
    ) -> None:
        """Begin with nothing done.

        Args:
            samples: The samples that the run has to compute, by name.
            spool: The spool through which it does.
            models: Directory of each prepared model, or where it will be.
            precision: What the config says.
            external: Whether others start the pools.
        """
        self._waiting = dict(samples)
        self._ended: dict[str, WatchedSample] = {}
        self._spool = spool
        self._models = models
        self._digests: dict[str, str] = {}
        self._precision = precision
        self._external = external
        self._observer = Observer()
        self._began = time.monotonic()
        self.pools: list[PoolState] = []

    @property
    def complete(self) -> bool:
        """Whether every sample has a receipt."""
        return not self._waiting

    def update(self) -> None:
        """Look at the pools and at receipts."""
        states = [state for state in published_states(self._spool) if self._observer.lives(state)]
        self.pools = [state for state in states if self._concerns(state)]
        left_open = {name for name, sample in self._waiting.items() if sample.state == "open"}
        for pool in self.pools:
            for job in pool.progress.jobs:
                sample = self._waiting.get(job.sample)
                if sample is not None:
                    left_open.discard(job.sample)
                    sample.state = "unread" if job.state == "reading" else "open"
                    sample.sequences = max(sample.sequences, job.sequences - job.sequences_left)
        turn = list(islice(self._waiting, LOOKED_AT))
        for name in {*left_open, *turn}:
            sample = self._waiting.pop(name)
            if sample.has_ended():
                self._ended[name] = sample
            else:
                self._waiting[name] = sample  # behind those whose turn is next

    def _concerns(self, state: PoolState) -> bool:
        """Whether a pool works for this run: it computes with one of its models, as far as that is known by now."""
        for model in self._models.keys() - self._digests.keys():
            with suppress(OSError, HoldfastError):
                self._digests[model] = read_prepared(self._models[model]).weights_sha256
        return not self._digests or (
            bool(set(self._digests.values()) & set(state.models.values())) and state.precision == self._precision
        )

    def line(self) -> str:
        """The state of the run in one line, the most important first; nothing as long as there is nothing to say."""
        samples = [*self._ended.values(), *self._waiting.values()]
        done, failed = (sum(sample.state == state for sample in samples) for state in ("done", "failed"))
        head = f"{done} of {len(samples)} samples done" + (f", {failed} failed" if failed else "")
        sequences = f"{sum(sample.sequences for sample in samples):,} sequences"
        if self.complete:
            return f"{head}; {sequences}, {in_words(time.monotonic() - self._began)}"
        if not self.pools:
            return f"{head}; no pool serves {self._spool} now, start one" if self._external else ""
        if all(pool.state == "starting" for pool in self.pools):
            waits = next((pool.reason for pool in self.pools if pool.reason), "")
            return f"{head}; {waits or 'loading the models'}"
        progress = [pool.progress for pool in self.pools]
        devices = [device for pool in progress for device in pool.devices]
        use = sum(device.busy for device in devices) / max(1, len(devices))
        speed = sum(pool.tokens_per_s for pool in progress)
        if not speed:
            return f"{head}; the models are loaded"
        count = "device" if len(devices) == 1 else f"{len(devices)} devices"
        return f"{head}, {self._left()} left; {sequences}, {speed:,.0f} tokens/s, {count} {use:.0%} busy"

    def _left(self) -> str:
        unread = [(sample.kind, sample.size_bytes) for sample in self._waiting.values() if sample.state == "unread"]
        rest = work_left((pool.progress for pool in self.pools), unread)
        if rest.seconds is None:
            return "unknown time"
        return ("about " if rest.about else "") + in_words(rest.seconds)


def watch_run(plan: Plan, samples: Mapping[str, Sample], config: Mapping[str, Any], place: Place) -> RunWatch:
    """Watch the samples that a plan finds pending.

    Args:
        plan: The plan.
        samples: The sample sheet.
        config: The checked config.
        place: Where a path of the workflow is.
    """
    wanted = [samples[name] for share in plan.consumers for name in share.samples]
    spool = Path(config["pool"]["spool"] or place(DEFAULT_SPOOL))
    models = {model: directory_of(entry["weights"], model, place) for model, entry in config["models"].items()}
    pending = {
        sample.sample: WatchedSample(
            Path(sample.fasta), sample.kind, Path(place(f"results/{sample.sample}/receipt.json"))
        )
        for sample in wanted
    }
    return RunWatch(pending, spool, models, config["precision"], config["pool"]["lifecycle"] == "external")


class Workflow(Protocol):
    """What is asked of a ``snakemake.workflow.Workflow``."""

    executor_plugin: Any
    output_settings: Any
    dryrun: bool
    touch: bool


def log_progress(workflow: Workflow, name: str, watch: Callable[[], RunWatch]) -> None:
    """While jobs run, say in Snakemake's log how far the run is: now and then, and only when that has changed.

    A thread of Snakemake's main process does it. It is started when the Snakefile is read, begins only if Snakemake
    then executes jobs, says nothing where ``--quiet`` silences progress, and ends with the run.

    Args:
        workflow: The workflow whose Snakefile is being read.
        name: What its lines begin with.
        watch: Gives the watch of the run; called if it executes jobs.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_log, args=(workflow, name, watch, ended), daemon=True)

    def end() -> None:
        ended.set()
        thread.join(2 * LOOK_S)

    atexit.register(end)
    thread.start()
    _hide_wait()


def _hide_wait() -> None:
    """Keep off the terminal that Snakemake waits for an endpoint file, where it would stand until the run ends.

    A service's output is always late by the moment in which Python starts; the lines of the run say what goes on.
    """
    from snakemake.logging import logger

    def concerns_others(record: logging.LogRecord) -> bool:
        return not ENDPOINT_AWAITED.fullmatch(record.getMessage())

    logger.addFilter(concerns_others)


def _log(workflow: Workflow, name: str, watch: Callable[[], RunWatch], ended: threading.Event) -> None:
    """Wait until Snakemake executes jobs, which may be never; pauses grow, so that a long run does not fill the log."""
    from snakemake.logging import logger
    from snakemake.settings.enums import Quietness

    while workflow.executor_plugin is None:
        if ended.wait(LOOK_S / 5):
            return
    quiet = set(workflow.output_settings.quiet or ())
    if workflow.dryrun or workflow.touch or quiet & {Quietness.PROGRESS, Quietness.ALL}:
        return
    run = watch()
    last, said, pause_s = "", -LAST_PAUSE_S, FIRST_PAUSE_S
    while not run.complete and not ended.wait(LOOK_S):
        run.update()
        line, now = run.line(), time.monotonic()
        if run.complete or (line not in ("", last) and now - said >= pause_s):
            logger.info(f"{name}: {line}", extra={"quietness": Quietness.PROGRESS})
            pause_s = min(LAST_PAUSE_S, pause_s * 1.5) if last else pause_s
            last, said = line, now
