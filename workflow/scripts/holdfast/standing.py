"""The standing of one run of Snakemake: what has become of its samples, and what its pools are doing for them.

It is taken from what lies on the shared file system, the receipts and the states of the pools, so it is the same
wherever the pools are: below this Snakemake, on other nodes, or started by hand and shared with others. A file that
cannot be read just now counts as it did the last time.
"""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from . import configuration, prepared, receipt, status
from .errors import HoldfastError
from .plan import DEFAULT_SPOOL, Place, Plan, directory_of
from .progress import in_words, left
from .status import Observer, PoolState

LOOKED_AT = 200
"""Receipts looked for at once: thousands of samples on a network file system must not cost thousands of calls."""


@dataclass
class Sample:
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
            outcome = receipt.read(self.receipt) if _changed(self.receipt) != self._before else None
        except (OSError, HoldfastError):
            return False
        if outcome is None:
            return False
        self.state = outcome.state
        if outcome.state == "done":
            self.sequences = sum(n for count, n in outcome.counts.items() if count.endswith("_sequences"))
        return True


def _changed(path: Path) -> int:
    """When a file was changed last, ns since the epoch; 0 if it is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def of_run(
    plan: Plan, samples: Mapping[str, configuration.Sample], config: Mapping[str, Any], place: Place
) -> "Standing":
    """The standing of the samples that a plan finds pending.

    Args:
        plan: The plan.
        samples: The sample sheet.
        config: The checked config.
        place: Where a path of the workflow is.
    """
    wanted = [samples[name] for batch in plan.batches for name in batch.samples]
    spool = Path(config["pool"]["spool"] or place(DEFAULT_SPOOL))
    models = {model: directory_of(entry["weights"], model, place) for model, entry in config["models"].items()}
    pending = {
        sample.sample: Sample(Path(sample.fasta), sample.kind, Path(place(f"results/{sample.sample}/receipt.json")))
        for sample in wanted
    }
    return Standing(pending, spool, models, config["precision"], config["pool"]["lifecycle"] == "external")


class Standing:
    """Counts what has become of the samples of a run."""

    def __init__(
        self, samples: Mapping[str, Sample], spool: Path, models: Mapping[str, str], precision: str, external: bool
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
        self._ended: dict[str, Sample] = {}
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
        states = [state for state in status.published(self._spool) if self._observer.lives(state)]
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
                self._digests[model] = prepared.read(self._models[model]).weights_sha256
        return not self._digests or (
            bool(self._digests.items() & state.models.items()) and state.precision == self._precision
        )

    def line(self) -> str:
        """The state of the run in one line, the most important first; nothing as long as there is nothing to tell."""
        samples = [*self._ended.values(), *self._waiting.values()]
        done, failed = (sum(sample.state == state for sample in samples) for state in ("done", "failed"))
        head = f"{done} of {len(samples)} samples done" + (f", {failed} failed" if failed else "")
        sequences = f"{sum(sample.sequences for sample in samples):,} sequences"
        if self.complete:
            return f"{head}; {sequences}, {in_words(time.monotonic() - self._began)}"
        if not self.pools:
            return f"{head}; no pool serves {self._spool} now, start one" if self._external else ""
        if all(pool.state == "starting" for pool in self.pools):
            return f"{head}; loading the models"
        told = [pool.progress for pool in self.pools]
        devices = [device for progress in told for device in progress.devices]
        use = sum(device.busy for device in devices) / max(1, len(devices))
        speed = sum(progress.tokens_per_s for progress in told)
        if not speed:
            return f"{head}; the models are loaded"
        count = "device" if len(devices) == 1 else f"{len(devices)} devices"
        return f"{head}, {self._left()} left; {sequences}, {speed:,.0f} tokens/s, {count} {use:.0%} busy"

    def _left(self) -> str:
        unread = [(sample.kind, sample.size_bytes) for sample in self._waiting.values() if sample.state == "unread"]
        rest = left((pool.progress for pool in self.pools), unread)
        if rest.seconds is None:
            return "unknown time"
        return ("about " if rest.about else "") + in_words(rest.seconds)
