"""The results as an RO-Crate: ``ro-crate-metadata.json`` beside them, made from the records of their runs.

The directory of the results is the crate; nothing in it is copied or moved. The profile is Process Run Crate 0.5
(https://w3id.org/ro/wfrun/process/0.5). A file is a result of the run in whose record its digest stands; embeddings,
which records do not hash, are of the run that the receipt beside them names. Inputs lie outside, where they lay, and
are named by their digests.
"""

import json
import mimetypes
import os
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from ..documents import DocumentError, parse_json, read_text
from ..errors import ConfigError, ResourceError
from ..files import atomic_text
from ..spool.job import read_receipt
from . import provenance
from .provenance import CRATE, FORMAT, FORMAT_VERSION, LATEST, RUNS

try:
    from rocrate.model import ContextEntity, Entity, SoftwareApplication
    from rocrate.rocrate import ROCrate
except ImportError:
    raise ResourceError("a crate needs the Python package rocrate; install it") from None

EMBEDDINGS = "embeddings.h5"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
CONTEXT = "https://w3id.org/ro/terms/workflow-run/context"

KEYS = {
    *("run", "directory", "results", "command", "began", "ended", "software", "config", "models", "classifier_sha256"),
    *("synthetic_weights", "pools", "samples", "outputs"),
}
LIMIT_BYTES = 2**28  # a record has about 1 kB a sample

Record = dict[str, Any]  # docs/provenance.md has the keys


def write_crate(results: Path, license_url: str) -> list[str]:
    """Write the metadata into the directory of the results.

    Args:
        results: Of a run that has ended.
        license_url: What others may do with them.

    Returns:
        Names of the files that are left out: no record has the digest that they have now.

    Raises:
        ConfigError: no record there, or something else in its place; a license that is no URL.
        ResourceError: something else in the place of a receipt.
    """
    if "://" not in license_url:
        raise ConfigError(f"--license {license_url}: not a URL, such as https://spdx.org/licenses/CC-BY-4.0")
    found = [*sorted((results / RUNS).glob("*.json")), results / LATEST]
    records = {record["run"]: record for record in map(_read, found)}
    runs = sorted(records.values(), key=lambda run: str(run["began"]), reverse=True)
    crate = ROCrate(version="1.1")
    crate.metadata.extra_contexts.append(CONTEXT)
    crate.name = f"Results of Holdfast, run {runs[0]['run']}"
    crate.description = f"Embeddings of sequences and what was made of them.{_warning(runs)}"
    crate.license = _work(crate, license_url, "License of the results")
    crate.root_dataset["conformsTo"] = _work(crate, PROFILE, "Process Run Crate", version="0.5")
    embedded = _made(results, runs)
    described: set[str] = set()
    changed: set[str] = set()
    digest = cache(provenance.sha256)
    for run in runs:
        recorded = {PurePath(path).relative_to(run["results"]).as_posix(): of for path, of in run["outputs"].items()}
        there = {name for name in recorded if (results / name).is_file()}
        whole = {name: {"sha256": recorded[name]} for name in there if digest(results / name) == recorded[name]}
        changed |= there - whole.keys()
        own = embedded[run["run"]]
        made = {f"{sample}/{EMBEDDINGS}": {"identifier": job} for sample, job in own.items()}
        made |= {name: whole[name] for name in sorted(whole.keys() - described)}
        described |= made.keys()
        files = [crate.add_file(dest_path=name, properties=_file(results / name) | of) for name, of in made.items()]
        read = list(_inputs(crate, run, own))
        action = crate.add_action(_software(crate, run), f"#{run['run']}", read, files, _outcome(run))
        crate.root_dataset.append_to("mentions", action)
    with atomic_text(results / CRATE) as file:
        file.write(json.dumps(crate.metadata.generate(), indent=2) + "\n")
    return sorted(changed - described)


def _read(path: Path) -> Record:
    try:
        record = parse_json(read_text(path, LIMIT_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: is missing; give the directory of the results of a run that has ended") from None
    except DocumentError as error:
        raise ConfigError(f"{path}: not the record of a run: {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ConfigError(f"{path}: not the record of a run: format is not {FORMAT}")
    if record.get("format_version") != FORMAT_VERSION or KEYS - record.keys():
        raise ConfigError(f"{path}: the record of a run of another version; use `holdfast crate` of that version")
    return record


def _work(crate: ROCrate, url: str, name: str, **facts: str) -> ContextEntity:
    return crate.add(ContextEntity(crate, url, {"@type": "CreativeWork", "name": name, **facts}))


def _file(path: Path) -> dict[str, str]:
    kind = "application/x-hdf5" if path.suffix == ".h5" else mimetypes.guess_type(path)[0] or "application/octet-stream"
    return {"name": path.name, "encodingFormat": kind, "contentSize": str(path.stat().st_size)}


def _made(results: Path, runs: list[Record]) -> dict[str, dict[str, str]]:
    """By run the samples whose embeddings it made and that are there, with their job; runs latest first.

    A receipt names the run, unless the job was done before a consumer came for it: then it is the first that knew it.
    """
    made: dict[str, dict[str, str]] = {run["run"]: {} for run in runs}
    for sample in sorted({sample for run in runs for sample in run["samples"]}):
        outcome = read_receipt(results / sample / "receipt.json")
        if outcome is None or outcome.state != "done" or not (results / sample / EMBEDDINGS).is_file():
            continue
        knew = [run["run"] for run in runs if run["samples"].get(sample, {}).get("job") == outcome.job]
        maker = outcome.run if outcome.run in made else knew[-1] if knew else None
        if maker is not None:
            made[maker][sample] = outcome.job
    return made


def _software(crate: ROCrate, run: Record) -> SoftwareApplication:
    """Holdfast, and what ran with it in the process of Snakemake and in pools."""
    versions = {(name, of) for each in [run, *run["pools"].values()] for name, of in each["software"].items()}
    others = [
        crate.add(SoftwareApplication(crate, f"#{name}-{of}", {"name": name, "softwareVersion": of}))
        for name, of in sorted(versions)
        if not name.startswith("holdfast")
    ]
    own = run["software"]
    facts = {"name": "Holdfast", "softwareVersion": own["holdfast"], "sha256": own["holdfast_sha256"]}
    return crate.add(SoftwareApplication(crate, f"#{run['run']}-holdfast", {**facts, "softwareRequirements": others}))


def _inputs(crate: ROCrate, run: Record, made: Collection[str]) -> Iterator[Entity]:
    """What a run read: samples, those ``made`` by it and those that failed, weights, a classifier, the config."""
    for sample, known in run["samples"].items():
        if (sample in made or known["state"] == "failed") and (sha256 := known.get("input_sha256")):
            path = os.path.abspath(os.path.join(run["directory"], known["fasta"]))
            url = known.get("url") or Path(path).as_uri()
            if url in crate and crate.get(url)["sha256"] != sha256:
                url += f"#{sha256}"  # as it was then
            if url not in crate:
                crate.add_file(url, properties={"name": PurePath(known["fasta"]).name, "sha256": sha256})
            yield crate.get(url)
    for model, known in run["models"].items():
        if sha256 := known.get("weights_sha256"):
            name = f"{'Synthetic weights' if known['synthetic'] else 'Weights'} of {model}"
            yield _work(crate, f"#{model}-{sha256}", name, identifier=known["source"], sha256=sha256)
    if sha256 := run["classifier_sha256"]:
        yield _work(crate, f"#classifier-{sha256}", "Classifier", sha256=sha256)
    config = {"@type": "PropertyValue", "name": "config", "value": json.dumps(run["config"])}
    yield crate.add(ContextEntity(crate, f"#config-{run['run']}", config))


def _outcome(run: Record) -> dict[str, str]:
    """How a run went."""
    facts = {"name": f"Run {run['run']}", "description": f"{run['command']}{_warning([run])}"}
    facts |= {name: run[key] for name, key in (("startTime", "began"), ("endTime", "ended")) if run[key]}
    lacking = [name for name, known in run["samples"].items() if known["state"] in ("failed", "missing")]
    if run["ended"] and not lacking:
        return facts | {"actionStatus": "http://schema.org/CompletedActionStatus"}
    error = f"no result of {', '.join(lacking)}" if lacking else "killed"
    return facts | {"actionStatus": "http://schema.org/FailedActionStatus", "error": error}


def _warning(runs: list[Record]) -> str:
    models = sorted({model for run in runs for model in run["synthetic_weights"]})
    return f" Synthetic weights: {', '.join(models)}; what comes from them means nothing." if models else ""
