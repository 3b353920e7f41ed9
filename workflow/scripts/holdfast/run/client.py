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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import HoldfastError, ResourceError
from ..files import temporary_path
from ..spool.job import Manifest, Receipt, digest_of, fingerprint, read_receipt
from ..spool.spool import Spool
from ..spool.state import Launcher, Observer, PoolState, read_state
from .ending import note_trouble
from .plan import Plan, jobs_of, samples_of
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
    jobs: Iterable[Manifest],
    spool: Spool,
    endpoint: Path | None,
    outputs: Sequence[Path],
    patience_s: float | None = None,
    run: str = "",
    remote: Mapping[str, tuple[str, int, int]] | None = None,
) -> list[Receipt]:
    """Submit jobs, wait, and write each receipt as it comes.

    Args:
        jobs: The jobs, each handed in before the next is asked for.
        spool: Where to hand them in.
        endpoint: The endpoint file of the pool that was started for them; None where pools come and go by themselves.
        outputs: Where the receipts go, one for each job.
        patience_s: Seconds to wait while no pool there can do the jobs; None for as long as it takes. Without meaning
            where there is an endpoint.
        run: Run of the workflow that jobs that are not done yet, and their receipts, will name.
        remote: By sample whose file lies at a URL, that and its size and time, for the receipt.

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
    waiting: dict[str, _Submission] = {}
    submitted = set()
    for job, output in zip(jobs, outputs, strict=True):
        waiting[job.job] = _Submission(job, output, *(remote or {}).get(job.sample, ("", *fingerprint(job.fasta))))
        outcome = spool.receipt(job.job)
        if outcome is None or outcome.state == "failed" or outcome.failures or not Path(outcome.embeddings).exists():
            shutil.rmtree(spool.root / "done" / job.job, ignore_errors=True)
            spool.submit(replace(job, run=run))
            submitted.add(job.job)
    order = list(waiting)
    if endpoint:  # a spool that others share may hold their results of a sample of the same name
        spool.forget({entry.job.sample: name for name, entry in waiting.items()})
    watch = _Watch(spool, pool, patience_s)
    pause_s, looked, handed_in = FIRST_POLL_S, 0.0, time.monotonic()
    while waiting:
        trouble = ""
        if time.monotonic() - looked > LOOK_AT_POOL_S:
            looked = time.monotonic()
            trouble = watch.trouble([entry.job for entry in waiting.values()])
        if time.monotonic() - handed_in > HAND_IN_AGAIN_S:  # whoever lost it, say by cleaning the spool
            handed_in = time.monotonic()
            for name, entry in waiting.items():
                if spool.receipt(name) is None:
                    spool.submit(replace(entry.job, run=run))
        for name, entry in list(waiting.items()):
            outcome = spool.receipt(name)
            if outcome is not None:
                _keep(replace(outcome, run=run) if name in submitted else outcome, entry)
                found[name] = outcome
                del waiting[name]
        if waiting and trouble:
            raise ResourceError(trouble)
        if waiting:
            time.sleep(pause_s)
            pause_s = min(LAST_POLL_S, pause_s * 1.2)
    return [found[name] for name in order]


def await_samples(plan: Plan, results: Path, endpoint: Path) -> None:
    """Wait while pools of other replicas have large samples in work, so that the pool of this one takes parts of them.

    Args:
        plan: The plan of the run.
        results: Directory of the results, where their receipts will be.
        endpoint: Endpoint file of the pool of this replica; those of the others lie beside it.

    Raises:
        ResourceError: the pool of this replica has failed.
    """
    pool, observer, launcher = read_state(endpoint), Observer(), Launcher()
    planned_ns = os.stat(plan.path).st_mtime_ns
    waiting, seen = dict(plan.shared), set[int]()
    while waiting and pool is not None and not launcher.is_gone():
        for name, replica in list(waiting.items()):
            there = endpoint.with_name(f"pool.{replica}.json").exists()
            seen |= {replica} if there else set()
            receipt = results / name / "receipt.json"
            ended = receipt.exists() and os.stat(receipt).st_mtime_ns > planned_ns
            if ended or (replica in seen and not there):
                del waiting[name]
        state = pool.now()
        if state.state == "failed":
            raise ResourceError(state.trouble(observer))
        if state.state == "ended" or state.trouble(observer):
            return
        time.sleep(LAST_POLL_S)


@dataclass(frozen=True)
class _Submission:
    """A job, where its receipt goes, and what its file was like when its digest had just been taken."""

    job: Manifest
    output: Path
    url: str
    size_bytes: int
    mtime_ns: int


def submit_planned(
    plan: Path,
    consumer: int,
    models: Sequence[Path],
    spool: Path,
    endpoint: Path | None,
    results: Path,
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
        results: Where the receipts go: each to the directory of its sample.
        patience_s: Seconds to wait while no pool there can do the jobs.
        classifier: That frames will be classified with, if there is one already.
    """
    try:
        jobs = jobs_of(plan, consumer, models, classifier)
        samples = samples_of(plan, consumer)
        outputs = [results / sample.sample / "receipt.json" for sample in samples]
        remote = {entry.sample: (entry.url, entry.size_bytes, entry.mtime_ns) for entry in samples if entry.url}
        return submit_jobs(jobs, Spool(spool), endpoint, outputs, patience_s, run_of(plan.parent), remote)
    except HoldfastError as error:
        note_trouble(plan, consumer, error)
        raise


def _keep(outcome: Receipt, entry: _Submission) -> None:
    """Write a receipt, and before it put what ``collect`` only moves to its side."""
    output = entry.output
    fetched, records = output.with_name(FETCHED), output.with_name(FETCHED_RECORDS)
    try:
        fetched.unlink(missing_ok=True)
        if outcome.state == "done":
            with suppress(FileNotFoundError):  # gone from the spool: `collect` will say so
                _fetch(_records_of(outcome), records)
                _fetch(outcome.embeddings, fetched)
        known = {"url": entry.url, "size_bytes": entry.size_bytes, "mtime_ns": entry.mtime_ns}
        replace(outcome, embeddings=_relative(outcome.embeddings), **known).write(output)  # type: ignore[arg-type]
    except OSError as error:
        raise ResourceError(f"{output}: cannot be written: {error.strerror}; mend that and run again") from None


def _relative(path: str) -> str:
    """A path as seen from the working directory, if it lies below that, so that both can be moved together."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if path and Path(path).is_relative_to(here) else path


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
        HoldfastError: the job failed, and the message is the sample's; or ``fasta`` holds something else by now.
        ResourceError: the receipt or the embeddings are gone.
    """
    outcome = read_receipt(receipt_path)
    if outcome is None:
        raise ResourceError(f"{receipt_path}: is missing; run again")
    if outcome.state == "failed":
        raise HoldfastError(f"sample '{outcome.sample}': {outcome.error}")
    same = not fasta.exists() or fingerprint(fasta) == (outcome.size_bytes, outcome.mtime_ns)
    if not same and digest_of(fasta) != outcome.input_sha256:
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
