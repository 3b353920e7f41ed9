"""Batches: which sequences travel to a device together, and what may become of them there.

Sequences of all open jobs wait in one queue a model, in the order in which their jobs were claimed. A window of
:data:`WINDOW_BATCHES` budgets is taken from the front, sorted by length and cut by the token budget, so a batch holds
sequences of nearly equal length, from as many samples as it takes to fill it, and an old job never waits for a young
one longer than a window.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..models.registry import Output, Prepared
from ..spool.job import Request

WINDOW_BATCHES = 16
BATCH_TOKENS = 16384
MOST_BATCH_TOKENS = 131_072
FULL_WIDTH = 2560
"""Width of ESM-2 3B, which :data:`BATCH_TOKENS` keep busy."""


def batch_budgets(models: Iterable[Prepared], asked: int | None, device: str) -> dict[str, int]:
    """Tokens in a batch of each model, by its ``weights_sha256``.

    Where nothing was asked, :data:`BATCH_TOKENS`; on a GPU as many more as a model is narrower than :data:`FULL_WIDTH`,
    since a batch of a small model is over before the host has sent the next one: on an H100 16,384 tokens of ESM-2 35M
    reach half the speed of 65,536 (docs/kernels.md).

    Args:
        models: The models of the pool.
        asked: ``pool.tokens_per_batch``.
        device: Name of a device of the pool, ``cpu:N`` or ``cuda:N``.
    """
    wider = FULL_WIDTH if device.startswith("cuda") else 0
    return {
        model.weights_sha256: asked or min(MOST_BATCH_TOKENS, max(BATCH_TOKENS, BATCH_TOKENS * wider // model.width))
        for model in models
    }


class Recipe(NamedTuple):
    """What is computed of a sequence; what two jobs ask for alike is computed once.

    Attributes:
        weights_sha256: Of the model.
        outputs: What is made of its states.
        window: Residues above which a sequence is embedded in windows; None for whole ones.
        residues_dtype: What ``residues`` are kept in, ``float16`` or ``float32``; empty without them.
    """

    weights_sha256: str
    outputs: tuple[Output, ...]
    window: int | None
    residues_dtype: str

    def key(self, precision: str) -> str:
        """Name of the directory for its blocks: results are the same only where this is."""
        asked = [[asdict(output) for output in self.outputs], self.window, self.residues_dtype]
        return f"{self.weights_sha256[:16]}-{precision}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}"


def make_recipe(request: Request, store_dtype: str) -> Recipe:
    """The recipe of what a job asks of a model, for embeddings that are stored in a dtype."""
    window = request.max_length if request.long == "window" else None
    asks_residues = any(output.pooling == "residues" for output in request.outputs)
    return Recipe(request.weights_sha256, tuple(request.outputs), window, store_dtype if asks_residues else "")


@dataclass(frozen=True)
class Batch:
    """Sequences of one recipe that are embedded together.

    Attributes:
        recipe: What is computed of them.
        jobs: Position of each sequence's job, int64 [n]: the number that its caller gave to :meth:`Queue.add`.
        sequences: Index of each sequence within its job, int64 [n].
        lengths: Tokens of each sequence, int32 [n].
    """

    recipe: Recipe
    jobs: np.ndarray
    sequences: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens in the batch."""
        return int(self.lengths.sum())

    def halves(self) -> "tuple[Batch, Batch]":
        """Two batches of half its sequences; it must have two."""
        middle = len(self) // 2
        return _take(self, slice(0, middle)), _take(self, slice(middle, None))


@dataclass(frozen=True)
class Embedded:
    """A batch has come back: where its block is, and the seconds that its device worked."""

    batch: Batch
    path: Path
    seconds: float


@dataclass(frozen=True)
class TooLarge:
    """A device has no memory for a batch of several sequences, which will be tried again in halves."""

    batch: Batch
    device: str


@dataclass(frozen=True)
class GivenUp:
    """The one sequence of a batch cannot be embedded: the status of its record, and why."""

    batch: Batch
    status: str
    reason: str


Event = Embedded | TooLarge | GivenUp


class Queue:
    """What waits for one recipe."""

    def __init__(self, recipe: Recipe, budget_tokens: int) -> None:
        """Make an empty queue whose batches hold at most ``budget_tokens``, or one longer sequence."""
        self.recipe = recipe
        self.budget_tokens = budget_tokens
        self.waiting_tokens = 0
        self._waiting: deque[Batch] = deque()
        self._window = Batch(recipe, *(np.empty(0, kind) for kind in (np.int64, np.int64, np.int32)))

    def add(self, job: int, sequences: np.ndarray, lengths: np.ndarray) -> None:
        """Append sequences of a job.

        Args:
            job: Number of the job; jobs are added oldest first.
            sequences: Their indices within the job, int64 [n].
            lengths: Their tokens, int32 [n].
        """
        if len(sequences):
            self._waiting.append(Batch(self.recipe, np.full(len(sequences), job), sequences, lengths))
            self.waiting_tokens += int(lengths.sum())

    @property
    def oldest(self) -> int | None:
        """Number of the oldest job that waits, or None."""
        heads = [int(self._window.jobs.min())] if len(self._window.jobs) else []
        heads += [int(self._waiting[0].jobs[0])] if self._waiting else []
        return min(heads, default=None)

    def next(self, partial: bool) -> Batch | None:
        """Take the next batch.

        Args:
            partial: Also take a batch that more sequences could still fill.

        Returns:
            A batch, or None when nothing waits or, without ``partial``, too little.
        """
        if self.waiting_tokens == 0 or (not partial and self.waiting_tokens < self.budget_tokens):
            return None
        if self._waiting and self._window.tokens < self.budget_tokens:
            self._refill()
        ends = np.cumsum(self._window.lengths, dtype=np.int64)
        count = max(1, int(np.searchsorted(ends, self.budget_tokens, side="right")))
        batch = _take(self._window, slice(0, count))
        self._window = _take(self._window, slice(count, None))
        self.waiting_tokens -= batch.tokens
        return batch

    def _refill(self) -> None:
        """Fill the window from the front of the queue; what is left of it stays in front, the new is sorted."""
        parts, room = [], WINDOW_BATCHES * self.budget_tokens - self._window.tokens
        while self._waiting and room > 0:
            part = self._waiting.popleft()
            count = max(1, int(np.searchsorted(np.cumsum(part.lengths, dtype=np.int64), room, side="right")))
            if count < len(part.lengths):
                self._waiting.appendleft(_take(part, slice(count, None)))
                part = _take(part, slice(0, count))
            parts.append(part)
            room -= part.tokens
        fresh = _join(self.recipe, parts)
        self._window = _join(self.recipe, [self._window, _take(fresh, np.argsort(-fresh.lengths, kind="stable"))])


def _take(batch: Batch, chosen: slice | np.ndarray) -> Batch:
    return Batch(batch.recipe, batch.jobs[chosen], batch.sequences[chosen], batch.lengths[chosen])


def _join(recipe: Recipe, parts: list[Batch]) -> Batch:
    jobs, sequences, lengths = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("jobs", "sequences", "lengths")
    )
    return Batch(recipe, jobs, sequences, lengths)
