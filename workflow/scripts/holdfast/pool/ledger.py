"""The ledger: which vectors the open jobs still lack, and what to embed next for them.

A job is admitted with its distinct sequences. Those whose vector is on disk, or on its way for another job, are not
asked for again. Vectors that come back are written to :mod:`blocks` before they count; a job that lacks nothing is
complete. A sequence that no worker survives, or that no device has memory for, is given up and noted in every job
that holds it.
"""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..models.registry import Prepared
from ..spool.job import Manifest, Receipt
from ..spool.progress import JobProgress
from .batches import Batch, Queue
from .blocks import BlockStore
from .sample import DistinctSequences


@dataclass(eq=False)
class Job:
    """An open job.

    Attributes:
        number: Grows with the time of the claim.
        directory: Its work directory.
        claimed: When it was claimed, by the monotonic clock, s.
        counts: What was read.
        sequences: Its distinct sequences by model, once it is read.
        missing: Sequences that it still waits for.
        missing_tokens: Their tokens.
        failures: By model, sequences that were given up, with the reason.
        input_sha256: Digest of its file (hex), once it is read.
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
    missing: int = 0
    missing_tokens: int = 0
    failures: dict[str, dict[int, str]] = field(default_factory=dict)
    input_sha256: str = ""
    inherited: int = 0
    read_s: float = 0.0
    device_s: float = 0.0
    computed_tokens: int = 0

    def progress(self, loaded: bool) -> JobProgress:
        """The job for others to see; ``loaded`` says whether the pool's models are."""
        kinds = ("sequences", "tokens")
        found = {kind: sum(self.counts.get(f"{model}_{kind}", 0) for model in self.manifest.models) for kind in kinds}
        embedding = "embedding" if loaded else "waiting"
        return JobProgress(
            job=self.manifest.job,
            sample=self.manifest.sample,
            kind=self.manifest.kind,
            state=embedding if self.missing else "writing" if self.sequences else "reading",
            age_s=round(time.monotonic() - self.claimed, 1),
            size_bytes=self.manifest.size_bytes,
            sequences_left=self.missing,
            tokens_left=self.missing_tokens,
            **found,
        )

    def receipt(self, error: str, embeddings: Path, failures: dict[str, str], **made_by: Any) -> Receipt:
        """What became of the job, now that it has ended.

        Args:
            error: Why it failed; empty when it is done.
            embeddings: Where its embeddings will be.
            failures: Rows that were given up, with the reason.
            made_by: ``pool`` and ``software``, as :class:`.Receipt` describes them.
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
            counts=self.counts | {"computed_tokens": self.computed_tokens, "inherited": self.inherited},
            seconds={name: round(value, 3) for name, value in seconds.items()},
            failures=failures,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            size_bytes=manifest.size_bytes,
            mtime_ns=manifest.mtime_ns,
            **made_by,
        )


class Ledger:
    """What all open jobs wait for."""

    def __init__(
        self, models: dict[str, Prepared], precision: str, root: Path, prefix: str, budget_tokens: int
    ) -> None:
        """Open the books, with the blocks that lie below ``root``.

        Args:
            models: The models of the pool.
            precision: What they compute in; vectors of another precision are not used.
            root: Directory of this pool's blocks.
            prefix: Start of the names of new blocks, unique to the pool.
            budget_tokens: Tokens in a batch.
        """
        self.jobs: dict[int, Job] = {}
        self.queues = {model: Queue(model, budget_tokens) for model in models}
        self.stores = {
            model: BlockStore(root / key(description, precision), description.width, prefix)
            for model, description in models.items()
        }
        self._waiters: dict[str, dict[bytes, list[tuple[Job, int]]]] = {model: {} for model in models}

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait to be sent to a device."""
        return sum(queue.waiting_tokens for queue in self.queues.values())

    def admit(self, job: Job) -> bool:
        """Enter a job that has been read; whether it lacks nothing."""
        self.jobs[job.number] = job
        for model, sequences in job.sequences.items():
            store, waiters = self.stores[model], self._waiters[model]
            fresh = []
            for number, digest in enumerate(sequences.digests):
                if store.use(digest):
                    job.inherited += store.inherited(digest)
                    continue
                job.missing += 1
                job.missing_tokens += int(sequences.lengths[number])
                if digest in waiters:
                    waiters[digest].append((job, number))
                else:
                    waiters[digest] = [(job, number)]
                    fresh.append(number)
            chosen = np.array(fresh, np.int64)
            self.queues[model].add(job.number, chosen, sequences.lengths[chosen])
        return not job.missing

    def next_batch(self, partial: bool) -> Batch | None:
        """The next batch, of the model whose oldest job is the oldest; see :meth:`batching.Queue.next`."""
        waiting = [(queue.oldest, queue) for queue in self.queues.values() if queue.oldest is not None]
        for _, queue in sorted(waiting, key=lambda entry: entry[0]):
            batch = queue.next(partial)
            if batch is not None:
                return batch
        return None

    def shrink(self, model: str, budget_tokens: int) -> int:
        """Make batches of a model no larger than this from now on; the budget that holds now."""
        queue = self.queues[model]
        queue.budget_tokens = max(1, min(queue.budget_tokens, budget_tokens))
        return queue.budget_tokens

    def tokens(self, batch: Batch) -> np.ndarray:
        """The tokens of a batch, its sequences one behind the other, int16 [T]."""
        return np.concatenate([job.sequences[batch.model].tokens(number) for job, number in self._entries(batch)])

    def settle(self, batch: Batch, vectors: np.ndarray, seconds: float) -> list[Job]:
        """Keep the vectors of a batch.

        Args:
            batch: The batch.
            vectors: float32 [n, width].
            seconds: What the device needed for them.

        Returns:
            The jobs that lack nothing any more.
        """
        waiters = self._waiters[batch.model]
        entries = self._entries(batch)
        digests = [job.sequences[batch.model].digests[number] for job, number in entries]
        self.stores[batch.model].add(digests, vectors, uses=[len(waiters[digest]) for digest in digests])
        for (job, _), length in zip(entries, batch.lengths.tolist(), strict=True):
            job.device_s += seconds * length / batch.tokens
            job.computed_tokens += length
        return [job for digest in digests for job in self._served(batch.model, digest)]

    def give_up(self, batch: Batch, reason: str) -> list[Job]:
        """Note that the sequences of a batch cannot be embedded; the jobs that lack nothing any more."""
        complete = []
        for owner, number in self._entries(batch):
            digest = owner.sequences[batch.model].digests[number]
            for job, own_number in self._waiters[batch.model][digest]:
                job.failures.setdefault(batch.model, {})[own_number] = reason
            complete += self._served(batch.model, digest)
        return complete

    def places(self, job: Job) -> dict[str, tuple[list[Path], np.ndarray]]:
        """By model, where the vectors of a complete job are; see :meth:`blocks.BlockStore.locate`."""
        return {model: self.stores[model].locate(sequences.digests) for model, sequences in job.sequences.items()}

    def close(self, job: Job) -> None:
        """Strike out a job whose embeddings are written."""
        if self.jobs.pop(job.number, None) is not None:
            for model, sequences in job.sequences.items():
                self.stores[model].release(sequences.digests)

    def sweep(self) -> None:
        """Remove blocks that no open job uses."""
        for store in self.stores.values():
            store.sweep()

    def refresh(self) -> None:
        """Take in blocks that were moved here from a dead pool."""
        for store in self.stores.values():
            store.refresh()

    def _entries(self, batch: Batch) -> list[tuple[Job, int]]:
        return [(self.jobs[job], n) for job, n in zip(batch.jobs.tolist(), batch.sequences.tolist(), strict=True)]

    def _served(self, model: str, digest: bytes) -> list[Job]:
        """End the wait for one sequence."""
        waiting = self._waiters[model].pop(digest)
        for job, number in waiting:
            job.missing -= 1
            job.missing_tokens -= int(job.sequences[model].lengths[number])
        return [job for job, _ in waiting if not job.missing]


def key(description: Prepared, precision: str) -> str:
    """Name of the directory for blocks of a model: vectors are the same only where this is."""
    return f"{description.model}-{description.weights_sha256[:16]}-{precision}"
