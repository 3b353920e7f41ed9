"""The plan of a run: which samples are pending, decided once, when the main process reads the Snakefile.

A service's output is always missing, so Snakemake would run every consumer again on every call. The consumer rule is
therefore limited to the samples without a valid receipt. Jobs that read the Snakefile anew, on a cluster node, must
come to the same decision although some receipts exist by then: they read the plan, whose path travels in the
environment.
"""

import atexit
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import manifest, prepared, receipt, status
from .configuration import Sample, models_in_use
from .errors import ConfigError, HoldfastError
from .files import atomic_text
from .settings import PoolSettings

SHOWN = 20
PLAN_VARIABLE = "HOLDFAST_PLAN"
PYTHON_VARIABLE = "HOLDFAST_PYTHON"


@dataclass(frozen=True)
class Plan:
    """What was decided.

    Attributes:
        directory: Where this run keeps the plan and the pool's settings.
        pending: Samples to embed, in the order of the sheet.
        gpu: GPUs asked for on the command line; None when nothing was said.
        threads: CPU threads of the pool.
    """

    directory: str
    pending: list[str]
    gpu: int | None
    threads: int

    @property
    def pool_settings(self) -> str:
        """Path of the pool's settings."""
        return f"{self.directory}/pool.yaml"

    @property
    def pattern(self) -> str:
        """Wildcard constraint that matches the pending samples only; nothing, when none is."""
        return "|".join(map(re.escape, self.pending)) or "(?!)"


def use_this_python() -> None:
    """Have rules without an environment of their own run in Snakemake's python, whether or not that is on the PATH.

    Who wants another one names it in HOLDFAST_PYTHON.
    """
    os.environ.setdefault(PYTHON_VARIABLE, sys.executable)


def directory_of(source: str, model: str) -> str:
    """Where the prepared weights of a model are: ``source`` itself if it is prepared, otherwise below ``resources``."""
    return source if os.path.exists(os.path.join(source, prepared.DESCRIPTION_FILE)) else f"resources/{model}"


def pending(config: Mapping[str, Any], samples: Iterable[Sample]) -> list[str]:
    """Samples whose receipt is absent, failed or made from something else, or whose embeddings are gone."""
    digests = {model: _digest(entry, model) for model, entry in config["models"].items()}
    found = []
    for sample in samples:
        needed = manifest.MODELS_OF_KIND[sample.kind]
        if all(digests.get(model) for model in needed):
            job = manifest.make(
                sample.sample,
                sample.kind,
                sample.fasta,
                config["chunk_length"],
                {model: digests[model] or "" for model in needed},
                config["precision"],
                config["store_dtype"],
            ).job
            if _is_valid(sample.sample, job):
                continue
        found.append(sample.sample)
    return found


def _digest(entry: Mapping[str, Any], model: str) -> str | None:
    """Digest of the prepared weights that will be used; None if they are still to be prepared."""
    source = entry["weights"]
    directory = directory_of(source, model)
    try:
        description = prepared.read(directory)
    except HoldfastError:
        return None
    made = os.path.getmtime(os.path.join(directory, prepared.DESCRIPTION_FILE))
    changed = directory != source and os.path.exists(source) and os.path.getmtime(source) > made
    return None if changed or (directory != source and description.source != source) else description.weights_sha256


def _is_valid(sample: str, job: str) -> bool:
    try:
        outcome = receipt.read(f"results/{sample}/receipt.json")
    except HoldfastError:
        return False
    return (
        outcome is not None
        and (outcome.job, outcome.state) == (job, "done")
        and (os.path.exists(f"results/{sample}/embeddings.h5") or os.path.exists(outcome.embeddings))
    )


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


def make(config: Mapping[str, Any], samples: Mapping[str, Sample], gpu: int | None, cores: int | None) -> Plan:
    """Decide, in the main process; write the plan and name it to the jobs of this run.

    Raises:
        HoldfastError: a prepared model that does not fit.
    """
    check_prepared(config)
    pool = dict(config["pool"])
    threads = min(pool.pop("threads"), cores or config["pool"]["threads"])
    directory = Path(f".holdfast/runs/{socket.gethostname()}-{os.getpid()}").absolute()
    plan = Plan(str(directory), pending(config, samples.values()), gpu, threads)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    atexit.register(_remove, directory)
    sources = {model: config["models"][model]["weights"] for model in models_in_use(samples.values())}
    models = {model: os.path.abspath(directory_of(source, model)) for model, source in sources.items()}
    settings = PoolSettings(models=models, precision=config["precision"], gpu=gpu, threads=threads, **pool)
    settings.write(directory / "pool.yaml")
    with atomic_text(directory / "plan.json") as file:
        json.dump(asdict(plan), file)
    os.environ[PLAN_VARIABLE] = str(directory / "plan.json")
    return plan


def _remove(directory: Path) -> None:
    """Remove the plan, and what is empty above it."""
    shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):
        directory.parent.rmdir()
        directory.parents[1].rmdir()


def read() -> Plan:
    """Read the plan of the run that this process is a job of."""
    return Plan(**json.loads(Path(os.environ[PLAN_VARIABLE]).read_text()))


def tell_failures(samples: Iterable[str], spool: Path = Path(".holdfast/spool")) -> None:
    """Say at the end of a run what failed, and write ``results/failures.tsv``.

    The table has a row for every failed sample and every row given up; with nothing to tell there is no such file. The
    pool of this run is named first, if it failed or died.
    """
    for trouble in _pool_troubles(spool):
        print(f"holdfast: error: {trouble}", file=sys.stderr)
    rows = []
    for sample in samples:
        outcome = receipt.read(f"results/{sample}/receipt.json")
        if outcome is not None and outcome.state == "failed":
            rows.append((sample, "", outcome.error))
        elif outcome is not None:
            rows += [(sample, row, reason) for row, reason in outcome.failures.items()]
    table = Path("results/failures.tsv")
    if not rows:
        table.unlink(missing_ok=True)
        return
    with atomic_text(table) as file:
        file.write("sample\trow\treason\n")
        file.writelines("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)
    print(f"Failed ({table}); repair these and run again, the rest is kept:", file=sys.stderr)
    for sample, row, reason in rows[:SHOWN]:
        print(f"  {sample}{' ' if row else ''}{row}: {reason}", file=sys.stderr)
    if len(rows) > SHOWN:
        print(f"  ... and {len(rows) - SHOWN} more", file=sys.stderr)


def _pool_troubles(spool: Path) -> list[str]:
    """Why pools of this run did not last, most often nothing."""
    plan = Path(os.environ[PLAN_VARIABLE])
    observer = status.Observer()
    states = [
        status.read(path) for path in (spool / "pools").glob("*.json") if path.stat().st_mtime >= plan.stat().st_mtime
    ]
    return [state.trouble(observer) for state in states if state and state.state != "ended" and state.trouble(observer)]
