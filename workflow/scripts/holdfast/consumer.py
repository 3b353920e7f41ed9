"""A consumer: hands jobs to the pool, waits for their receipts, fetches embeddings.

Hundreds of consumers start at once, so nothing here is heavy. Submitting never fails because of a sample: a failed
job is a receipt like any other, and :func:`collect`, outside the pool's group, raises it. It does fail when the pool
has, since then no receipt will ever come.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import manifest, receipt, status
from .errors import HoldfastError, ResourceError
from .files import temporary_path
from .manifest import Manifest
from .receipt import Receipt
from .spool import Spool

FIRST_POLL_S = 0.01
LAST_POLL_S = 0.5
LOOK_AT_POOL_S = 2.0
TELL_S = 60.0


def submit(jobs: Sequence[Manifest], spool: Spool, endpoint: Path | None, outputs: Sequence[Path]) -> list[Receipt]:
    """Submit jobs, wait, and write each receipt as it comes.

    Args:
        jobs: The jobs.
        spool: Where to hand them in.
        endpoint: The endpoint file of the pool that was started for them; None where pools come and go by themselves.
        outputs: Where the receipts go, one for each job.

    Returns:
        The receipts, in the order of the jobs.

    Raises:
        ResourceError: the pool failed, ended or died before every job had a receipt.
    """
    pool = status.read(endpoint) if endpoint else None
    if endpoint and pool is None:
        raise ResourceError(f"{endpoint}: no pool has written this endpoint file; start the pool first")
    found: dict[str, Receipt] = {}
    waiting = {job.job: (job, output) for job, output in zip(jobs, outputs, strict=True)}
    if endpoint:  # a spool that others share may hold their results of a sample of the same name
        spool.forget({job.sample: job.job for job in jobs})
    for job, _ in waiting.values():
        outcome = spool.receipt(job.job)
        if outcome is None or outcome.state == "failed" or outcome.failures or not Path(outcome.embeddings).exists():
            shutil.rmtree(spool.root / "done" / job.job, ignore_errors=True)
            spool.submit(job)
    observer = status.Observer()
    pause_s, looked, told = FIRST_POLL_S, 0.0, 0.0
    while waiting:
        trouble = ""
        if time.monotonic() - looked > LOOK_AT_POOL_S:
            looked = time.monotonic()
            trouble = (pool.now().trouble(observer) if pool else "") or _nobody(spool, jobs, observer)
            if not pool and looked - told > TELL_S and not _living(spool, observer):
                told = looked
                print(f"no pool serves {spool.root} now; waiting for one", file=sys.stderr, flush=True)
        for name, (_, output) in list(waiting.items()):
            outcome = spool.receipt(name)
            if outcome is not None:
                _keep(outcome, output)
                found[name] = outcome
                del waiting[name]
        if waiting and trouble:
            raise ResourceError(trouble)
        if waiting:
            time.sleep(pause_s)
            pause_s = min(LAST_POLL_S, pause_s * 1.2)
    return [found[job.job] for job in jobs]


def _keep(outcome: Receipt, output: Path) -> None:
    try:
        outcome.write(output)
    except OSError as error:
        raise ResourceError(f"{output}: cannot be written: {error.strerror}; mend that and run again") from None


def _living(spool: Spool, observer: status.Observer) -> list[status.PoolState]:
    return [state for state in spool.states() if state.state in ("starting", "ready") and not observer.is_dead(state)]


def _nobody(spool: Spool, jobs: Sequence[Manifest], observer: status.Observer) -> str:
    """Why no pool that lives now will ever take these jobs, or nothing; without pools there is hope for one."""
    living = _living(spool, observer)
    for job in jobs:
        if living and not any(state.serves(job.models, job.precision) for state in living):
            return (
                f"sample '{job.sample}' needs {' and '.join(job.models)} in {job.precision}, with the weights of "
                f"this config; the {len(living)} pool(s) on {spool.root} hold other weights or compute otherwise"
            )
    return ""


def collect(receipt_path: Path, fasta: Path, output: Path) -> None:
    """Put the embeddings that a receipt names at ``output``: a hard link, or a copy from another file system.

    Raises:
        HoldfastError: the job failed, and the message is the sample's; or ``fasta`` is not the file that was embedded.
        ResourceError: the receipt or the embeddings are gone.
    """
    outcome = receipt.read(receipt_path)
    if outcome is None:
        raise ResourceError(f"{receipt_path}: is missing; run again")
    if outcome.state == "failed":
        raise HoldfastError(f"sample '{outcome.sample}': {outcome.error}")
    if (outcome.size_bytes, outcome.mtime_ns) != manifest.fingerprint(fasta):
        receipt_path.unlink()  # or a temporary file that is gone by then would pass for unchanged
        raise HoldfastError(
            f"sample '{outcome.sample}': {fasta} was made anew or changed during this run, after the run had decided "
            "what to embed; run the same command again"
        )
    try:
        with temporary_path(output) as temporary:
            try:
                os.link(outcome.embeddings, temporary)
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(outcome.embeddings, temporary)
    except FileNotFoundError:
        receipt_path.unlink()
        raise ResourceError(
            f"sample '{outcome.sample}': its embeddings are no longer in the spool ({outcome.embeddings}); "
            "run again to have them computed"
        ) from None
