"""Blocks: finished vectors on disk, one file a batch, until the jobs that need them are written.

A block is a structured ``.npy`` file: the SHA-256 of each sequence's tokens and its vector. Blocks appear by rename,
so a pool that dies loses at most the batches in flight; the pool that takes over its jobs adopts its blocks. Vectors
are found by digest, whatever sample they were computed for, so a sequence that several open jobs hold is computed
once.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from ..files import temporary_path

DIGEST_BYTES = 32


class BlockStore:
    """The blocks of one model in one pool.

    A block lives as long as an open job uses a vector of it; one that was found or adopted, until the pool has no work.
    """

    def __init__(self, directory: Path, width: int, prefix: str) -> None:
        """Open the store in ``directory``, with the blocks that lie there.

        Args:
            directory: One for each pool, model and precision.
            width: Columns of a vector.
            prefix: Start of the names of new blocks, unique to the pool.
        """
        self.directory = directory
        self.prefix = prefix
        self.width = width
        self._dtype = np.dtype([("digest", "u1", DIGEST_BYTES), ("vector", "<f4", width)])
        self._paths: dict[int, Path] = {}
        self._uses: Counter[int] = Counter()
        self._places: dict[bytes, tuple[int, int]] = {}
        self._next = 0
        self._read: set[str] = set()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.refresh()

    def refresh(self) -> None:
        """Take in blocks that were moved here from a dead pool."""
        for path in sorted(self.directory.glob("*.npy")):
            if path.name not in self._read:
                self._index(path, [digest.tobytes() for digest in np.load(path, mmap_mode="r")["digest"]])

    def __len__(self) -> int:
        return len(self._places)

    def add(self, digests: list[bytes], vectors: np.ndarray, uses: list[int]) -> None:
        """Write one block.

        Args:
            digests: SHA-256 of each sequence's tokens.
            vectors: float32 [n, width].
            uses: How many jobs use each of them; :meth:`release` counts that down.
        """
        block = np.empty(len(digests), self._dtype)
        block["digest"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
        block["vector"] = vectors
        path = self.directory / f"{self.prefix}-{self._next:08d}.npy"
        with temporary_path(path) as temporary, open(temporary, "wb") as file:
            write_array(file, block)
        self._index(path, digests)
        for digest, count in zip(digests, uses, strict=True):
            self._uses[self._places[digest][0]] += count

    def _index(self, path: Path, digests: list[bytes]) -> None:
        for row, digest in enumerate(digests):
            self._places.setdefault(digest, (self._next, row))
        self._paths[self._next] = path
        self._uses[self._next] += 0
        self._read.add(path.name)
        self._next += 1

    def use(self, digest: bytes) -> bool:
        """Whether the vector of a sequence is here; if so, keep it until :meth:`release`."""
        place = self._places.get(digest)
        if place is None:
            return False
        self._uses[place[0]] += 1
        return True

    def inherited(self, digest: bytes) -> bool:
        """Whether the vector of a sequence that is here was computed by another pool, which has died."""
        return not self._paths[self._places[digest][0]].name.startswith(f"{self.prefix}-")

    def locate(self, digests: Iterable[bytes]) -> tuple[list[Path], np.ndarray]:
        """Where the vectors of these sequences are.

        Returns:
            The paths of the blocks concerned and, for each digest, the index of its path and its row, int32 [n, 2];
            both -1 where the sequence has no vector.
        """
        places = np.array([self._places.get(digest, (-1, -1)) for digest in digests], np.int32).reshape(-1, 2)
        known = places[:, 0] >= 0
        numbers, places[known, 0] = np.unique(places[known, 0], return_inverse=True)
        return [self._paths[int(number)] for number in numbers], places

    def release(self, digests: Iterable[bytes]) -> None:
        """End one use of each of these vectors; blocks of theirs that nobody uses any more are removed."""
        ended = Counter(self._places[digest][0] for digest in digests if digest in self._places)
        self._uses.subtract(ended)
        self._remove([number for number in ended if self._uses[number] <= 0])

    def sweep(self) -> None:
        """Remove all blocks that nobody uses, those too whose jobs have not come."""
        self._remove([number for number, uses in self._uses.items() if uses <= 0])

    def _remove(self, numbers: list[int]) -> None:
        places = self._places
        for number in numbers:
            path = self._paths.pop(number)
            for digest in np.load(path, mmap_mode="r")["digest"]:
                if places.get(digest.tobytes(), (-1, 0))[0] == number:
                    del places[digest.tobytes()]
            path.unlink()
            self._read.discard(path.name)
            del self._uses[number]


def gather(paths: list[Path], places: np.ndarray, rows: np.ndarray, slab_rows: int = 4096) -> Iterator[np.ndarray]:
    """Read vectors from blocks in the order of a sample's rows.

    Args:
        paths: Blocks, as :meth:`BlockStore.locate` gave them.
        places: Index of the block and row in it for each distinct sequence, int32 [n, 2].
        rows: Distinct sequence of each row, int64 [N].
        slab_rows: Rows to read at a time.

    Yields:
        float32 [at most slab_rows, width], N rows in all.
    """
    opened = lru_cache(maxsize=256)(lambda number: np.load(paths[number], mmap_mode="r")["vector"])
    for start in range(0, len(rows), slab_rows):
        wanted = places[rows[start : start + slab_rows]]
        if (wanted < 0).any():
            raise ValueError("a row has no vector")
        slab = np.empty((len(wanted), opened(int(wanted[0, 0])).shape[1]), np.float32)
        for number in np.unique(wanted[:, 0]):
            chosen = wanted[:, 0] == number
            slab[chosen] = opened(int(number))[wanted[chosen, 1]]
        yield slab


def write_array(file: IO[bytes], array: np.ndarray) -> None:
    """Write an array in numpy's format; a full disk is the OSError that it is, not a count of missing items."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).tobytes())
    file.flush()
