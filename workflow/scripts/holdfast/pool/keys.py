"""What the vectors in the shared cache are, and where they come from.

Vectors are found by their :class:`Key` and the digest of a sequence's tokens. Whatever changes a vector by more than
rounding belongs in the key. What device computed it does not: results of two devices in one precision differ by
rounding, as those of two batches do.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from ..models.registry import Output, Prepared
from .batches import Recipe

METHOD = 1
"""To be raised by whoever changes how vectors are computed, so that vectors from before are not found any more."""


@dataclass(frozen=True)
class Key:
    """What the vectors of a segment are; those of another key never stand in for them.

    Attributes:
        weights_sha256: Of the model.
        width: Of its vectors.
        precision: What the model computed in, ``fp32``, ``fp16`` or ``bf16``.
        layer: Whose states.
        pooling: How they are pooled.
        window: Residues above which a sequence was embedded in windows; None for whole ones.
        dtype: What vectors are kept in, ``float16`` or ``float32``.
        method: :data:`METHOD` of the program that computed them.
    """

    weights_sha256: str
    width: int
    precision: str
    layer: int
    pooling: str
    window: int | None
    dtype: str
    method: int = METHOD

    @property
    def name(self) -> str:
        """Name of the directory of its segments."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()
        return f"{self.weights_sha256[:16]}-{self.precision}-{self.layer}-{self.pooling}-{digest[:16]}"

    @property
    def output(self) -> Output:
        """The output of the model."""
        return Output(self.layer, self.pooling)

    def size_bytes(self, residues: np.ndarray) -> np.ndarray:
        """Size of the vectors of each of some sequences, int64 [n]."""
        return np.diff(self.bounds(residues)) * (self.width * np.dtype(self.dtype).itemsize)

    def parts(self, residues: np.ndarray, limit_bytes: int) -> Iterator[slice]:
        """Cut sequences into parts whose vectors take up to ``limit_bytes``, one sequence at least."""
        ends = np.cumsum(self.size_bytes(residues))
        first = 0
        while first < len(residues):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + limit_bytes, side="right")))
            yield slice(first, last)
            first = last

    def choose(self, vectors: np.ndarray, residues: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The vectors of some of many sequences, by their places, int64 [k], or a mask, bool [n]."""
        if self.pooling != "residues":
            return vectors[rows]
        bounds, chosen = self.bounds(residues), np.arange(len(residues))[rows]
        return np.concatenate([vectors[:0], *(vectors[bounds[row] : bounds[row + 1]] for row in chosen.tolist())])

    def bounds(self, residues: np.ndarray) -> np.ndarray:
        """Where the vectors of each of some sequences begin, and the last ones end, int64 [n + 1]."""
        counts = residues if self.pooling == "residues" else np.ones(len(residues), np.int64)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


@dataclass(frozen=True)
class Origin:
    """Where a vector comes from.

    Attributes:
        run: Run of the workflow that asked for it; empty where a pool was asked by hand.
        pool: The pool that computed it.
        host: Where that ran.
        user: Who ran it.
        spool: Absolute path of its spool.
        holdfast: Version of the program.
        holdfast_sha256: Digest of its code.
        began: When the pool began, ISO 8601 in UTC.
    """

    run: str
    pool: str
    host: str
    user: str
    spool: str
    holdfast: str
    holdfast_sha256: str
    began: str


def keys_of(recipe: Recipe, prepared: Prepared, precision: str) -> list[Key]:
    """What the vectors of each output of a recipe are, in their order."""
    return [
        Key(
            weights_sha256=recipe.weights_sha256,
            width=prepared.width,
            precision=precision,
            layer=output.layer,
            pooling=output.pooling,
            window=recipe.window,
            dtype=recipe.residues_dtype if output.pooling == "residues" else "float32",
        )
        for output in recipe.outputs
    ]
