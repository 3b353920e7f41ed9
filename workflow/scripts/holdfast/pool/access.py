"""Who may use a shared cache, and what writers that died have left in it.

A cache belongs to its owner alone, or to a group if the group may write to its directory. Everything that is made in it
has the same permissions, whatever the umask of whoever makes it: a file of one member that another cannot read would
be of no use to the others.
"""

import errno
import os
import re
import stat
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import ResourceError

PARTIAL_PATTERN = re.compile(r"\.[0-9a-f]{32}\.partial")
ABANDONED_S = 86400.0
"""Age of a temporary file from which its writer is taken for dead."""


@dataclass(frozen=True)
class Access:
    """Who may read and write a cache: its owner alone, or a group.

    Attributes:
        group: The group's number; None for the owner alone.
    """

    group: int | None

    @classmethod
    def of(cls, directory: Path) -> "Access":
        """That of a directory, which what is made in it is to have, too.

        Raises:
            OSError: it cannot be looked at.
            ResourceError: everybody may write to it.
        """
        found = directory.stat()
        if found.st_mode & stat.S_IWOTH:
            raise ResourceError(f"{directory}: everybody may write to this cache; chmod o-w it")
        return cls(found.st_gid if found.st_mode & stat.S_IWGRP else None)

    def settle(self, handle: int) -> None:
        """Give a file that is open its permissions, whatever the umask."""
        if self.group is not None and os.fstat(handle).st_gid != self.group:
            os.fchown(handle, -1, self.group)
        os.fchmod(handle, 0o600 if self.group is None else 0o660)

    def make_directory(self, directory: Path) -> None:
        """Make a directory that has its permissions, whatever the umask, from the moment at which it appears."""
        if directory.is_dir():
            return
        temporary = directory.with_name(f".{uuid.uuid4().hex}.partial")
        temporary.mkdir(mode=0o700)
        try:
            if self.group is not None:
                if temporary.stat().st_gid != self.group:
                    os.chown(temporary, -1, self.group)
                temporary.chmod(0o2770)
            temporary.rename(directory)
        except OSError as error:
            with suppress(FileNotFoundError):
                temporary.rmdir()
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # somebody else has made it
                raise


def remove_abandoned(directory: Path) -> None:
    """Remove temporary files, and directories, whose writers must have died."""
    with suppress(OSError):
        for path in directory.iterdir():
            if PARTIAL_PATTERN.fullmatch(path.name) and time.time() - path.lstat().st_mtime > ABANDONED_S:
                path.rmdir() if path.is_dir() else path.unlink()
