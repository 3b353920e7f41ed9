"""Files that appear whole or not at all: written under a temporary name, flushed, fsynced, renamed.

Everything the workflow leaves for another process to read goes through here, so a reader on this or another host
never sees half a file, and a power cut leaves either the old file or the new one.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def sync_directory(directory: Path) -> None:
    """Fsync a directory, so that the renames in it survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def temporary_path(path: str | Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; at the end fsync that file and rename it to ``path``.

    On an exception the temporary file is removed and ``path`` stays as it was. The name is random: processes on
    several hosts, or in several containers, may write to one directory and have the same id.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        yield temporary
        handle = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except FileNotFoundError as error:
        if path.parent.is_dir():
            raise
        raise FileNotFoundError(error.errno, "no such directory, make it first", str(path.parent)) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_text(path: str | Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file that appears at ``path`` when the block ends without an exception."""
    with temporary_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        yield file
        file.flush()
