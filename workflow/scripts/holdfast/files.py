"""Files that appear whole or not at all: written under a temporary name, flushed, fsynced, renamed.

Everything the workflow leaves for another process to read goes through here, so a reader on this or another host
never sees half a file, and a power cut leaves either the old file or the new one. A symlink stays, what it leads to is
replaced; devices and pipes, which no rename may replace, are written to once the content is complete. What people name
as an output is looked at by :func:`check_outputs` before any work.
"""

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import ConfigError

LONGEST_CHAIN = 40  # of symlinks, as in the kernel


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
    several hosts, or in several containers, may write to one directory and have the same id. Where ``path`` leads to a
    device, a pipe or an open file of this process, such as ``/dev/stdout``, the file is copied there at the end.
    """
    if _is_stream(path):
        with tempfile.TemporaryDirectory(prefix="holdfast-") as directory:
            content = Path(directory) / "content"
            yield content
            with open(content, "rb") as source, _open_stream(path) as target:
                shutil.copyfileobj(source, target)
        return
    path = Path(os.path.realpath(path))
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
    except IsADirectoryError:
        raise IsADirectoryError(errno.EISDIR, "is a directory, name a file", str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_text(path: str | Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file that appears at ``path`` when the block ends without an exception."""
    with temporary_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        yield file
        file.flush()


def put(source: Path, path: Path) -> None:
    """Move a complete file to its place, which may be on another file system."""
    with temporary_path(path) as temporary:
        shutil.move(source, temporary)


def expanded(path: str) -> str:
    """A path that a person wrote into a file, with ``~`` and ``$NAME`` as a shell expands them.

    A file that is there under the name as it is written is that one.

    Raises:
        ConfigError: a user or a variable that is not known here.
    """
    if not re.search(r"^~|\$", path) or os.path.lexists(path):
        return path
    found = os.path.expandvars(os.path.expanduser(path))
    if found.startswith("~") or re.search(r"\$(\w|\{)", found):
        raise ConfigError(f"{path}: names a user or a variable that is not known here; write the path out")
    return found


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path] = ()) -> None:
    """Refuse outputs that cannot be written, or that would destroy an input or each other.

    Args:
        outputs: Files to write.
        inputs: Files that are read.

    Raises:
        ConfigError: an output that is an input or another output, by whatever path.
        OSError: an output that is a directory, or whose directory is missing or cannot be written.
    """
    known = {_identity(path): path for path in inputs}
    for path in outputs:
        other = known.get(_identity(path))
        if other is not None and not path.is_char_device():
            raise ConfigError(f"{path}: is the same file as {other}, which would be lost; name another output")
        known[_identity(path)] = path
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory, name a file", str(path))
        directory = Path(os.path.realpath(path)).parent
        if _is_stream(path):
            continue
        if not directory.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such directory, make it first", str(path.parent))
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))


def say(text: str, *outputs: Path) -> None:
    """Print what was done, on stderr where stdout is one of the outputs."""
    print(text, file=sys.stderr if any(map(_is_standard_output, outputs)) else sys.stdout)


def _is_standard_output(path: Path) -> bool:
    """Whether a file is where this process prints to."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # none is there, or what is in its place is no file
        return False


def _identity(path: Path) -> object:
    """What is equal for two paths of one file."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _is_stream(path: str | Path) -> bool:
    """Whether writing to a path means writing to what is there, not replacing it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _descriptor(path) is not None


def _open_stream(path: str | Path) -> IO[bytes]:
    """Open what is at a path for writing; of an open file of this process share the place in it."""
    descriptor = _descriptor(path)
    if descriptor is None:
        return open(path, "wb", buffering=0)
    sys.stdout.flush()
    return os.fdopen(os.dup(descriptor), "wb", buffering=0)


def _descriptor(path: str | Path) -> int | None:
    """The open file of this process that a path such as ``/dev/stdout`` or ``/dev/fd/3`` stands for; None if none."""
    place = os.path.abspath(path)
    for _ in range(LONGEST_CHAIN):
        place = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
        if found := re.fullmatch(rf"/proc/{os.getpid()}(?:/task/\d+)?/fd/(\d+)", place):
            return int(found[1])
        if not os.path.islink(place):
            break
        place = os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place)))
    return None
