"""The plan of a run: which samples are pending, and how they are shared out, decided once in the main process.

A service's output is always missing, so Snakemake would run every consumer again on every call. Consumers are therefore
made for the samples without a valid receipt only. Each consumer has a batch of samples, a single one as long as there
are few, and belongs to a lane, which is one pool with its consumers: one Snakemake group, one job on a cluster. Jobs
that read the Snakefile anew on a cluster node must come to the same decision although some receipts exist by then: they
read the plan, which lies in a directory named after the main process; that names itself in the environment.

Where a module is imported with a prefix, what the workflow makes lies below it. Functions that need such a path take
``place``, which turns a path as the rules write it into the one it has.
"""

import atexit
import errno
import heapq
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import manifest, prepared, provenance, receipt, status
from .configuration import Sample, models_in_use, write_samples
from .errors import ConfigError, HoldfastError, ResourceError
from .files import atomic_text
from .manifest import Manifest
from .models import KINDS
from .receipt import Receipt
from .settings import PoolSettings
from .spool import Spool
from .status import Identity

CONSUMERS_A_LANE = 16
"""With more of them samples take longer: each is a Python to start, and scheduling a group is quadratic in its members
(measured 8 s for 250, 153 s for 2,000)."""
SAMPLES_A_CONSUMER = 100
"""Above this there are more consumers: what Snakemake keeps of one is its inputs times its outputs."""
DEFAULT_SPOOL = ".holdfast/spool"
PLAN_FILE = "plan.json"
SHOWN = 20
PYTHON_VARIABLE = "HOLDFAST_PYTHON"

Place = Callable[[str], str]


@dataclass(frozen=True)
class Batch:
    """The samples of one consumer.

    Attributes:
        lane: The pool that the consumer belongs to.
        samples: Their names.
    """

    lane: int
    samples: list[str]


@dataclass(frozen=True)
class Plan:
    """What was decided.

    Attributes:
        directory: Where this run keeps the plan and the pool's settings.
        batches: The pending samples, each in one batch.
        gpu: GPUs of each lane; None for all that its job sees.
        threads: CPU threads of each lane's pool.
        sheet: The sample sheet: the config's, or one that holds the samples that the config lists.
    """

    directory: str
    batches: list[Batch]
    gpu: int | None
    threads: int
    sheet: str

    @property
    def path(self) -> str:
        """Path of the plan."""
        return f"{self.directory}/{PLAN_FILE}"

    @property
    def pool_settings(self) -> str:
        """Path of the pools' settings."""
        return f"{self.directory}/pool.yaml"


def share_out(sizes: Mapping[str, int], lanes: int, consumers: int) -> list[Batch]:
    """Share samples out to lanes and consumers.

    The largest sample first, each to the lane and then to the batch with least so far: no schedule is more than 4/3 of
    the best (Graham 1969, doi:10.1137/0117039).

    Args:
        sizes: Size of each sample's file in bytes.
        lanes: Number of lanes.
        consumers: Most consumers in a lane.
    """
    members: list[list[str]] = [[] for _ in range(lanes)]
    for name, lane in _balance(sizes, lanes):
        members[lane].append(name)
    batches = []
    for lane, names in enumerate(members):
        parts: list[list[str]] = [[] for _ in range(min(len(names), consumers))]
        for name, part in _balance({name: sizes[name] for name in names}, len(parts)):
            parts[part].append(name)
        batches += [Batch(lane, part) for part in parts]
    return batches


def _balance(sizes: Mapping[str, int], bins: int) -> Iterator[tuple[str, int]]:
    """Names with the bin that each goes to, the largest first, each to the emptiest; a sample costs 1 kB at least."""
    filled = [(0, number) for number in range(bins)]
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        total, number = heapq.heappop(filled)
        yield name, number
        heapq.heappush(filled, (total + sizes[name] + 1000, number))


def use_this_python() -> None:
    """Have rules without an environment of their own run in Snakemake's python, whether or not that is on the PATH.

    Who wants another one names it in HOLDFAST_PYTHON.
    """
    os.environ.setdefault(PYTHON_VARIABLE, sys.executable)


def directory_of(source: str, model: str, place: Place = str) -> str:
    """Where the prepared weights of a model are: ``source`` itself if it is prepared, otherwise below ``resources``."""
    return source if os.path.exists(os.path.join(source, prepared.DESCRIPTION_FILE)) else place(f"resources/{model}")


def pending(config: Mapping[str, Any], samples: Iterable[Sample], place: Place = str) -> dict[str, int]:
    """Samples whose receipt is absent, failed or made from something else, or whose embeddings are gone.

    A sequence file that is gone has not changed: it may be a temporary file of the workflow around.

    Returns:
        Size of the file of each, in bytes; 0 if it is not there yet.
    """
    digests = {model: _digest(entry, model, place) for model, entry in config["models"].items()}
    found = {}
    for sample in samples:
        known = {model: digests[model] or "" for model in KINDS[sample.kind].models}
        job = make_job(config, sample, known)
        outcome = _done(sample.sample, place)
        if outcome and job.mtime_ns < 0:
            job = replace(job, size_bytes=outcome.size_bytes, mtime_ns=outcome.mtime_ns)
        if not all(known.values()) or outcome is None or outcome.job != job.job:
            found[sample.sample] = max(0, job.size_bytes)
    return found


def make_job(config: Mapping[str, Any], sample: Sample, digests: Mapping[str, str]) -> Manifest:
    """The job of a sample, with the digests of the prepared models."""
    settings = (config["chunk_length"], dict(digests), config["precision"], config["store_dtype"])
    return manifest.make(sample.sample, sample.kind, sample.fasta, *settings)


def _digest(entry: Mapping[str, Any], model: str, place: Place) -> str | None:
    """Digest of the prepared weights that will be used; None if they are still to be prepared."""
    source = entry["weights"]
    directory = directory_of(source, model, place)
    try:
        description = prepared.read(directory)
    except HoldfastError:
        return None
    made = os.path.getmtime(os.path.join(directory, prepared.DESCRIPTION_FILE))
    changed = directory != source and os.path.exists(source) and os.path.getmtime(source) > made
    other = directory != source and description.source != source
    wrong = entry.get("sha256", description.source_sha256) != description.source_sha256
    return None if changed or other or wrong else description.weights_sha256


def _done(sample: str, place: Place) -> Receipt | None:
    """The receipt of a sample that was done and whose embeddings are still there."""
    try:
        outcome = receipt.read(place(f"results/{sample}/receipt.json"))
    except HoldfastError:
        return None
    if outcome is None or outcome.state != "done":
        return None
    kept = (place(f"results/{sample}/embeddings.h5"), outcome.embeddings)
    return outcome if any(map(os.path.exists, kept)) else None


def check_prepared(config: Mapping[str, Any]) -> None:
    """Check those models that the config names as prepared directories, which no rule will look at.

    Raises:
        ConfigError: a directory of another model, or made from another checkpoint than ``sha256`` says.
        WeightsError: a directory that this version cannot read.
    """
    for model, entry in config["models"].items():
        if directory_of(entry["weights"], model) == entry["weights"]:
            description = prepared.read(entry["weights"])
            key = f"models.{model}"
            if description.model != model:
                raise ConfigError(f"{key}.weights: {entry['weights']} holds {description.model}, not {model}")
            if entry.get("sha256", description.source_sha256) != description.source_sha256:
                raise ConfigError(
                    f"{key}.sha256: {entry['weights']} was made from a checkpoint with digest "
                    f"{description.source_sha256}, not {entry['sha256']}; prepare the right one, or correct the digest"
                )


def check_places(samples: Iterable[str], spool: Path, place: Place = str) -> None:
    """Check that what is there of spool and results can be written: Snakemake would find out when all is under way.

    Raises:
        ResourceError: names the directory and the reason.
    """
    if spool.exists():
        Spool(spool)
    for name in ("summary.tsv", *(f"{sample}/receipt.json" for sample in samples)):
        directory = Path(place(f"results/{name}")).parent
        if directory.exists() and not os.access(directory, os.W_OK):
            read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
            reason = os.strerror(errno.EROFS if read_only else errno.EACCES)
            raise ResourceError(f"{directory.absolute()}: {reason}; mend that, nothing has been started")


def tell_absence(spool: Path) -> None:
    """Say before a run that waits for external pools that there is none now."""
    if not spool.exists() or not Spool(spool).living(status.Observer()):
        print(f"holdfast: no pool serves {spool} now; samples wait until one is started", file=sys.stderr)


def make(
    config: Mapping[str, Any], samples: Mapping[str, Sample], gpu: int | None, cores: int | None, place: Place = str
) -> Plan:
    """Decide, in the main process, and leave the plan to the jobs of this run.

    Args:
        config: The checked config.
        samples: The sample sheet.
        gpu: The N of ``--resources gpu=N``, shared by the lanes; None when nothing was said.
        cores: The N of ``--cores N``; None on a cluster.
        place: Where a path of the workflow is.

    Raises:
        HoldfastError: a prepared model that does not fit, GPUs that the lanes cannot share, or places that cannot be
            written.
    """
    check_prepared(config)
    pool = dict(config["pool"])
    lanes, lifecycle, spool, _ = (pool.pop(key) for key in ("lanes", "lifecycle", "spool", "patience_s"))
    if lifecycle == "external":
        lanes = 1
    check_places(samples, Path(spool or place(DEFAULT_SPOOL)), place)
    if lifecycle == "external" and not spool:
        raise ConfigError("pool.lifecycle is external: name the spool that the pools serve in pool.spool")
    if gpu == 0:
        if pool["device"] == "cuda":
            raise ConfigError("pool.device is cuda, but --resources gpu=0 allows no GPU")
        pool["device"], gpu = "cpu", None
    if gpu is not None and gpu % lanes:
        raise ConfigError(
            f"--resources gpu={gpu} is no multiple of pool.lanes, {lanes}: all lanes take the same number of GPUs, so "
            f"say gpu={max(1, gpu // lanes) * lanes}, or change pool.lanes"
        )
    threads = min(pool.pop("threads"), cores or config["pool"]["threads"])
    gpu = gpu // lanes if gpu else None
    launcher = Identity.own()
    directory = _directory(launcher, place)
    sheet = config["samples"]
    if not isinstance(sheet, str):
        sheet = place(".holdfast/samples.tsv")
        write_samples(samples.values(), Path(sheet))
    sizes = pending(config, samples.values(), place)
    if lifecycle == "external":  # they take a core or a job each: no more than run at once, so that none waits
        consumers = min(CONSUMERS_A_LANE, cores or CONSUMERS_A_LANE)
    else:
        consumers = max(CONSUMERS_A_LANE, math.ceil(len(sizes) / lanes / SAMPLES_A_CONSUMER))
    plan = Plan(str(directory), share_out(sizes, lanes, consumers), gpu, threads, sheet)
    if lifecycle == "external" and plan.batches:
        tell_absence(Path(spool))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    atexit.register(_remove, directory)
    for other in directory.parent.glob(f"{launcher.host}-*"):
        if not os.path.exists(f"/proc/{other.name.rpartition('-')[2]}"):
            provenance.finish(other, ended=False)  # of a run that was killed
            shutil.rmtree(other, ignore_errors=True)
    sources = {model: config["models"][model]["weights"] for model in models_in_use(samples.values())}
    models = {model: os.path.abspath(directory_of(source, model, place)) for model, source in sources.items()}
    settings = PoolSettings(models=models, precision=config["precision"], gpu=gpu, threads=threads, **pool)
    settings.write(Path(plan.pool_settings))
    results = Path(place("results/run.json")).parent
    provenance.begin(directory, results, config, samples, sizes, models)
    jobs = {name: asdict(sample) for name, sample in samples.items()}
    chosen = {key: config[key] for key in ("chunk_length", "precision", "store_dtype")}
    with atomic_text(plan.path) as file:
        json.dump({"plan": asdict(plan), "samples": jobs, "config": chosen}, file)
    os.environ[status.LAUNCHER_VARIABLE] = json.dumps(asdict(launcher))
    return plan


def _directory(launcher: Identity, place: Place) -> Path:
    """Where the main process keeps the plan of its run."""
    return Path(place(f".holdfast/runs/{launcher.host}-{launcher.pid}")).absolute()


def _remove(directory: Path) -> None:
    """Remove the plan, and what is empty above it."""
    shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):
        directory.parent.rmdir()
        directory.parents[1].rmdir()


def read(place: Place = str) -> Plan:
    """Read the plan of the run that this process is a job of.

    Raises:
        ResourceError: it is not there.
    """
    path = _directory(Identity.launcher(), place) / PLAN_FILE
    try:
        content = json.loads(path.read_text())["plan"]
    except OSError as error:
        raise ResourceError(
            f"{path}: the plan of this run cannot be read: {error.strerror}; jobs must see the working directory of "
            "the Snakemake that starts them, and that must still run"
        ) from None
    return Plan(**{**content, "batches": [Batch(**batch) for batch in content["batches"]]})


def jobs_of(path: Path, batch: int, digests: Mapping[str, str]) -> list[Manifest]:
    """The jobs of one batch of a plan.

    Args:
        path: The plan.
        batch: Number of the batch.
        digests: ``weights_sha256`` of the prepared models.
    """
    content = json.loads(path.read_text())
    samples = [Sample(**content["samples"][name]) for name in content["plan"]["batches"][batch]["samples"]]
    return [make_job(content["config"], sample, digests) for sample in samples]


def tell_failures(plan: Plan, samples: Iterable[str], place: Place = str) -> None:
    """Say at the end of a run what failed, and write ``results/failures.tsv``.

    The table has a row for every failed sample and every row given up; with nothing to tell there is no such file. What
    other rules gave up with comes first.
    """
    for trouble in _troubles(Path(plan.path).stat().st_mtime, Path(place("logs/pool.0.log")).parent):
        print(trouble, file=sys.stderr)
    rows = []
    for sample in samples:
        try:
            outcome = receipt.read(place(f"results/{sample}/receipt.json"))
        except HoldfastError as error:
            rows.append((sample, "", str(error)))
            continue
        if outcome is not None and outcome.state == "failed":
            rows.append((sample, "", outcome.error))
        elif outcome is not None:
            rows += [(sample, row, reason) for row, reason in outcome.failures.items()]
    table = Path(place("results/failures.tsv"))
    if not rows:
        table.unlink(missing_ok=True)
        return
    try:
        with atomic_text(table) as file:
            file.write("sample\trow\treason\n")
            file.writelines("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)
    except OSError as error:
        print(f"holdfast: error: {table} cannot be written: {error.strerror}", file=sys.stderr)
    print(f"Failed ({table}); repair these and run again, the rest is kept:", file=sys.stderr)
    if any(row for _, row, _ in rows):
        print(
            "  (a sample of which only rows are named is done without them; remove its receipt.json to retry)",
            file=sys.stderr,
        )
    for sample, row, reason in rows[:SHOWN]:
        print(f"  {sample}{' ' if row else ''}{row}: {reason}", file=sys.stderr)
    if len(rows) > SHOWN:
        print(f"  ... and {len(rows) - SHOWN} more", file=sys.stderr)


def _troubles(began: float, logs: Path) -> list[str]:
    """What rules gave up with since ``began`` (s), by their logs, and which log tells a pool's story.

    What ``collect`` says is in the receipts, and consumers say what was wrong with a pool.
    """
    pools = [log for log in sorted(logs.glob("pool.*.log")) if log.stat().st_mtime >= began]
    others = [log for log in sorted(logs.rglob("*.log")) if log.stat().st_mtime >= began]
    told = _errors(log for log in others if log not in pools and log.parent.name != "collect")
    told = told or _errors(pools)
    if len(told) > SHOWN:
        told = [*told[:SHOWN], f"... and {len(told) - SHOWN} more, see {logs}"]
    if any("the pool (process " in line for line in told):
        told.append(f"The pool's own story: {', '.join(map(str, pools))}")
    return told


def _errors(logs: Iterable[Path]) -> list[str]:
    """Lines that entry points ended with, each once."""
    found: dict[str, None] = {}
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            _, mark, message = line.partition("holdfast: error: ")
            found |= {f"{mark}{message}": None} if mark else {}
    return [*found]
