"""Blocks: what a batch gave, one file a batch, until the jobs that need it are written.

A block is a safetensors file: the SHA-256 of each sequence's tokens, how many residues it has, and one array for each
output of its recipe; of ``residues`` those of all sequences, one behind the other. The worker that computed a batch
writes its block, so that nothing of it passes through the supervisor, which only keeps where to find it. Blocks appear
by rename, so a pool that dies loses at most the batches in flight; the pool that takes over its jobs adopts its blocks.
What a reader finds in the shared :mod:`.cache` it copies into blocks, too, which name where their vectors come from.
Results are found by digest, whatever sample they were computed for, so a sequence that several open jobs hold is
computed once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from safetensors.numpy import save

from ..files import temporary_path

DIGEST_BYTES = 32
SUFFIX = ".safetensors"
SLAB_RESIDUES = 16384
_DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8}


def write_block(
    path: Path,
    digests: bytes,
    residues: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    origins: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write a block, whole or not at all.

    Args:
        path: Where.
        digests: SHA-256 of each sequence's tokens, n times 32 bytes.
        residues: Of each sequence, int64 [n].
        arrays: By name of the output, float32 [n, width], or of residues float16 or float32 [all residues, width].
        origins: Where vectors come from that this pool has not computed, see :class:`.segments.Origin`.

    Raises:
        OSError: the disk is full or fails.
    """
    told = {"digests": np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES), "residues": residues}
    metadata = {"origins": json.dumps(origins)} if origins else None
    content = save({**told, **{name: np.ascontiguousarray(array) for name, array in arrays.items()}}, metadata)
    with temporary_path(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


class Block:
    """A block that is mapped, not read."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            self._header = json.loads(file.read(size))
        self._content = np.memmap(path, np.uint8, "r")[8 + size :]

    def array(self, name: str) -> np.ndarray:
        """One of its arrays, ``digests`` and ``residues`` among them."""
        known = self._header[name]
        first, last = known["data_offsets"]
        return self._content[first:last].view(_DTYPES[known["dtype"]]).reshape(known["shape"])

    @property
    def origins(self) -> list[dict[str, str]]:
        """Where its vectors come from, if they were not computed for it but found in the shared cache."""
        found: list[dict[str, str]] = json.loads(self._header.get("__metadata__", {}).get("origins", "[]"))
        return found

    @property
    def digests(self) -> list[bytes]:
        """SHA-256 of each sequence's tokens."""
        return [digest.tobytes() for digest in self.array("digests")]


class BlockStore:
    """The blocks of one recipe in one pool.

    A block lives as long as an open job uses a part of it; one that was found or adopted, until the pool has no work.
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        """Open the store in ``directory``, with the blocks that lie there.

        Args:
            directory: One for each pool, recipe and precision.
            prefix: Start of the names of new blocks, unique to the pool.
        """
        self.directory = directory
        self._prefix = f"{prefix}-"
        self._paths: dict[int, Path] = {}
        self._uses: Counter[int] = Counter()
        self._places: dict[bytes, tuple[int, int]] = {}
        self._next = self._written = 0
        self._read: set[str] = set()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.refresh()

    def refresh(self) -> None:
        """Take in blocks that were moved here from a dead pool."""
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            if path.name not in self._read and not self._is_own(path):
                self._index(path, Block(path).digests)

    def __len__(self) -> int:
        return len(self._places)

    def new_path(self) -> Path:
        """Where the next block is to be written."""
        self._written += 1
        return self.directory / f"{self._prefix}{self._written:08d}{SUFFIX}"

    def add(self, path: Path, digests: list[bytes], uses: list[int]) -> None:
        """Take in a block that a worker has written.

        Args:
            path: Where it is.
            digests: SHA-256 of each sequence's tokens.
            uses: How many jobs use each of them; :meth:`release` counts that down.
        """
        self._index(path, digests)
        for digest, count in zip(digests, uses, strict=True):
            self._uses[self._places[digest][0]] += count

    def take_in(self, path: Path) -> None:
        """Take in a block that a reader has made of the shared cache."""
        self._index(path, Block(path).digests)

    def _index(self, path: Path, digests: list[bytes]) -> None:
        for row, digest in enumerate(digests):
            self._places.setdefault(digest, (self._next, row))
        self._paths[self._next] = path
        self._uses[self._next] += 0
        self._read.add(path.name)
        self._next += 1

    def _is_own(self, path: Path) -> bool:
        return path.name.startswith(self._prefix)

    def use(self, digest: bytes) -> bool:
        """Whether a sequence is here; if so, keep it until :meth:`release`."""
        place = self._places.get(digest)
        if place is None:
            return False
        self._uses[place[0]] += 1
        return True

    def inherited(self, digest: bytes) -> bool:
        """Whether a sequence that is here was computed by another pool, which has died."""
        return not self._is_own(self._paths[self._places[digest][0]])

    def locate(self, digests: Iterable[bytes]) -> tuple[list[Path], np.ndarray]:
        """Where these sequences are.

        Returns:
            The paths of the blocks concerned and, for each digest, the index of its path and its row, int32 [n, 2];
            both -1 where the sequence is not here.
        """
        places = np.array([self._places.get(digest, (-1, -1)) for digest in digests], np.int32).reshape(-1, 2)
        known = places[:, 0] >= 0
        numbers, places[known, 0] = np.unique(places[known, 0], return_inverse=True)
        return [self._paths[int(number)] for number in numbers], places

    def release(self, digests: Iterable[bytes]) -> None:
        """End one use of each of these sequences; blocks of theirs that nobody uses any more are removed."""
        ended = Counter(self._places[digest][0] for digest in digests if digest in self._places)
        self._uses.subtract(ended)
        self._remove([number for number in ended if self._uses[number] <= 0])

    def drop_unused(self, paths: Iterable[Path]) -> None:
        """Remove those of some blocks that nobody uses."""
        given = set(paths)
        self._remove([number for number, path in self._paths.items() if path in given and self._uses[number] <= 0])

    def sweep(self) -> None:
        """Remove all blocks that nobody uses, those too whose jobs have not come."""
        self._remove([number for number, uses in self._uses.items() if uses <= 0])

    def _remove(self, numbers: list[int]) -> None:
        places = self._places
        for number in numbers:
            path = self._paths.pop(number)
            for digest in Block(path).digests:
                if places.get(digest, (-1, 0))[0] == number:
                    del places[digest]
            path.unlink()
            self._read.discard(path.name)
            del self._uses[number]


def gather(
    paths: list[Path], places: np.ndarray, rows: np.ndarray, output: str, slab_rows: int = 4096
) -> Iterator[np.ndarray]:
    """Read vectors from blocks in the order of a sample's rows.

    Args:
        paths: Blocks, as :meth:`BlockStore.locate` gave them.
        places: Index of the block and row in it for each distinct sequence, int32 [n, 2].
        rows: Distinct sequence of each row, int64 [N].
        output: Name of one that has a vector a sequence.
        slab_rows: Rows to read at a time.

    Yields:
        float32 [at most slab_rows, width], N rows in all.
    """
    opened = lru_cache(maxsize=256)(lambda number: Block(paths[number]).array(output))
    for start in range(0, len(rows), slab_rows):
        wanted = _known(places[rows[start : start + slab_rows]])
        slab = np.empty((len(wanted), opened(int(wanted[0, 0])).shape[1]), np.float32)
        for number in np.unique(wanted[:, 0]):
            chosen = wanted[:, 0] == number
            slab[chosen] = opened(int(number))[wanted[chosen, 1]]
        yield slab


def gather_residues(paths: list[Path], places: np.ndarray, rows: np.ndarray, output: str) -> Iterator[np.ndarray]:
    """Read the residues of sequences from blocks in the order of a sample's rows.

    Args:
        paths: As for :func:`gather`, and so are the others.
        places: Of each distinct sequence.
        rows: Distinct sequence of each row.
        output: Name of one that has a vector a residue.

    Yields:
        float16 or float32 [residues, width] of some rows, one behind the other, those of all rows in all; one row at
        least, otherwise about :data:`SLAB_RESIDUES` residues.
    """

    @lru_cache(maxsize=256)
    def opened(number: int) -> tuple[np.ndarray, np.ndarray]:
        block = Block(paths[number])
        return block.array(output), np.cumsum([0, *block.array("residues")])

    slab: list[np.ndarray] = []
    held = 0
    for number, row in _known(places[rows]).tolist():
        values, bounds = opened(number)
        slab.append(values[bounds[row] : bounds[row + 1]])
        held += len(slab[-1])
        if held >= SLAB_RESIDUES:
            yield np.concatenate(slab)
            slab, held = [], 0
    if slab:
        yield np.concatenate(slab)


def _known(places: np.ndarray) -> np.ndarray:
    if (places < 0).any():
        raise ValueError("a row has no vector")
    return places


def write_array(file: IO[bytes], array: np.ndarray) -> None:
    """Write an array in numpy's format; a full disk is the OSError that it is, not a count of missing items."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).tobytes())
    file.flush()
