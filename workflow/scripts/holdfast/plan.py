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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import manifest, prepared, receipt
from .configuration import Sample, models_in_use
from .errors import HoldfastError
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


def make(
    config: Mapping[str, Any], samples: Mapping[str, Sample], gpu: int | None, cores: int | None, keep: bool
) -> Plan:
    """Decide, in the main process; with ``keep`` also write the plan and name it to the jobs of this run."""
    pool = dict(config["pool"])
    threads = min(pool.pop("threads"), cores or config["pool"]["threads"])
    directory = Path(f".holdfast/runs/{socket.gethostname()}-{os.getpid()}").absolute()
    plan = Plan(str(directory), pending(config, samples.values()), gpu, threads)
    if keep:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        models = {
            model: os.path.abspath(directory_of(config["models"][model]["weights"], model))
            for model in models_in_use(samples.values())
        }
        settings = PoolSettings(models=models, precision=config["precision"], gpu=gpu, threads=threads, **pool)
        settings.write(directory / "pool.yaml")
        with atomic_text(directory / "plan.json") as file:
            json.dump(asdict(plan), file)
        os.environ[PLAN_VARIABLE] = str(directory / "plan.json")
    return plan


def read() -> Plan:
    """Read the plan of the run that this process is a job of."""
    return Plan(**json.loads(Path(os.environ[PLAN_VARIABLE]).read_text()))


def tell_failures(samples: Iterable[str]) -> None:
    """Write ``results/failures.tsv``, a row for every failed sample and every row given up, and say what is in it.

    With nothing to tell there is no such file, and nothing is said.
    """
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
