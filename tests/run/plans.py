"""Projects as the main process of a run finds them: a config, its samples, what earlier runs left."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from holdfast.models.registry import read_prepared
from holdfast.run.config import Sample, check_config
from holdfast.run.pending import directory_of
from holdfast.run.requests import job_settings, make_job
from holdfast.spool.job import Receipt, fingerprint, read_receipt

from tests.results.samples import DNA, PROTEIN, describe_model

MODELS = {"esm2": "synthetic:esm2_t6_8M_UR50D", "dnabert_s": "synthetic:dnabert_s_tiny"}
SAMPLES = [
    Sample("a", "a.fna", "contigs", "", ""),
    Sample("b", "b.fna", "contigs", "virus", ""),
    Sample("p", "p.faa", "proteins", "", ""),
    Sample("d", "d.fna", "dna", "", ""),
]
CONFIG = check_config(
    {
        "samples": "samples.tsv",
        "models": {model: {"weights": source} for model, source in MODELS.items()},
        "pool": {"tokens_per_batch": 4096},
    }
)


def prepare(directory: str, model: str, source: str, digest: str, source_sha256: str = "0" * 64) -> None:
    """Leave the description of a prepared model, all that the plan reads of it."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    known = {"source": source, "source_sha256": source_sha256, "weights_sha256": digest}
    described = describe_model(8, 1, **DNA if model == "dnabert_s" else PROTEIN, **known)
    described.write(Path(directory))


def finish(sample: Sample, config: dict[str, Any], state: str = "done") -> None:
    """Leave what a run leaves of one sample."""
    known = {name: read_prepared(directory_of(entry["weights"], name)) for name, entry in config["models"].items()}
    job = make_job(job_settings(config, SAMPLES), sample, known)
    results = Path("results") / sample.sample
    results.mkdir(parents=True, exist_ok=True)
    (results / "embeddings.h5").touch()
    embeddings = f"{os.getcwd()}/spool/{job.job}.h5"
    size_bytes, mtime_ns = fingerprint(sample.fasta)
    known_by = {"input_sha256": job.input_sha256, "size_bytes": size_bytes, "mtime_ns": mtime_ns}
    outcome = Receipt(job.job, sample.sample, state, "", embeddings, **known_by)
    outcome.write(results / "receipt.json")


def asked(**changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The models of the config, changed."""
    return {name: changed.get(name, {"weights": source}) for name, source in MODELS.items()}


def replace_receipt(name: str, **changed: Any) -> None:
    path = Path("results") / name / "receipt.json"
    outcome = read_receipt(path)
    assert outcome is not None
    dataclasses.replace(outcome, **changed).write(path)
