"""The client of a pool: hands jobs in, waits for their receipts, fetches embeddings.

Hundreds of consumers start at once, so nothing here is heavy. Submitting never fails because of a sample: a failed job
is a receipt like any other, and :func:`collect_embeddings`, outside the pool's group, raises it. It does fail when the
pool that was started for it has, since then no receipt will ever come. Where pools come and go by themselves it waits,
and says so while there is none for it.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..errors import HoldfastError, ResourceError
from ..files import temporary_path
from ..spool.job import Manifest, Receipt, fingerprint, read_receipt
from ..spool.spool import Spool
from ..spool.state import Launcher, Observer, PoolState, read_state
from .ending import note_trouble
from .plan import jobs_of
from .provenance import run_of

FETCHED = ".embeddings.h5"
FETCHED_RECORDS = ".records.tsv"
RECORDS = "records.tsv"
FIRST_POLL_S = 0.01
LAST_POLL_S = 0.5
LOOK_AT_POOL_S = 2.0
HAND_IN_AGAIN_S = 60.0
SAY_AGAIN_S = 600.0
ENDING_S = 10.0
"""Longer than a pool may take to end after SIGTERM (``pool.DRAIN_S`` and a little)."""


def submit_jobs(
    jobs: Sequence[Manifest],
    spool: Spool,
    endpoint: Path | None,
    outputs: Sequence[Path],
    patience_s: float | None = None,
    run: str = "",
) -> list[Receipt]:
    """Submit jobs, wait, and write each receipt as it comes.

    Args:
        jobs: The jobs.
        spool: Where to hand them in.
        endpoint: The endpoint file of the pool that was started for them; None where pools come and go by themselves.
        outputs: Where the receipts go, one for each job.
        patience_s: Seconds to wait while no pool there can do the jobs; None for as long as it takes. Without meaning
            where there is an endpoint.
        run: Run of the workflow that the receipts of jobs that are not done yet will name.

    Returns:
        The receipts, in the order of the jobs.

    Raises:
        ResourceError: the pool failed, ended or died before every job had a receipt; or nobody waits for them.
    """
    pool = read_state(endpoint) if endpoint else None
    if endpoint and pool is None:
        time.sleep(ENDING_S)  # the group is being ended; were this consumer to fail now, Snakemake would kill the pool
        raise ResourceError(f"{endpoint}: there is no such pool (any more); run again, finished work is kept")
    found: dict[str, Receipt] = {}
    waiting = {job.job: (job, output) for job, output in zip(jobs, outputs, strict=True)}
    if endpoint:  # a spool that others share may hold their results of a sample of the same name
        spool.forget({job.sample: job.job for job in jobs})
    submitted = set()
    for job, _ in waiting.values():
        outcome = spool.receipt(job.job)
        if outcome is None or outcome.state == "failed" or outcome.failures or not Path(outcome.embeddings).exists():
            shutil.rmtree(spool.root / "done" / job.job, ignore_errors=True)
            spool.submit(job)
            submitted.add(job.job)
    watch = _Watch(spool, pool, patience_s)
    pause_s, looked, handed_in = FIRST_POLL_S, 0.0, time.monotonic()
    while waiting:
        trouble = ""
        if time.monotonic() - looked > LOOK_AT_POOL_S:
            looked = time.monotonic()
            trouble = watch.trouble([job for job, _ in waiting.values()])
        if time.monotonic() - handed_in > HAND_IN_AGAIN_S:  # whoever lost it, say by cleaning the spool
            handed_in = time.monotonic()
            for job, _ in waiting.values():
                if spool.receipt(job.job) is None:
                    spool.submit(job)
        for name, (_, output) in list(waiting.items()):
            outcome = spool.receipt(name)
            if outcome is not None:
                _keep(replace(outcome, run=run) if name in submitted else outcome, output)
                found[name] = outcome
                del waiting[name]
        if waiting and trouble:
            raise ResourceError(trouble)
        if waiting:
            time.sleep(pause_s)
            pause_s = min(LAST_POLL_S, pause_s * 1.2)
    return [found[job.job] for job in jobs]


def submit_planned(
    plan: Path,
    consumer: int,
    models: Sequence[Path],
    spool: Path,
    endpoint: Path | None,
    outputs: Sequence[Path],
    patience_s: float | None,
    classifier: Path | None = None,
) -> list[Receipt]:
    """Submit the jobs of one consumer of a plan, see :func:`submit_jobs`.

    Args:
        plan: The plan.
        consumer: Its number.
        models: Directories of the prepared models, in the order of the plan.
        spool: Where to hand the jobs in.
        endpoint: As there, and so is the rest.
        outputs: Where the receipts go.
        patience_s: Seconds to wait while no pool there can do the jobs.
        classifier: That frames will be classified with, if there is one already.
    """
    try:
        jobs = jobs_of(plan, consumer, models, classifier)
        return submit_jobs(jobs, Spool(spool), endpoint, outputs, patience_s, run_of(plan.parent))
    except HoldfastError as error:
        note_trouble(plan.parent, consumer, error)
        raise


def _keep(outcome: Receipt, output: Path) -> None:
    """Write a receipt, and before it fetch the embeddings and the table of records to its side, for ``collect``."""
    fetched, records = output.with_name(FETCHED), output.with_name(FETCHED_RECORDS)
    try:
        fetched.unlink(missing_ok=True)
        if outcome.state == "done":
            with suppress(FileNotFoundError):  # gone from the spool: `collect` will say so
                _fetch(_records_of(outcome), records)
                _fetch(outcome.embeddings, fetched)
        outcome.write(output)
    except OSError as error:
        raise ResourceError(f"{output}: cannot be written: {error.strerror}; mend that and run again") from None


def _records_of(outcome: Receipt) -> str:
    """Where the table of records is: beside the embeddings."""
    return os.path.join(os.path.dirname(outcome.embeddings), RECORDS)


def _fetch(made: str, output: Path) -> None:
    """Put a file of the spool at ``output``: a hard link, or a copy from another file system."""
    with temporary_path(output) as temporary:
        try:
            os.link(made, temporary)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(made, temporary)


class _Watch:
    """Looks after the pools that jobs wait for, and after who waits for the jobs."""

    def __init__(self, spool: Spool, pool: PoolState | None, patience_s: float | None) -> None:
        """Watch one pool, or with None whatever pools there are."""
        self._spool, self._pool, self._patience_s = spool, pool, patience_s
        self._observer, self._launcher = Observer(), Launcher()
        self._lack, self._since, self._said = "", 0.0, 0.0

    def trouble(self, waiting: Sequence[Manifest]) -> str:
        """Why there is no sense in waiting any longer, or nothing."""
        if self._launcher.is_gone():
            return "the Snakemake that started this consumer is gone"
        if self._pool:
            return self._pool.now().trouble(self._observer) or self._nobody(waiting, self._living())
        return self._wait(waiting)

    def _living(self) -> list[PoolState]:
        return self._spool.living(self._observer)

    def _nobody(self, waiting: Sequence[Manifest], living: Sequence[PoolState]) -> str:
        """Which of the jobs no pool that lives now will ever take, or nothing; without pools there is hope for one."""
        for job in waiting:
            if living and not any(state.serves(job.weights, job.precision) for state in living):
                return (
                    f"sample '{job.sample}' needs {' and '.join(job.models)} in {job.precision}, with the weights of "
                    f"this config; the {len(living)} pool(s) on {self._spool.root} hold other weights or compute "
                    "otherwise"
                )
        return ""

    def _wait(self, waiting: Sequence[Manifest]) -> str:
        """Say so while no pool can do a job, and again when one can; give up when patience ends."""
        now = time.monotonic()
        living = self._living()
        lack = self._nobody(waiting, living) if living else f"no pool serves {self._spool.root} now"
        if lack and not self._lack:
            self._since = now
        if lack and (lack != self._lack or now - self._said > SAY_AGAIN_S):
            self._said = now
            _say(
                f"{len(waiting)} sample(s) from '{waiting[0].sample}' on wait: {lack}; start one with `holdfast serve`"
            )
        elif self._lack and not lack:
            _say(f"a pool serves {self._spool.root} now")
        self._lack = lack
        if lack and self._patience_s is not None and now - self._since > self._patience_s:
            return f"{lack}, and none came for {self._patience_s:g} s (pool.patience_s); start one and run again"
        return ""


def _say(line: str) -> None:
    sys.stderr.write(f"holdfast: {line}\n")  # at once, its end included: others write to the same terminal
    sys.stderr.flush()


def collect_embeddings(receipt_path: Path, fasta: Path, output: Path, records: Path) -> None:
    """Put what a receipt names at ``output`` (embeddings) and ``records`` (a table), or say why there is nothing.

    Raises:
        HoldfastError: the job failed, and the message is the sample's; or ``fasta`` has changed since it was embedded.
        ResourceError: the receipt or the embeddings are gone.
    """
    outcome = read_receipt(receipt_path)
    if outcome is None:
        raise ResourceError(f"{receipt_path}: is missing; run again")
    if outcome.state == "failed":
        raise HoldfastError(f"sample '{outcome.sample}': {outcome.error}")
    if fasta.exists() and fingerprint(fasta) != (outcome.size_bytes, outcome.mtime_ns):
        receipt_path.unlink()  # or a temporary file that is gone by then would pass for unchanged
        raise HoldfastError(
            f"sample '{outcome.sample}': {fasta} was made anew or changed during this run, after the run had decided "
            "what to embed; run the same command again"
        )
    try:
        _fetch(_records_of(outcome), records)
        _fetch(outcome.embeddings, output)
    except FileNotFoundError:
        receipt_path.unlink()
        raise ResourceError(
            f"sample '{outcome.sample}': its embeddings are no longer in the spool ({outcome.embeddings}); "
            "run again to have them computed"
        ) from None
