"""A shelf of the shared cache: the segments of one key, in a directory of their own.

Any number of processes on any hosts read and write a shelf at the same time, without locks. A segment appears by
rename, never changes, and goes by being unlinked: who finds that it has gone looks at the directory again, and takes
what is not there for not found. When a shelf has many small segments, whoever notices makes a larger one of them; that
is named after them, so that two who do the same at the same time make the same file.
"""

import hashlib
import logging
import math
import os
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .access import Access, remove_abandoned
from .blocks import SUFFIX
from .keys import Key, Origin
from .segments import SLAB_BYTES, Rows, Segment, SegmentError, prefixes, write_segment

SEGMENT_PATTERN = re.compile(r"[0-9a-f]{32}\.safetensors")
PREFIXES_BYTES = 2**28
"""Memory of a process for the prefixes of segments, 8 bytes a sequence; those used least recently are read again."""
MERGED_BYTES = 2**30
SMALLEST_CLASS_BYTES = 2**20
CLASS_FACTOR = 8
MERGED_ORIGINS = 10_000
TOUCH_S = 3600.0
"""A segment's time of modification, by which it is evicted, is set no more often than this."""
LOOKS = 3

log = logging.getLogger("holdfast.cache")
_noted: set[str] = set()
_prefixes: OrderedDict[Path, np.ndarray] = OrderedDict()


class Found(NamedTuple):
    """What a shelf has of some sequences.

    Attributes:
        good: Which sequences are there, bool [n].
        vectors: Of all sequences, one behind the other; anything for those that are not there.
        origins: Number of each one's origin, int32 [n].
        known: Origins with their numbers, which are their places here.
    """

    good: np.ndarray
    vectors: np.ndarray
    origins: np.ndarray
    known: dict[Origin, int]


class Shelf:
    """A shelf, which need not be there yet."""

    def __init__(self, cache: Path, key: Key, access: Access) -> None:
        """Name the shelf of a key in a cache."""
        self.directory = cache / key.name
        self.key = key
        self._access = access

    def segments(self) -> list[Path]:
        """Its segments now."""
        try:
            found = sorted(path for path in self.directory.iterdir() if SEGMENT_PATTERN.fullmatch(path.name))
        except OSError:
            return []
        for gone in {path for path in _prefixes if path.parent == self.directory} - set(found):
            del _prefixes[gone]
        return found

    def holds(self, digests: np.ndarray) -> np.ndarray:
        """Which sequences seem to be here, by their digests u8 [n, 32]; bool [n]. Their vectors may be damaged."""
        wanted = prefixes(digests)
        held = np.zeros(len(digests), bool)
        for path in self.segments():
            try:
                held |= _search(_prefixes_of(path), wanted) >= 0
            except SegmentError as error:
                _note(str(error))
            except OSError:
                continue
        return held

    def read(self, digests: np.ndarray, residues: np.ndarray) -> Found:
        """Read vectors.

        Args:
            digests: SHA-256 of each sequence's tokens, u8 [n, 32], in ascending order.
            residues: Of each, int64 [n].
        """
        bounds = self.key.bounds(residues)
        vectors = np.empty((int(bounds[-1]), self.key.width), self.key.dtype)
        found = Found(np.zeros(len(digests), bool), vectors, np.zeros(len(digests), np.int32), {})
        for _ in range(LOOKS):
            has_gone = False
            for path in self.segments():
                if found.good.all():
                    break
                try:
                    self._read_from(path, digests, residues, found)
                except SegmentError as error:
                    _note(str(error))
                except OSError:
                    has_gone = True
            if not has_gone:
                break
        return found

    def _read_from(self, path: Path, digests: np.ndarray, residues: np.ndarray, found: "Found") -> None:
        """Add to ``found`` what a segment has of what is missing there."""
        missing = np.flatnonzero(~found.good)
        where = _search(_prefixes_of(path), prefixes(digests[missing]))
        rows, where = missing[where >= 0], where[where >= 0]
        if not len(rows):
            return
        bounds = self.key.bounds(residues)
        with Segment(path) as segment:
            if segment.key != self.key:
                raise SegmentError(f"{path}: its vectors are others than those of its directory")
            for part in self.key.parts(residues[rows], SLAB_BYTES):
                taken = rows[part]
                good, places, vectors = segment.read(where[part], digests[taken], residues[taken])
                self._put(found.vectors, bounds, taken, vectors)
                used, numbers = np.unique(places[good], return_inverse=True)
                known = [found.known.setdefault(segment.origins[place], len(found.known)) for place in used.tolist()]
                found.origins[taken[good]] = np.array(known, np.int32)[numbers]
                found.good[taken] = good
        damaged = np.count_nonzero(~found.good[rows])
        if damaged:
            _note(f"{path}: {damaged} damaged vectors are not used")
        if damaged < len(rows):
            _touch(path)

    def add(self, source: str, rows: Rows, origins: list[Origin], slabs: Iterator[np.ndarray]) -> None:
        """Add a segment; the arguments are those of :func:`.segments.write_segment`.

        Raises:
            OSError: the disk is full or fails, or this user may not write here.
        """
        self._access.make_directory(self.directory)
        path = self.directory / f"{uuid.uuid4().hex}{SUFFIX}"
        write_segment(path, self.key, source, rows, origins, slabs, self._access)
        remove_abandoned(self.directory)
        self._merge()

    def _merge(self) -> None:
        """Make larger segments of small ones, as long as there are :data:`CLASS_FACTOR` of about one size."""
        while (members := self._to_merge()) and self._merge_these(members):
            pass

    def _to_merge(self) -> list[Path]:
        """The smallest segments of a class that has enough of them, no more than :data:`MERGED_BYTES` in all."""
        classes: dict[int, list[tuple[int, Path]]] = {}
        for path in self.segments():
            with suppress(FileNotFoundError):
                size_bytes = path.stat().st_size
                ratio = max(1.0, size_bytes / SMALLEST_CLASS_BYTES)
                classes.setdefault(int(math.log(ratio, CLASS_FACTOR)), []).append((size_bytes, path))
        for _, members in sorted(classes.items()):
            if len(members) >= CLASS_FACTOR:
                ends = np.cumsum([size_bytes for size_bytes, _ in sorted(members)])
                count = int(np.searchsorted(ends, MERGED_BYTES, side="right"))
                if count > 1:
                    return [path for _, path in sorted(members)[:count]]
        return []

    def _merge_these(self, paths: list[Path]) -> bool:
        """Put one segment in the place of several; False if that cannot be done just now."""
        name = hashlib.sha256("".join(sorted(path.name for path in paths)).encode()).hexdigest()[:32]
        merged = self.directory / f"{name}{SUFFIX}"
        try:
            used_ns = max(path.stat().st_mtime_ns for path in paths)
            with ExitStack() as stack:
                sources: list[tuple[Segment, Rows]] = []
                for path in paths:
                    try:
                        segment = stack.enter_context(Segment(path))
                        sources.append((segment, segment.rows()))
                    except SegmentError as error:
                        _note(f"{error}; it is removed")
                        path.unlink(missing_ok=True)
                        return True
                if not merged.exists() and not self._write_merged(merged, sources):
                    return False
            with suppress(OSError):
                os.utime(merged, ns=(used_ns, used_ns))
            for path in paths:
                path.unlink(missing_ok=True)
        except (FileNotFoundError, SegmentError):  # somebody else has merged or evicted one of them, or it broke
            return False
        return True

    def _write_merged(self, path: Path, sources: list[tuple[Segment, Rows]]) -> bool:
        """Write what is not damaged in some segments, each sequence once; False where they have too many origins."""
        numbers: dict[Origin, int] = {}
        known = [[numbers.setdefault(origin, len(numbers)) for origin in segment.origins] for segment, _ in sources]
        if len(numbers) > MERGED_ORIGINS:
            return False
        parts, places = [], []
        for number, (segment, rows) in enumerate(sources):
            good = np.concatenate([np.empty(0, bool), *(fine for _, fine, _ in segment.slabs(rows))])
            kept = np.flatnonzero(good)
            origins = np.array(known[number], np.int32)[rows.origins[kept]]
            parts.append(Rows(rows.digests[kept], rows.residues[kept], origins))
            places.append(np.stack([np.full(len(kept), number), kept], 1))
        rows, where = Rows(*map(np.concatenate, zip(*parts, strict=True))), np.concatenate(places)
        order = np.argsort(prefixes(rows.digests), kind="stable")
        digests = rows.digests[order]
        order = order[np.concatenate([np.ones(1, bool), (digests[1:] != digests[:-1]).any(1)])[: len(order)]]
        rows, where = Rows(*(array[order] for array in rows)), where[order]
        slabs = self._merged([segment for segment, _ in sources], rows, where)
        write_segment(path, self.key, sources[0][0].source, rows, list(numbers), slabs, self._access)
        return True

    def _merged(self, sources: list[Segment], rows: Rows, where: np.ndarray) -> Iterator[np.ndarray]:
        """The vectors of ``rows``, each from the source and the row there that ``where`` says, int64 [n, 2]."""
        for part in self.key.parts(rows.residues, SLAB_BYTES):
            digests, residues = rows.digests[part], rows.residues[part]
            bounds = self.key.bounds(residues)
            slab = np.empty((int(bounds[-1]), self.key.width), self.key.dtype)
            for number, source in enumerate(sources):
                chosen = np.flatnonzero(where[part, 0] == number)
                good, _, vectors = source.read(where[part, 1][chosen], digests[chosen], residues[chosen])
                if not good.all():
                    raise SegmentError(f"{source.path}: was not damaged a moment ago")
                self._put(slab, bounds, chosen, vectors)
            yield slab

    def _put(self, target: np.ndarray, bounds: np.ndarray, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Copy the vectors of some rows, one behind the other, to their places in a target with these bounds."""
        if self.key.pooling != "residues":
            target[rows] = vectors
            return
        first = 0
        for row in rows.tolist():
            count = int(bounds[row + 1] - bounds[row])
            target[bounds[row] : bounds[row + 1]] = vectors[first : first + count]
            first += count


def _prefixes_of(path: Path) -> np.ndarray:
    """The prefixes of a segment's digests; see :data:`PREFIXES_BYTES`."""
    if path in _prefixes:
        _prefixes.move_to_end(path)
        return _prefixes[path]
    with Segment(path) as segment:
        found = _prefixes[path] = segment.prefixes()
    while len(_prefixes) > 1 and sum(array.nbytes for array in _prefixes.values()) > PREFIXES_BYTES:
        _prefixes.popitem(last=False)
    return found


def _search(held: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where in ``held``, which ascends, each of ``wanted`` is; -1 where it is not."""
    if not len(held):
        return np.full(len(wanted), -1)
    where = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
    return np.where(held[where] == wanted, where, -1)


def _touch(path: Path) -> None:
    """Note that a segment was of use."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > TOUCH_S:
            os.utime(path)


def _note(problem: str) -> None:
    """Log what is wrong in the cache, once a process."""
    if problem not in _noted:
        _noted.add(problem)
        log.warning("%s", problem)
