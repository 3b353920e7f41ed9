"""Processes of pools as others see them, and waiting for what they do."""

import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

LONG_S = 300  # far more than anything takes, so that only what hangs is ended
PROCESSES_END_S = 60  # promised are about 10, on a machine that is not busy


def eventually(condition: Callable[[], object], limit_s: float = LONG_S) -> None:
    """Wait for a condition; it must come true."""
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def is_supervisor(words: Sequence[str]) -> bool:
    """Whether a command line is that of a pool; not that of a shell around it."""
    programs = [os.path.basename(word) for word, command in itertools.pairwise(words) if command == "serve"]
    return bool({"entry.py", "holdfast"} & {*programs}) and not words[0].endswith("sh")


def processes_of(pool: psutil.Process, with_torch: bool) -> list[psutil.Process]:
    """The workers of a pool, or its readers; one that is just ending is none."""
    found = []
    for child in pool.children():
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            torch = "libtorch" in Path(f"/proc/{child.pid}/maps").read_text()
            if "--multiprocessing-fork" in child.cmdline() and torch == with_torch:
                found.append(child)
    return found


def processes_in(directory: Path) -> list[psutil.Process]:
    """The living processes that work in a directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(directory):
                found.append(process)
    return found


def blocks(spool: Path) -> list[Path]:
    """The blocks in a spool; unlike ``glob``, walking minds no directory that goes meanwhile."""
    return [
        Path(directory) / name
        for directory, _, names in os.walk(spool / "blocks")
        for name in names
        if name.endswith(".safetensors")
    ]
