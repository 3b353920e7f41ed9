"""A consumer: hands one sample's job to the pool, waits for its receipt, fetches its embeddings.

Hundreds of consumers start at once, so nothing here is heavy. Submitting never fails because of a sample: a failed
job is a receipt like any other, and :func:`collect`, outside the pool's group, raises it. It does fail when the pool
has, since then no receipt will ever come.
"""

import os
import shutil
import time
from pathlib import Path

from . import receipt, status
from .errors import HoldfastError, ResourceError
from .files import temporary_path
from .manifest import Manifest
from .receipt import Receipt
from .spool import Spool

FIRST_POLL_S = 0.01
LAST_POLL_S = 0.5
LOOK_AT_POOL_S = 2.0


def submit(job: Manifest, endpoint: Path, output: Path) -> Receipt:
    """Submit a job to the pool of an endpoint file, wait, and write its receipt to ``output``.

    Raises:
        ResourceError: the pool failed, ended or died before there was a receipt.
    """
    pool = status.read(endpoint)
    if pool is None:
        raise ResourceError(f"{endpoint}: no pool has written this endpoint file; start the pool first")
    spool = Spool(pool.spool)
    spool.forget(job.sample, keep=job.job)
    outcome = receipt.read(spool.root / "done" / job.job / "receipt.json")
    if outcome is None or not Path(outcome.embeddings).exists():
        shutil.rmtree(spool.root / "done" / job.job, ignore_errors=True)
        spool.submit(job)
        outcome = _wait(job, spool, pool)
    outcome.write(output)
    return outcome


def _wait(job: Manifest, spool: Spool, pool: status.PoolState) -> Receipt:
    path = status.state_path(pool.spool, pool.identity.pool)
    observer = status.Observer()
    pause_s, looked = FIRST_POLL_S, 0.0
    while True:
        trouble = ""
        if time.monotonic() - looked > LOOK_AT_POOL_S:
            looked = time.monotonic()
            trouble = (status.read(path) or pool).trouble(observer)
        outcome = spool.receipt(job.job)
        if outcome is not None:
            return outcome
        if trouble:
            raise ResourceError(trouble)
        time.sleep(pause_s)
        pause_s = min(LAST_POLL_S, pause_s * 1.2)


def collect(receipt_path: Path, output: Path) -> None:
    """Put the embeddings that a receipt names at ``output``: a hard link, or a copy from another file system.

    Raises:
        HoldfastError: the job failed; the message is the sample's.
        ResourceError: the receipt or the embeddings are gone.
    """
    outcome = receipt.read(receipt_path)
    if outcome is None:
        raise ResourceError(f"{receipt_path}: is missing; run again")
    if outcome.state == "failed":
        raise HoldfastError(f"sample '{outcome.sample}': {outcome.error}")
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
