"""The shared cache of vectors: what one pool has computed is there for any other, of any run and any user of a group.

A directory with ``cache.json`` and a :class:`.shelf.Shelf` for each model, precision, layer, pooling and window. What
pools put in and take out passes through :mod:`.exchange`. Above its limit those segments go that have not been of use
for the longest time. Nothing else in the directory is touched.
"""

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..documents import DocumentError, fill, other_version, read_json
from ..errors import ConfigError, ResourceError
from ..files import temporary_path
from .segments import Segment, SegmentError
from .shelf import SEGMENT_PATTERN, Access, remove_abandoned

DESCRIPTION_FILE = "cache.json"
FORMAT = "holdfast-cache"
FORMAT_VERSION = 1
LIMIT_BYTES = 100 * 10**9
KEPT_SHARE = 0.9
"""Eviction ends below this share of the limit, so that it is not needed again at once."""
SHELF_PATTERN = re.compile(r"[0-9a-f]{16}-(fp32|fp16|bf16)-\d+-(mean|cls|max|residues)-[0-9a-f]{16}")
UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

log = logging.getLogger("holdfast.cache")


@dataclass(frozen=True)
class Description:
    """What ``cache.json`` says: its format, and the size that the cache may have."""

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    limit_bytes: int = LIMIT_BYTES


class Entry(NamedTuple):
    """A segment as it lies there: when it was of use last (s since the epoch), its size, and where."""

    used_s: float
    size_bytes: int
    path: Path


@dataclass(frozen=True)
class Cache:
    """A cache.

    Attributes:
        directory: Where it is.
        access: Who may use it.
    """

    directory: Path
    access: Access

    @classmethod
    def open(cls, directory: Path, create: bool = False) -> "Cache":
        """Open a cache, or make one where there is nothing, or an empty directory.

        Raises:
            HoldfastError: there is something else, everybody may write there, or this user may not.
            OSError: the directory cannot be made.
        """
        if create:
            directory.mkdir(mode=0o700, exist_ok=True)
        if not directory.is_dir():
            raise ConfigError(f"{directory}: no cache; name the directory that `cache` in a config names")
        cache = cls(directory, Access.of(directory))
        in_use = any(not path.name.startswith(".") for path in directory.iterdir())
        if not (directory / DESCRIPTION_FILE).exists():  # looked for last, as others may be making this cache just now
            if in_use or not create:
                where = "name an empty directory, or one that is not there" if create else "is it another directory?"
                raise ConfigError(f"{directory}: is no cache of vectors, {DESCRIPTION_FILE} is missing; {where}")
            cache._describe(Description())
        cache.description()
        if create and not os.access(directory, os.W_OK | os.X_OK):
            raise ResourceError(f"{directory}: this user may not write to the cache; ask its owner, or set cache: null")
        return cache

    def description(self) -> Description:
        """What the cache says of itself.

        Raises:
            ResourceError: it cannot be read, or is of another version.
        """
        path = self.directory / DESCRIPTION_FILE
        try:
            found = fill(Description, read_json(path))
            if (found.format, found.format_version) != (FORMAT, FORMAT_VERSION):
                advice = "use another directory as cache"
                raise ResourceError(f"{path}: {other_version(found.format_version, FORMAT_VERSION, advice)}")
        except (OSError, DocumentError) as error:
            raise ResourceError(f"{path}: cannot be used ({error}); use another directory as cache") from None
        return found

    def _describe(self, description: Description) -> None:
        with temporary_path(self.directory / DESCRIPTION_FILE) as path, open(path, "w", encoding="utf-8") as file:
            json.dump(asdict(description), file)
            self.access.settle(file.fileno())

    def set_limit(self, limit_bytes: int) -> None:
        """Change the size that the cache may have.

        Raises:
            OSError: this user may not.
        """
        self._describe(replace(self.description(), limit_bytes=limit_bytes))

    def entries(self) -> list[Entry]:
        """All its segments, those first that have not been of use for the longest time."""
        found = []
        for shelf in self.directory.iterdir():
            with suppress(OSError):  # evicted, or merged, just now
                for path in shelf.iterdir() if SHELF_PATTERN.fullmatch(shelf.name) else ():
                    if SEGMENT_PATTERN.fullmatch(path.name):
                        with suppress(FileNotFoundError):
                            status = path.stat()
                            found.append(Entry(status.st_mtime, status.st_size, path))
        return sorted(found)

    def prune(self, limit_bytes: int) -> int:
        """Remove segments, those first that have not been of use for the longest time.

        Args:
            limit_bytes: What all that stay may take.

        Returns:
            How many were removed.

        Raises:
            OSError: this user may not.
        """
        entries = self.entries()
        held_bytes, removed = sum(entry.size_bytes for entry in entries), 0
        for entry in entries:
            if held_bytes <= limit_bytes:
                break
            entry.path.unlink(missing_ok=True)
            held_bytes -= entry.size_bytes
            removed += 1
        return removed

    def evict(self) -> None:
        """Make room if the cache is above its limit.

        Raises:
            OSError: this user may not.
            ResourceError: the cache does not say its limit.
        """
        limit_bytes = self.description().limit_bytes
        if sum(entry.size_bytes for entry in self.entries()) > limit_bytes:
            removed = self.prune(int(KEPT_SHARE * limit_bytes))
            log.info("%s: %d segments made room", self.directory, removed)
        remove_abandoned(self.directory)

    def verify(self) -> Iterator[str]:
        """Check every vector, remove segments with damage, and say so, a line for each."""
        for entry in self.entries():
            with suppress(FileNotFoundError):
                try:
                    with Segment(entry.path) as segment:
                        if segment.key.name != entry.path.parent.name:
                            raise SegmentError(f"{entry.path}: its vectors are others than those of its directory")
                        segment.prefixes()
                        rows = segment.rows()
                        bad = sum(int(np.count_nonzero(~good)) for _, good, _ in segment.slabs(rows))
                    if bad:
                        raise SegmentError(f"{entry.path}: {bad} of {len(rows.residues)} vectors are damaged")
                except SegmentError as error:
                    entry.path.unlink(missing_ok=True)
                    yield f"{error}; removed"

    def report(self) -> Iterator[str]:
        """What is in the cache, line by line: the whole, then each shelf."""
        shelves: dict[Path, list[Entry]] = {}
        for entry in self.entries():
            shelves.setdefault(entry.path.parent, []).append(entry)
        counts, lines = 0, []
        for entries in shelves.values():
            count, key, source = 0, None, ""
            for entry in entries:
                with suppress(OSError, SegmentError), Segment(entry.path) as segment:
                    count, key, source = count + segment.count, segment.key, segment.source
            counts += count
            if key:
                size = show_size(sum(entry.size_bytes for entry in entries))
                long = f", windows of {key.window}" if key.window else ""
                weights = key.weights_sha256[:12]
                lines.append(
                    f"{source} ({weights}), {key.precision}, {key.output.name}{long}: {count:,} vectors, {size}"
                )
        held = sum(entry.size_bytes for entries in shelves.values() for entry in entries)
        limit = show_size(self.description().limit_bytes)
        yield f"{self.directory}: {counts:,} vectors, {show_size(held)} of {limit}"
        yield from sorted(lines)


def parse_size(text: str) -> int:
    """Bytes of a size such as 500GB or 1.5 TB.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(kB|MB|GB|TB)", text)
    if found is None:
        raise ConfigError(f"{text!r:.40} is no size; write it as 500GB or 2TB (kB, MB, GB, TB)")
    return int(float(found[1]) * UNITS[found[2]])


def show_size(size_bytes: int) -> str:
    """A size for people."""
    unit = next((unit for unit, factor in reversed(UNITS.items()) if size_bytes >= factor), "kB")
    return f"{size_bytes / UNITS[unit]:.4g} {unit}"


def manage(directory: Path, limit: str | None, prune: str | None, verify: bool) -> Iterator[str]:
    """Do what somebody asks of a cache, then say what is in it, line by line.

    Args:
        directory: Of the cache.
        limit: The size that it may have from now on, such as ``2TB``; None to leave it. A cache may be made so.
        prune: The size to bring it to now; None to leave it.
        verify: Whether to check every vector.

    Raises:
        HoldfastError: it is no cache, or a size is none.
        OSError: this user may not.
    """
    cache = Cache.open(directory, create=limit is not None)
    if limit is not None:
        cache.set_limit(parse_size(limit))
    if verify:
        yield from cache.verify()
    if prune is not None:
        yield f"{cache.prune(parse_size(prune))} files removed"
    yield from cache.report()
