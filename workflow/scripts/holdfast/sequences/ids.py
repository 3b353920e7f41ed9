"""The ids of a file, to notice one that is there twice: in memory for a small file, on disk for a large one."""

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

DIGEST_BYTES = 16
CHECKED_AT_ONCE = 1_000_000


class KnownIds(Protocol):
    """What notices ids that were there before."""

    def first_line(self, digest: bytes, line: int) -> int:
        """Line of the first record with this id, as far as is known; note that this one is in ``line``."""


class Ids:
    """Ids in memory, about 150 bytes each."""

    def __init__(self, only: set[bytes] | None = None) -> None:
        """Begin with none; with ``only``, look for no others than these."""
        self._lines: dict[bytes, int] = {}
        self._only = only
        self._stopped = False

    def first_line(self, digest: bytes, line: int) -> int:
        """As :class:`KnownIds` says."""
        if self._stopped or (self._only is not None and digest not in self._only):
            return line
        return self._lines.setdefault(digest, line)

    def stop(self) -> None:
        """Look no more: somebody else has seen to it."""
        self._stopped = True
        self._lines.clear()


class ManyIds:
    """Ids in a file of 16 bytes each, which is gone through in the end."""

    def __init__(self, path: Path) -> None:
        """Keep them in a file at ``path``, which is removed at the end of the block."""
        self._path = path

    def __enter__(self) -> Self:
        self._file = open(self._path, "wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def first_line(self, digest: bytes, line: int) -> int:
        """As :class:`KnownIds` says: nothing is known before the end."""
        self._file.write(digest)
        return line

    def repeated(self) -> set[bytes]:
        """Digests that were there more than once, of about a million ids at most."""
        self._file.flush()
        count = self._path.stat().st_size // DIGEST_BYTES
        parts = 1 + count // CHECKED_AT_ONCE
        for part in range(parts):  # of the digests, by their first bytes, with one pass over the file each
            mine = [chosen[chosen["first"] % parts == part] for chosen in self._blocks()]
            digests = np.sort(np.concatenate(mine), order=("first", "second"))
            twice = digests[1:][digests[1:] == digests[:-1]]
            if len(twice):
                return {digest.tobytes() for digest in twice}
        return set()

    def _blocks(self) -> list[np.ndarray]:
        mapped = np.memmap(self._path, np.dtype([("first", "<u8"), ("second", "<u8")]), "r")
        return [mapped[start : start + CHECKED_AT_ONCE] for start in range(0, len(mapped), CHECKED_AT_ONCE)]
