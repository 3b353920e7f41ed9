"""Calling many small samples in one process, so that thousands of them do not take a Python each.

Rule ``classify_small`` leaves the tables and the sequences of a sample in the directory of the run, which goes with it,
and ``classify_contigs`` moves them from there to the results. What is wrong with a sample is left to that rule to say.
Which samples Snakemake will ask for is not known here. They are those without a table of contigs, or with one that is
older than their receipt, the classifier or its calibration; and all of them where the rules by which contigs are called
have changed. For one more than these nothing is lost but the time.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import HoldfastError
from ..processes import beside
from ..spool.job import Receipt
from .client import FETCHED
from .config import Sample

MANY = 10
"""Samples from which on one process for several is worth a rule of its own."""
SMALL_BYTES = 2**20
"""Of embeddings: less than 0.1 s of work. A larger sample is worth a process."""
SAMPLES_A_PROCESS = 100
PROCESSES = 8


class Task(NamedTuple):
    """A sample to call: its name, its embeddings, its sequence file, and where its tables go."""

    sample: str
    embeddings: Path
    fasta: Path
    directory: Path


def processes_for(samples: int, cores: int) -> int:
    """How many processes call so many samples: one for a hundred, which are a second's work, on half of the cores."""
    return max(1, min(samples // SAMPLES_A_PROCESS, cores // 2, PROCESSES))


def find_small(
    samples: Sequence[tuple[Sample, Receipt]], results: Path, made: Path, known: Sequence[Path], anew: bool
) -> Iterator[Task]:
    """The small samples whose contigs are to be called.

    Args:
        samples: Those that are called at all, with their receipts.
        results: Directory of the results.
        made: Where their tables are left.
        known: Files that must not be newer than a table of contigs: the classifier, and its calibration.
        anew: Whether all are to be called.
    """
    for sample, receipt in samples:
        directory = results / sample.sample
        sources = (directory / "receipt.json", *known)
        if not anew and _time(directory / "contigs.tsv") >= max(map(_time, sources)):
            continue
        embeddings = Path(receipt.embeddings)  # in the spool: `collect` may be moving the other name of it just now
        if not embeddings.exists() and not (directory / FETCHED).exists():
            embeddings = directory / "embeddings.h5"  # which is the receipt's only when nothing waits for `collect`
        with suppress(FileNotFoundError):
            if embeddings.stat().st_size <= SMALL_BYTES:
                yield Task(sample.sample, embeddings, Path(sample.fasta), made / sample.sample)


def call_small(tasks: Sequence[Task], processes: int, viruses: str, arguments: Mapping[str, Any]) -> int:
    """Call samples, and leave nothing of those that cannot be called.

    Args:
        tasks: The samples.
        processes: How many work on them, beside this one if there are several.
        viruses: Name of the file of sequences.
        arguments: Those of :class:`.calls.Caller`.

    Returns:
        How many were called.

    Raises:
        HoldfastError: a classifier or a calibration that is not there, or is none.
    """
    call = partial(_call, viruses=viruses, arguments=arguments)
    if processes == 1:
        return call(tasks)
    with beside(processes) as pool:
        return sum(pool.map(call, [tasks[number::processes] for number in range(processes)]))


def _call(tasks: Sequence[Task], viruses: str, arguments: Mapping[str, Any]) -> int:
    """What one process does of :func:`call_small`."""
    from ..results.calls import Caller  # numpy and h5py

    caller = Caller(**arguments)
    called = 0
    for task in tasks:
        unfinished = task.directory.with_name(f".{task.sample}")
        try:
            unfinished.mkdir(parents=True)
            caller.call(task.embeddings, task.fasta, unfinished, unfinished / viruses)
            unfinished.rename(task.directory)  # whole, as `classify_contigs` may look for it at any moment
            called += 1
        except (HoldfastError, OSError, ValueError, LookupError, RuntimeError) as error:  # of this sample alone
            print(f"{task.sample}: left to classify_contigs: {type(error).__name__}: {error}", file=sys.stderr)
            shutil.rmtree(unfinished, ignore_errors=True)
    return called


def _time(path: Path) -> float:
    """When a file was written; before all others if it is not there."""
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return -1.0
