"""``holdfast forget``: what is kept of samples is removed, so that the next run embeds them.

A plan is made while Snakemake reads the Snakefile, before it knows ``--forcerun`` and its like, so this is how somebody
forces a sample to be embedded again.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ConfigError, HoldfastError
from ..spool.job import read_receipt
from .client import FETCHED, FETCHED_RECORDS, RECORDS
from .plan import DEFAULT_SPOOL, living_runs

KEPT = ("embeddings.h5", RECORDS, FETCHED, FETCHED_RECORDS, "receipt.json")
"""What is removed of a sample; the receipt last, which says where the rest is."""


def forget_samples(directory: Path, samples: Sequence[str]) -> list[str]:
    """Remove receipt and embeddings of samples, and what their spool keeps of the same work.

    Args:
        directory: The working directory of the workflow.
        samples: Their names; empty for all that have results.

    Returns:
        The names of those of which something was there.

    Raises:
        ConfigError: no results, a sample without any, or a run that goes on there.
    """
    results = directory / "results"
    known = sorted(path.parent.name for path in results.glob("*/receipt.json"))
    for name in samples:
        if name not in known:
            there = f"samples with results are {', '.join(known)}" if known else "no sample has results there"
            raise ConfigError(f"{name}: no sample of {results} has this name; {there}")
    for run in living_runs(directory / Path(DEFAULT_SPOOL).parent):
        raise ConfigError(f"{directory}: a run goes on here, process {run.rpartition('-')[2]}; wait for its end")
    for name in samples or known:
        for job in _jobs(directory, name):
            shutil.rmtree(job, ignore_errors=True)
        for file in KEPT:
            (results / name / file).unlink(missing_ok=True)
    return list(samples or known)


def _jobs(directory: Path, sample: str) -> Iterator[Path]:
    """Directories of finished jobs of a sample, and of others of the same work, from which they would be copied."""
    spools = {directory / DEFAULT_SPOOL}
    digests = set()
    try:
        outcome = read_receipt(directory / "results" / sample / "receipt.json")
    except HoldfastError:
        outcome = None
    if outcome is not None:
        digests.add(outcome.job.rpartition("-")[2])
        if outcome.embeddings:
            spools.add((directory / outcome.embeddings).parents[2])
    for spool in spools:
        for job in (*spool.glob("done/*"), *spool.glob("failed/*")):
            name, _, digest = job.name.rpartition("-")
            if name == sample or digest in digests:
                yield job
