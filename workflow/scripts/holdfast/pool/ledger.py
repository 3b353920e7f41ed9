"""The ledger: which vectors the open jobs still lack, and what to embed next for them.

A job is admitted with its distinct sequences. Those whose vector is on disk, or on its way for another job, are not
asked for again. Vectors that come back are written to :mod:`blocks` before they count; a job that lacks nothing is
complete. A sequence that no worker survives, or that no device has memory for, is given up and noted in every job
that holds it.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..spool.job import MODELS, Manifest, Receipt
from ..spool.progress import JobProgress
from .batches import Batch, Queue, Recipe
from .blocks import BlockStore
from .distinct import DistinctSequences

ORIGINS = 1000
"""Most origins that a receipt lists."""


@dataclass(eq=False)
class Job:
    """An open job.

    Attributes:
        number: Grows with the time of the claim.
        directory: Its work directory.
        claimed: When it was claimed, by the monotonic clock, s.
        counts: What was read.
        sequences: Its distinct sequences by model, once it is read.
        recipes: What is computed of them, by model.
        fetched: By model, blocks that its reader made of the shared cache.
        origins: Where vectors come from that were found in the shared cache.
        warnings: What is doubtful in it.
        parts: Of a large sample, the receipts of its parts by number; None for those that are not done yet.
        missing: Sequences that it still waits for.
        missing_tokens: Their tokens.
        failures: By model, sequences that were given up, with the status of their records and the reason.
        input_sha256: Digest of its file (hex), once it is read.
        same_as: Job of a file of the same content, if its result was taken.
        inherited: Vectors that it needed and found in blocks that a dead pool had left.
        read_s: Seconds to read it.
        device_s: Its share of the seconds of its batches, by tokens.
        computed_tokens: Tokens in that share.
    """

    number: int
    manifest: Manifest
    directory: Path
    claimed: float
    counts: dict[str, int] = field(default_factory=dict)
    sequences: dict[str, DistinctSequences] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    fetched: dict[str, list[Path]] = field(default_factory=dict)
    origins: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parts: dict[int, Receipt | None] = field(default_factory=dict)
    missing: int = 0
    missing_tokens: int = 0
    failures: dict[str, dict[int, tuple[str, str]]] = field(default_factory=dict)
    input_sha256: str = ""
    same_as: str = ""
    inherited: int = 0
    read_s: float = 0.0
    device_s: float = 0.0
    computed_tokens: int = 0

    def progress(self, loaded: bool) -> JobProgress:
        """The job for others to see; ``loaded`` says whether the pool's models are."""
        embedding = "embedding" if loaded else "waiting"
        return JobProgress(
            job=self.manifest.job,
            sample=self.manifest.sample,
            kind=self.manifest.kind,
            state=embedding if self.missing or self.lacks_parts else "reading" if self.is_unread else "writing",
            age_s=round(time.monotonic() - self.claimed, 1),
            size_bytes=self.manifest.size_bytes,
            sequences_left=self.missing,
            tokens_left=self.missing_tokens,
            sequences=self.counts.get("sequences", 0),
            tokens=self.counts.get("tokens", 0),
        )

    @property
    def is_unread(self) -> bool:
        """Whether more sequences may come of it."""
        return not self.sequences and not self.parts

    @property
    def lacks_parts(self) -> bool:
        """Whether it waits for parts of its sample."""
        return any(outcome is None for outcome in self.parts.values())

    @property
    def title(self) -> str:
        """What people know it by."""
        part = self.manifest.part
        return self.manifest.sample if part < 0 else f"{self.manifest.sample}, part {part + 1}"

    def take_together(self) -> dict[str, str]:
        """Be done as all parts of the sample are; the rows that they gave up."""
        outcomes = [outcome for outcome in self.parts.values() if outcome is not None]
        counts = Counter[str]()
        for outcome in outcomes:
            counts.update(outcome.counts)
            self.device_s += outcome.seconds["device_s"]
            self.read_s += outcome.seconds["read_s"]
        self.computed_tokens, self.inherited = counts.pop("computed_tokens"), counts.pop("inherited")
        self.counts = dict(counts)
        origins = {repr(origin): origin for outcome in outcomes for origin in outcome.origins}
        self.origins = list(origins.values())[:ORIGINS]
        return {row: reason for outcome in outcomes for row, reason in outcome.failures.items()}

    def take_over(self, twin: Receipt) -> None:
        """Be done as another job was whose file has the same content."""
        self.counts = dict(twin.counts)
        self.input_sha256, self.warnings, self.same_as = twin.input_sha256, twin.warnings, twin.job

    def receipt(self, error: str, embeddings: Path, failures: dict[str, str], **made_by: Any) -> Receipt:
        """What became of the job, now that it has ended.

        Args:
            error: Why it failed; empty when it is done.
            embeddings: Where its embeddings will be.
            failures: Rows that were given up, with the reason.
            made_by: ``synthetic``, ``pool`` and ``software``, as :class:`.Receipt` describes them.
        """
        manifest = self.manifest
        seconds = {"read_s": self.read_s, "device_s": self.device_s, "total_s": time.monotonic() - self.claimed}
        return Receipt(
            job=manifest.job,
            sample=manifest.sample,
            state="failed" if error else "done",
            error=error,
            embeddings="" if error else str(embeddings),
            input_sha256=self.input_sha256,
            same_as=self.same_as,
            counts=self.counts | {"computed_tokens": self.computed_tokens, "inherited": self.inherited},
            seconds={name: round(value, 3) for name, value in seconds.items()},
            genetic_code=manifest.genetic_code,
            failures=failures,
            warnings=self.warnings,
            origins=self.origins,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            **made_by,
        )


class Ledger:
    """What all open jobs wait for."""

    def __init__(self, budgets: Mapping[str, int], precision: str, root: Path, prefix: str) -> None:
        """Open the books, with the blocks that lie below ``root``.

        Args:
            budgets: Tokens in a batch by ``weights_sha256`` of the models of the pool.
            precision: What they compute in; vectors of another precision are not used.
            root: Directory of this pool's blocks.
            prefix: Start of the names of new blocks, unique to the pool.
        """
        self.jobs: dict[int, Job] = {}
        self.budgets = dict(budgets)
        self.queues: dict[Recipe, Queue] = {}
        self.stores: dict[Recipe, BlockStore] = {}
        self._precision, self._root, self._prefix = precision, root, prefix
        self._waiters: dict[Recipe, dict[bytes, list[tuple[Job, str, int]]]] = {}

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait to be sent to a device."""
        return sum(queue.waiting_tokens for queue in self.queues.values())

    def admit(self, job: Job) -> bool:
        """Enter a job that has been read; whether it lacks nothing."""
        self.jobs[job.number] = job
        for place, (model, sequences) in enumerate(job.sequences.items()):
            recipe = job.recipes[model]
            self._open(recipe)
            store, waiters = self.stores[recipe], self._waiters[recipe]
            fetched = job.fetched.get(model, [])
            for path in fetched:
                store.take_in(path)
            fresh = []
            for number, digest in enumerate(sequences.digests):
                if store.use(digest):
                    job.inherited += store.inherited(digest)
                    continue
                job.missing += 1
                job.missing_tokens += int(sequences.lengths[number])
                if digest in waiters:
                    waiters[digest].append((job, model, number))
                else:
                    waiters[digest] = [(job, model, number)]
                    fresh.append(number)
            if fetched:
                store.drop_unused(fetched)
            chosen = np.array(fresh, np.int64)
            self.queues[recipe].add(job.number * MODELS + place, chosen, sequences.lengths[chosen])
        return not job.missing

    def _open(self, recipe: Recipe) -> None:
        """Make room for a recipe that is asked for the first time."""
        if recipe not in self.queues:
            self.queues[recipe] = Queue(recipe, self.budgets[recipe.weights_sha256])
            self.stores[recipe] = BlockStore(self._root / recipe.key(self._precision), self._prefix)
            self._waiters[recipe] = {}

    def next_batch(self, partial: bool) -> Batch | None:
        """The next batch, of the recipe whose oldest job is the oldest; see :meth:`.batches.Queue.next`."""
        waiting = [(queue.oldest, queue) for queue in self.queues.values() if queue.oldest is not None]
        for _, queue in sorted(waiting, key=lambda entry: entry[0]):
            batch = queue.next(partial)
            if batch is not None:
                return batch
        return None

    def shrink(self, weights_sha256: str, budget_tokens: int) -> int:
        """Make batches of a model no larger than this from now on; the budget that holds now."""
        budget = self.budgets[weights_sha256] = max(1, min(self.budgets[weights_sha256], budget_tokens))
        for recipe, queue in self.queues.items():
            if recipe.weights_sha256 == weights_sha256:
                queue.budget_tokens = budget
        return budget

    def parcel(self, batch: Batch) -> tuple[np.ndarray, bytes, Path]:
        """What a worker needs for a batch: its tokens, one sequence behind the other, int16 [T]; digests; a place."""
        found = [(job.sequences[model], number) for job, model, number in self._entries(batch)]
        tokens = np.concatenate([sequences.tokens(number) for sequences, number in found])
        digests = b"".join(sequences.digests[number] for sequences, number in found)
        return tokens, digests, self.stores[batch.recipe].new_path()

    def settle(self, batch: Batch, path: Path, seconds: float) -> list[Job]:
        """Keep what a batch gave.

        Args:
            batch: The batch.
            path: Its block.
            seconds: What the device needed for it.

        Returns:
            The jobs that lack nothing any more.
        """
        waiters = self._waiters[batch.recipe]
        entries = self._entries(batch)
        digests = [job.sequences[model].digests[number] for job, model, number in entries]
        self.stores[batch.recipe].add(path, digests, uses=[len(waiters[digest]) for digest in digests])
        for (job, *_), length in zip(entries, batch.lengths.tolist(), strict=True):
            job.device_s += seconds * length / batch.tokens
            job.computed_tokens += length
        return [job for digest in digests for job in self._served(batch.recipe, digest)]

    def give_up(self, batch: Batch, status: str, reason: str) -> list[Job]:
        """Note that the sequences of a batch cannot be embedded, and why; the jobs that lack nothing any more."""
        complete = []
        for owner, name, place in self._entries(batch):
            digest = owner.sequences[name].digests[place]
            for job, model, number in self._waiters[batch.recipe][digest]:
                job.failures.setdefault(model, {})[number] = status, reason
            complete += self._served(batch.recipe, digest)
        return complete

    def places(self, job: Job) -> dict[str, tuple[list[Path], np.ndarray]]:
        """By model, where the vectors of a complete job are; see :meth:`blocks.BlockStore.locate`."""
        return {
            model: self.stores[job.recipes[model]].locate(sequences.digests)
            for model, sequences in job.sequences.items()
        }

    def close(self, job: Job) -> None:
        """Strike out a job whose embeddings are written."""
        if self.jobs.pop(job.number, None) is not None:
            for model, sequences in job.sequences.items():
                self.stores[job.recipes[model]].release(sequences.digests)

    def sweep(self) -> None:
        """Remove blocks that no open job uses."""
        for store in self.stores.values():
            store.sweep()

    def refresh(self) -> None:
        """Take in blocks that were moved here from a dead pool."""
        for store in self.stores.values():
            store.refresh()

    def _entries(self, batch: Batch) -> list[tuple[Job, str, int]]:
        """Job, its name for the model, and number of each sequence."""
        found = []
        for part, number in zip(batch.jobs.tolist(), batch.sequences.tolist(), strict=True):
            job = self.jobs[part // MODELS]
            found.append((job, list(job.sequences)[part % MODELS], number))
        return found

    def _served(self, recipe: Recipe, digest: bytes) -> list[Job]:
        """End the wait for one sequence; the jobs that lack nothing any more, each once."""
        waiting = self._waiters[recipe].pop(digest)
        for job, model, number in waiting:
            job.missing -= 1
            job.missing_tokens -= int(job.sequences[model].lengths[number])
        return list(dict.fromkeys(job for job, _, _ in waiting if not job.missing))
