"""A segment: one file of the shared cache, with the vectors that one output of a model gave for many sequences.

It is a safetensors file that never changes: ``digests`` u8 [n, 32], the SHA-256 of each sequence's tokens, ascending;
``residues`` i64 [n]; ``checksums`` u32 [n]; ``origins`` i32 [n], places in a list in the metadata, which says what run
made a vector; ``vectors`` [n, width] or, of residues, those of all sequences one behind the other, with ``offsets``
i64 [n + 1]. The metadata repeat what the vectors are (:class:`Key`).

Others can write to a cache, and disks fail, so nothing in a segment is believed: sizes are held against the file, and a
row is used only if its digest is the one that is wanted and its checksum is right. A checksum, CRC-32 of digest, number
of residues and vectors, notices damage; it is no signature. Files are read, not mapped: a mapped file that another host
removes from a network file system ends the process that looks at it.
"""

import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from ..documents import JSON_LIMIT_BYTES, DocumentError, fill, parse_json
from ..errors import HoldfastError
from ..files import temporary_path
from .access import Access
from .blocks import DIGEST_BYTES
from .keys import Key, Origin

LARGEST_BYTES = 2**33
SLAB_BYTES = 2**23
GAP_BYTES = 2**16
"""Rows that lie no further apart are read at once, with what is between them."""
_DTYPES = {"U8": np.uint8, "U32": np.uint32, "I32": np.int32, "I64": np.int64, "F16": np.float16, "F32": np.float32}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_SMALL: dict[str, tuple[type, list[int]]] = {
    "digests": (np.uint8, [DIGEST_BYTES]),
    "residues": (np.int64, []),
    "checksums": (np.uint32, []),
    "origins": (np.int32, []),
}
"""Type and further dimensions of the arrays that have an entry a sequence."""


class SegmentError(HoldfastError):
    """A file of the cache that is damaged, or not what this version writes."""


class Rows(NamedTuple):
    """Sequences of a segment.

    Attributes:
        digests: SHA-256 of the tokens of each, u8 [n, 32].
        residues: Of each, int64 [n].
        origins: Place of each one's origin in the list of the segment, int32 [n].
    """

    digests: np.ndarray
    residues: np.ndarray
    origins: np.ndarray


def prefixes(digests: np.ndarray) -> np.ndarray:
    """The first eight bytes of digests u8 [n, 32] as numbers of the same order, uint64 [n]."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def checksums(digests: np.ndarray, residues: np.ndarray, vectors: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """CRC-32 of each sequence: its digest, its residues as int64, its vectors; uint32 [n]."""
    heads = memoryview(np.concatenate([digests, residues.astype("<i8").view(np.uint8).reshape(-1, 8)], 1).tobytes())
    content = memoryview(np.ascontiguousarray(vectors).reshape(-1).view(np.uint8).data)
    ends = (bounds * (vectors.shape[1] * vectors.itemsize)).tolist()
    head_bytes, crc32 = DIGEST_BYTES + 8, zlib.crc32
    found = (
        crc32(content[ends[row] : ends[row + 1]], crc32(heads[row * head_bytes : (row + 1) * head_bytes]))
        for row in range(len(digests))
    )
    return np.fromiter(found, np.uint32, len(digests))


def write_segment(
    path: Path,
    key: Key,
    source: str,
    rows: Rows,
    origins: list[Origin],
    slabs: Iterable[np.ndarray],
    access: Access,
) -> None:
    """Write a segment, whole or not at all.

    Args:
        path: Where.
        key: What its vectors are.
        source: What the model was made from, for people.
        rows: Its sequences, in the order of their digests.
        origins: What ``rows.origins`` are places in.
        slabs: The vectors of some sequences each, of all sequences in their order.
        access: Who may use it.

    Raises:
        OSError: the disk is full or fails.
    """
    bounds = key.bounds(rows.residues)
    small = {"digests": rows.digests, "residues": rows.residues}
    if key.pooling == "residues":
        small["offsets"] = bounds
    small |= {"checksums": np.zeros(len(rows.digests), np.uint32), "origins": rows.origins}
    shapes = {name: (_CODES[array.dtype], list(array.shape), array.nbytes) for name, array in small.items()}
    dtype = np.dtype(key.dtype)
    shapes["vectors"] = _CODES[dtype], [int(bounds[-1]), key.width], int(bounds[-1]) * key.width * dtype.itemsize
    told = {"key": asdict(key), "source": source, "origins": [asdict(origin) for origin in origins]}
    header: dict[str, object] = {"__metadata__": {name: json.dumps(value) for name, value in told.items()}}
    begin = 0
    for name, (code, shape, size_bytes) in shapes.items():
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, begin + size_bytes]}
        begin += size_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with temporary_path(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as file:
            access.settle(handle)
            file.seek(8 + len(text) + sum(array.nbytes for array in small.values()))
            first = 0
            for slab in slabs:
                last = int(np.searchsorted(bounds, bounds[first] + len(slab), side="right")) - 1
                part = slice(first, last)
                own_bounds = bounds[first : last + 1] - bounds[first]
                found = checksums(rows.digests[part], rows.residues[part], slab, own_bounds)
                small["checksums"][part] = found
                file.write(np.ascontiguousarray(slab, dtype).data)
                first = last
            file.seek(0)
            file.write(len(text).to_bytes(8, "little") + text)
            for array in small.values():
                file.write(np.ascontiguousarray(array).tobytes())


class Segment:
    """A segment that is open.

    Attributes:
        key: What its vectors are.
        source: What their model was made from.
        origins: Where they come from.
        count: Sequences.
    """

    def __init__(self, path: Path) -> None:
        """Open it and check its header.

        Raises:
            OSError: it cannot be read.
            SegmentError: it is no segment.
        """
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            found = os.fstat(self._handle)
            if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_BYTES:
                raise DocumentError("not a file, or too large")
            self._read_header(found.st_size)
        except (DocumentError, ValueError, TypeError, KeyError, OverflowError) as error:
            os.close(self._handle)
            raise SegmentError(f"{path}: not a segment of this version ({error})") from None
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def _read_header(self, size_bytes: int) -> None:
        length = int.from_bytes(self._read(0, 8), "little")
        if length > min(JSON_LIMIT_BYTES, size_bytes):
            raise DocumentError("its header is too large")
        header = parse_json(self._read(8, length).decode())
        told = {name: parse_json(text) for name, text in header.pop("__metadata__").items()}
        self.key: Key = fill(Key, told["key"])
        self.source = str(told["source"])
        self.origins: list[Origin] = [fill(Origin, origin) for origin in told["origins"]]
        self._arrays: dict[str, tuple[np.dtype, list[int], int]] = {}
        for name, entry in header.items():
            dtype, shape, (first, last) = np.dtype(_DTYPES[entry["dtype"]]), list(entry["shape"]), entry["data_offsets"]
            begin, end = 8 + length + first, 8 + length + last
            items = 1
            for size in shape:
                items *= size
            if not all(type(size) is int and size >= 0 for size in (first, *shape)) or end > size_bytes:
                raise DocumentError(f"{name} is not inside the file")
            if end - begin != items * dtype.itemsize:
                raise DocumentError(f"{name} has another size than its shape")
            self._arrays[name] = dtype, shape, begin
        self.count: int = self._arrays["digests"][1][0]
        wanted: dict[str, tuple[np.dtype, list[int]]] = {}
        for array, (kind, more) in _SMALL.items():
            wanted[array] = np.dtype(kind), [self.count, *more]
        if self.key.pooling == "residues":
            wanted["offsets"] = np.dtype(np.int64), [self.count + 1]
        self._vectors = self._arrays["vectors"][1][0] if self.key.pooling == "residues" else self.count
        wanted["vectors"] = np.dtype(self.key.dtype), [self._vectors, self.key.width]
        if {name: (dtype, shape) for name, (dtype, shape, _) in self._arrays.items()} != wanted or not self.key.width:
            raise DocumentError("its arrays are not those of its key")

    def prefixes(self) -> np.ndarray:
        """The first eight bytes of each digest as a number, ascending, uint64 [n].

        Raises:
            SegmentError: they do not ascend.
        """
        parts = [
            prefixes(self.take("digests", np.arange(first, min(self.count, first + 2**17))))
            for first in range(0, self.count, 2**17)
        ]
        found = np.concatenate([np.empty(0, np.uint64), *parts])
        if (found[1:] < found[:-1]).any():
            raise SegmentError(f"{self.path}: its digests are not in order")
        return found

    def read(self, rows: np.ndarray, digests: np.ndarray, residues: np.ndarray) -> tuple[np.ndarray, ...]:
        """Read the vectors of some sequences.

        Args:
            rows: Where they are, int64 [k], ascending.
            digests: What they are expected to be, u8 [k, 32].
            residues: How many residues each has, int64 [k].

        Returns:
            Which rows hold what is expected and are not damaged, bool [k]; the place of each among the origins, int32
            [k]; and the vectors of all of them, one behind the other, anything for those that are not good.

        Raises:
            OSError: the file cannot be read any more.
            SegmentError: it ends too early.
        """
        good = (self.take("digests", rows) == digests).all(1) & (self.take("residues", rows) == residues)
        origins = self.take("origins", rows)
        good &= (origins >= 0) & (origins < len(self.origins))
        bounds = self.key.bounds(residues)
        if self.key.pooling == "residues":
            begins, ends = self.take("offsets", rows), self.take("offsets", rows + 1)
            good &= (begins >= 0) & (ends <= self._vectors) & (ends - begins == residues)
            vectors = self._stretches(begins, bounds, good)
        else:
            vectors = self.take("vectors", rows)
        good &= checksums(digests, residues, vectors, bounds) == self.take("checksums", rows)
        return good, origins, vectors

    def rows(self) -> Rows:
        """All its sequences.

        Raises:
            OSError: the file cannot be read any more.
            SegmentError: what it says of their vectors does not fit its size.
        """
        every = np.arange(self.count)
        found = Rows(*(self.take(name, every) for name in Rows._fields))
        total = int(found.residues.sum()) if self.key.pooling == "residues" else self.count
        if (found.residues < 0).any() or (found.residues > 2**40).any() or total != self._vectors:
            raise SegmentError(f"{self.path}: its residues are not those of its vectors")
        return found

    def slabs(self, rows: Rows) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """All its vectors.

        Args:
            rows: What :meth:`rows` gave.

        Yields:
            Which sequences, which of them are not damaged, and their vectors, about :data:`SLAB_BYTES` of them.
        """
        for part in self.key.parts(rows.residues, SLAB_BYTES):
            where = np.arange(part.start, part.stop)
            good, _, vectors = self.read(where, rows.digests[part], rows.residues[part])
            yield part, good, vectors

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Some rows of an array, in ascending order."""
        dtype, shape, begin = self._arrays[name]
        size = dtype.itemsize
        for length in shape[1:]:
            size *= length
        taken = np.empty((len(rows), size), np.uint8)
        for first, last in _together(rows * size, (rows + 1) * size):
            start = int(rows[first])
            count = int(rows[last - 1]) + 1 - start
            if count == last - first:  # all that is there
                self._read_into(taken[first:last], begin + start * size)
                continue
            between = np.empty((count, size), np.uint8)
            self._read_into(between, begin + start * size)
            np.take(between, rows[first:last] - start, 0, taken[first:last], mode="clip")
        return taken.view(dtype).reshape(len(rows), *shape[1:])

    def _stretches(self, begins: np.ndarray, bounds: np.ndarray, good: np.ndarray) -> np.ndarray:
        """Vectors from ``begins`` on of each sequence that is good so far, to lie between ``bounds``."""
        dtype, (_, width), start = self._arrays["vectors"]
        size = dtype.itemsize * width
        taken = np.zeros((int(bounds[-1]), width), dtype)
        chosen = np.flatnonzero(good)
        counts = np.diff(bounds)[chosen]
        if (begins[chosen][1:] < (begins[chosen] + counts)[:-1]).any():
            raise SegmentError(f"{self.path}: its offsets are not in order")
        for first, last in _together(begins[chosen] * size, (begins[chosen] + counts) * size):
            offset = int(begins[chosen[first]])
            end = int(begins[chosen[last - 1]] + counts[last - 1])
            content = np.empty((end - offset, width), dtype)
            self._read_into(content, start + offset * size)
            for row in chosen[first:last].tolist():
                begin, count = int(begins[row]) - offset, int(bounds[row + 1] - bounds[row])
                taken[bounds[row] : bounds[row] + count] = content[begin : begin + count]
        return taken

    def _read(self, offset: int, size_bytes: int) -> bytes:
        content = np.empty(size_bytes, np.uint8)
        self._read_into(content, offset)
        return content.tobytes()

    def _read_into(self, target: np.ndarray, offset: int) -> None:
        rest = memoryview(target.reshape(-1).view(np.uint8).data)
        while len(rest):
            count = os.preadv(self._handle, [rest], offset)
            if not count:
                raise SegmentError(f"{self.path}: ends too early")
            rest, offset = rest[count:], offset + count


def _together(begins: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Which of some ascending stretches of a file to read at once: the first of them, and that behind the last."""
    apart = np.flatnonzero(begins[1:] - ends[:-1] > GAP_BYTES) + 1
    for start, stop in zip([0, *apart.tolist()], [*apart.tolist(), len(begins)], strict=True):
        first = start
        while first < stop:
            last = first + max(1, int(np.searchsorted(ends[first:stop], begins[first] + SLAB_BYTES, side="right")))
            yield first, last
            first = last
