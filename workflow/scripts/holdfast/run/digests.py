"""Digests of sequence files, read side by side at the speed of the disk."""

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from ..spool.job import digest_of

THREADS = 8
SAY_S = 5.0


def digest_inputs(paths: Mapping[str, str]) -> dict[str, str]:
    """Read files for their digests, and say how far it is where that takes long.

    Args:
        paths: By sample.

    Returns:
        SHA-256 by sample (hex); empty for a file that cannot be read.
    """
    total = sum(Path(path).stat().st_size for path in paths.values())
    read: list[int] = []  # appended to by all threads, which is one step in Python
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:  # hashlib lets other threads work
        futures = {sample: threads.submit(digest_of, path, read.append) for sample, path in paths.items()}
        while wait(futures.values(), SAY_S).not_done:
            line = f"{sum(read) / 1e9:.1f} of {total / 1e9:.1f} GB read of files whose size or time has changed"
            print(f"holdfast: {line}", file=sys.stderr)
    return {sample: future.result() for sample, future in futures.items()}
