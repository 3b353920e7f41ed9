"""How HDF5 files are written here: a write that fails is the OSError that it is, with its ``errno``."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


class Target(io.FileIO):
    """A file for HDF5 to write to; it keeps the first error for :meth:`check` and drops what is written after it.

    HDF5 2.0.0 may crash the process, or hide the error number, when one of its writes fails, so it never sees one fail.
    """

    error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write all of some bytes, or none once a write has failed."""
        left = memoryview(content).cast("B")
        size = len(left)
        try:
            while self.error is None and left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return size

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.error is not None:
            raise self.error


@contextmanager
def open_hdf5(path: Path, mode: str, **options: Any) -> Iterator[tuple[h5py.File, Target]]:
    """Give an HDF5 file to write, and what to ask early whether its writes have failed.

    Args:
        path: Where.
        mode: ``w+`` for a new file, ``r+`` for one that is there.
        options: For :class:`h5py.File`.

    Raises:
        OSError: a write failed, now or at any time before.
    """
    with Target(path, mode) as output:
        try:
            with h5py.File(output, mode.replace("w+", "w"), **options) as file:
                yield file, output
        finally:  # what HDF5 says when it reads back what was dropped is of no use
            output.check()
