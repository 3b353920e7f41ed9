"""The plan of a run: which samples are pending, and how they are shared out, decided once in the main process.

A service's output is always missing, so Snakemake would run every consumer again on every call. Consumers are therefore
made for the samples without a valid receipt only. A consumer has some of the samples and belongs to a replica: one pool
of several of the run, with its consumers, one Snakemake group, one job on a cluster. Jobs that read the Snakefile anew
on a cluster node must come to the same decision although some receipts exist by then: they read the plan, which lies in
a directory named after the main process; that names itself in the environment.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ResourceError
from ..files import atomic_text
from ..models.registry import read_prepared
from ..pool.settings import OF_THE_RUN, PoolSettings
from ..spool.job import Manifest
from ..spool.spool import Spool
from ..spool.state import LAUNCHER_VARIABLE, Identity, Observer
from .config import Sample, write_samples
from .pending import Place, check_prepared, directory_of, find_pending, known_models
from .provenance import begin_record, finish_record
from .remote import check_reached
from .requests import check_classifier, check_room, job_settings, make_job, models_in_use

CONSUMERS_A_REPLICA = 4
"""They read the files of samples for their digests side by side. With more of them samples take longer: each is a
Python to start, and scheduling a group is quadratic in its members (measured 8 s for 250, 153 s for 2,000)."""
SHARED_BYTES = 128_000_000
"""Files from this size on have several parts, which all replicas embed (``pool.part.PART_LETTERS`` is a quarter)."""
SAMPLES_A_CONSUMER = 100
"""Above this there are more consumers: what Snakemake keeps of one is its inputs times its outputs."""
DEFAULT_SPOOL = ".holdfast/spool"
PLAN_FILE = "plan.json"
ATTEMPTS = 3
PYTHON_VARIABLE = "HOLDFAST_PYTHON"


@dataclass(frozen=True)
class Share:
    """The samples of one consumer.

    Attributes:
        replica: Number of the pool that the consumer belongs to.
        samples: Their names.
    """

    replica: int
    samples: list[str]


@dataclass(frozen=True)
class Plan:
    """What was decided.

    Attributes:
        directory: Where this run keeps the plan and the pool's settings.
        consumers: The pending samples, each at one consumer.
        gpu: GPUs of each replica; None for all that its job sees.
        threads: CPU threads of each replica.
        models: Names of the models that the pools hold.
        shared: By large sample, the replica whose consumer hands it in; the others wait for it and take parts of it.
        replicas: Pools of the run.
        sheet: The sample sheet: the config's, or one that holds the same samples.
    """

    directory: str
    consumers: list[Share]
    gpu: int | None
    threads: int
    models: list[str]
    sheet: str
    shared: dict[str, int]
    replicas: int

    @property
    def path(self) -> str:
        """Path of the plan."""
        return f"{self.directory}/{PLAN_FILE}"

    @property
    def pool_settings(self) -> str:
        """Path of the pools' settings."""
        return f"{self.directory}/pool.yaml"


def share_out(sizes: Mapping[str, int], replicas: int, consumers: int) -> list[Share]:
    """Share samples out to replicas and their consumers.

    The largest sample first, each to the replica and then to the consumer with least so far: no schedule is more than
    4/3 of the best (Graham 1969, doi:10.1137/0117039).

    Args:
        sizes: Size of each sample's file in bytes.
        replicas: Number of replicas.
        consumers: Most consumers of a replica.
    """
    members: list[list[str]] = [[] for _ in range(replicas)]
    for name, replica in _balance(sizes, replicas):
        members[replica].append(name)
    shares = []
    for replica, names in enumerate(members):
        parts: list[list[str]] = [[] for _ in range(min(len(names), consumers))]
        for name, part in _balance({name: sizes[name] for name in names}, len(parts)):
            parts[part].append(name)
        shares += [Share(replica, part) for part in parts]
    return shares


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


def warn_without_pool(spool: Path) -> None:
    """Say before a run that waits for external pools that there is none now."""
    if not spool.exists() or not Spool(spool).living(Observer()):
        print(f"holdfast: no pool serves {spool} now; samples wait until one is started", file=sys.stderr)


def make_plan(
    config: Mapping[str, Any], samples: Mapping[str, Sample], gpu: int | None, cores: int | None, place: Place = str
) -> Plan:
    """Decide, in the main process, and leave the plan to the jobs of this run.

    Args:
        config: The checked config.
        samples: The sample sheet.
        gpu: The N of ``--resources gpu=N``, shared by the replicas; None when nothing was said.
        cores: The N of ``--cores N``; None on a cluster.
        place: Where a path of the workflow is.

    Raises:
        HoldfastError: a prepared model that does not fit, GPUs that the replicas cannot share, or places that cannot be
            written.
    """
    check_prepared(config)
    known = known_models(config, place)
    in_use = models_in_use(config["models"], samples.values(), known)
    held = {**config, "models": {name: config["models"][name] for name in in_use}}
    settings = job_settings(held, samples.values())
    classifier = config["classifier"] or ""
    called = any(sample.kind == "contigs" for sample in samples.values())
    if called and classifier.endswith(".safetensors") and known.keys() >= set(in_use):
        check_classifier(Path(classifier), settings, {name: known[name] for name in in_use})
    pool = dict(config["pool"])
    replicas, lifecycle, spool, _ = (pool.pop(key) for key in OF_THE_RUN)
    if lifecycle == "external":
        replicas = 1
    check_places(samples, Path(spool or place(DEFAULT_SPOOL)), place)
    if lifecycle == "external" and not spool:
        raise ConfigError("pool.lifecycle is external: name the spool that the pools serve in pool.spool")
    if gpu == 0:
        if pool["device"] == "cuda":
            raise ConfigError("pool.device is cuda, but --resources gpu=0 allows no GPU")
        pool["device"], gpu = "cpu", None
    if gpu is not None and gpu % replicas:
        raise ConfigError(
            f"--resources gpu={gpu} is no multiple of pool.replicas, {replicas}: all replicas take the same number of "
            f"GPUs, so say gpu={max(1, gpu // replicas) * replicas}, or change pool.replicas"
        )
    threads = min(pool.pop("threads"), max(1, cores // replicas) if cores else config["pool"]["threads"])
    gpu = gpu // replicas if gpu else None
    launcher = Identity.own()
    directory = _directory(launcher, place)
    sheet = config["samples"]
    if not isinstance(sheet, str) or "{" in sheet:  # which Snakemake would take for a pattern
        sheet = place(".holdfast/samples.tsv")
        write_samples(samples.values(), Path(sheet))
    sizes = find_pending(config, list(samples.values()), known, place)
    check_reached(samples.values(), lambda sample: sample.sample in sizes or _to_call(sample, settings, config, place))
    check_room(settings, [samples[name] for name in sizes], sizes, known, Path(spool or place(DEFAULT_SPOOL)))
    if lifecycle == "external":  # they take a core or a job each: no more than run at once, so that none waits
        consumers = min(CONSUMERS_A_REPLICA, cores or CONSUMERS_A_REPLICA)
    else:
        consumers = max(CONSUMERS_A_REPLICA, math.ceil(len(sizes) / replicas / SAMPLES_A_CONSUMER))
    shares = share_out(sizes, replicas, consumers)
    handed_in = {name: share.replica for share in shares for name in share.samples}
    large = {name: handed_in[name] for name, size in sizes.items() if size >= SHARED_BYTES and replicas > 1}
    plan = Plan(str(directory), shares, gpu, threads, in_use, sheet, large, replicas)
    if lifecycle == "external" and plan.consumers:
        warn_without_pool(Path(spool))
    living = living_runs(directory.parents[1])
    for other in directory.parent.glob(f"{launcher.host}-*"):
        if other == directory or other.name not in living:
            finish_record(other, ended=False)  # of a run that was killed, in a container perhaps one of the same pid
            shutil.rmtree(other, ignore_errors=True)
    _make(directory)
    atexit.register(_remove, directory)
    sources = {model: config["models"][model]["weights"] for model in in_use}
    models = {model: os.path.abspath(directory_of(source, model, place)) for model, source in sources.items()}
    cache = os.path.abspath(config["cache"]) if config["cache"] else None
    chosen_pool = {**pool, "models": models, "precision": config["precision"], "gpu": gpu, "threads": threads}
    metrics = os.path.abspath(pool["prometheus"]) if pool["prometheus"] else None
    chosen_pool |= {"cache": cache, "prometheus": metrics}
    PoolSettings(**chosen_pool).write(Path(plan.pool_settings))
    results = Path(place("results/run.json")).parent
    begin_record(directory, results, config, samples, sizes, models)
    jobs = {name: asdict(sample) for name, sample in samples.items()}
    with atomic_text(plan.path) as file:
        json.dump({"plan": asdict(plan), "samples": jobs, "settings": settings}, file)
    os.environ[LAUNCHER_VARIABLE] = json.dumps(asdict(launcher))
    return plan


def _to_call(sample: Sample, settings: Mapping[str, Any], config: Mapping[str, Any], place: Place) -> bool:
    """Whether a sample is still to be called, for which its sequences are read."""
    calls = settings["classified"] and (config["classifier"] is not None or not sample.label)
    return calls and sample.kind == "contigs" and not os.path.exists(place(f"results/{sample.sample}/contigs.tsv"))


def living_runs(directory: Path) -> list[str]:
    """Names of the runs on this host, ``HOST-PID``, whose plans are below a directory and whose processes live."""
    found = [path.name for path in (directory / "runs").glob(f"{Identity.own().host}-*")]
    return [name for name in found if os.path.exists(f"/proc/{name.rpartition('-')[2]}")]


def _directory(launcher: Identity, place: Place) -> Path:
    """Where the main process keeps the plan of its run."""
    return Path(place(f".holdfast/runs/{launcher.host}-{launcher.pid}")).absolute()


def _make(directory: Path) -> None:
    """Make the directory of the plan; another run may remove what is empty above it just now."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError):
            directory.mkdir(mode=0o700, parents=True)
            return
    directory.mkdir(mode=0o700, parents=True)


def _remove(directory: Path) -> None:
    """Remove the plan, and what is empty above it."""
    shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):
        directory.parent.rmdir()
        directory.parents[1].rmdir()


def read_plan(place: Place = str) -> Plan:
    """Read the plan of the run that this process is a job of.

    Raises:
        ResourceError: it is not there.
    """
    return load_plan(_directory(Identity.launcher(), place) / PLAN_FILE)


def load_plan(path: Path) -> Plan:
    """Read a plan; errors as :func:`read_plan`."""
    try:
        content = json.loads(path.read_text())["plan"]
    except OSError as error:
        raise ResourceError(
            f"{path}: the plan of this run cannot be read: {error.strerror}; jobs must see the working directory of "
            "the Snakemake that starts them, and that must still run"
        ) from None
    return Plan(**{**content, "consumers": [Share(**share) for share in content["consumers"]]})


def samples_of(path: Path, consumer: int) -> list[Sample]:
    """The samples of one consumer of a plan, as they were when it was made."""
    content = json.loads(path.read_text())
    return [Sample(**content["samples"][name]) for name in content["plan"]["consumers"][consumer]["samples"]]


def jobs_of(
    path: Path, consumer: int, directories: Sequence[Path], classifier: Path | None = None
) -> Iterator[Manifest]:
    """The jobs of one consumer of a plan; the file of each is read for its digest when its turn comes.

    Args:
        path: The plan.
        consumer: Its number.
        directories: Of the prepared models, in the order of the plan.
        classifier: That the frames of contigs will be classified with, .safetensors; None where it is to be trained.

    Raises:
        ConfigError: what is asked of a model it cannot give, or no model fits a sample.
        WeightsError: a model that cannot be read, or another classifier.
    """
    content = json.loads(path.read_text())
    names = content["plan"]["models"]
    known = {name: read_prepared(directory) for name, directory in zip(names, directories, strict=True)}
    if classifier is not None:
        check_classifier(classifier, content["settings"], known)
    return (make_job(content["settings"], sample, known) for sample in samples_of(path, consumer))
