"""The results as an RO-Crate: ``ro-crate-metadata.json`` beside them, made from the records of their runs.

The directory of the results is the crate; nothing in it is copied or moved. The profile is Workflow Run Crate 0.5
(https://w3id.org/ro/wfrun/workflow/0.5). It wants the workflow to be a part, so a copy of the code goes to
``runs/code/``. A file is a result of the run in whose record its digest stands; one that was changed since is left
out. Inputs lie outside the crate, where they lay, and are told by their digests.
"""

import json
import mimetypes
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from . import documents, provenance, receipt
from .documents import DocumentError
from .errors import ConfigError, ResourceError
from .files import atomic_text

try:
    from rocrate.model import ContextEntity, Entity, SoftwareApplication
    from rocrate.rocrate import ROCrate
except ImportError:
    raise ResourceError("a crate needs the Python package rocrate; install it") from None

METADATA = "ro-crate-metadata.json"
CODE = f"{provenance.RUNS}/code"
CHECKOUT = Path(__file__).parents[3]
TOLD = "told"
CONTEXT = "https://w3id.org/ro/terms/workflow-run/context"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}


@dataclass(frozen=True)
class Input:
    """A sample in a record; one that was not read to its end has no digest."""

    fasta: str
    state: str
    input_sha256: str = ""


@dataclass(frozen=True)
class Weights:
    """A model in a record; one that was not prepared has no digest."""

    source: str = ""
    weights_sha256: str = ""
    synthetic: bool = False


@dataclass(frozen=True)
class Pool:
    """A pool in a record."""

    software: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A record, as far as a crate tells it; docs/provenance.md has the keys. ``config`` is JSON."""

    format: str
    run: str
    directory: str
    results: str
    command: str
    began: str
    ended: str | None
    software: dict[str, str]
    config: str
    models: dict[str, Weights]
    classifier_sha256: str | None
    synthetic_weights: list[str]
    pools: dict[str, Pool]
    samples: dict[str, Input]
    outputs: dict[str, str]

    @property
    def code(self) -> str:
        """Digest of the package that ran."""
        return self.software.get("holdfast_sha256", "")


def write(results: Path, license_url: str) -> list[str]:
    """Write the metadata, and the copy of the code, into the directory of the results.

    Args:
        results: Of a run that has ended.
        license_url: What others may do with them.

    Returns:
        Names of the files that are left out: no record has the digest that they have now.

    Raises:
        ConfigError: no record there, something else in its place, or the code that ran was other than this.
        ResourceError: something else in the place of a receipt.
    """
    if "://" not in license_url:
        raise ConfigError(f"--license {license_url}: not a URL, such as https://spdx.org/licenses/CC-BY-4.0")
    latest = read(results / provenance.LATEST)
    if latest.code != provenance.code_sha256():
        raise ConfigError(
            f"{results / provenance.LATEST}: this run was made by other code than that in {CHECKOUT}; "
            "use the make_crate.py of the checkout that made it"
        )
    earlier = [(read(path), path) for path in (results / provenance.RUNS).glob("*.json")]
    records = {run.run: (run, path) for run, path in [*earlier, (latest, results / provenance.LATEST)]}
    runs = sorted((run for run, _ in records.values()), key=lambda run: run.began, reverse=True)
    made, changed = _results(results, runs)
    _copy_code(results / CODE)

    crate = ROCrate(version="1.1")
    crate.metadata.extra_contexts.append(CONTEXT)
    crate.name = f"Results of Holdfast, run {latest.run}"
    crate.description = f"Embeddings of sequences and what was made of them.{_warning(runs)}"
    crate.license = _work(crate, license_url, "License of the results")
    crate.root_dataset["conformsTo"] = [
        _work(crate, url, name, version=PurePath(url).name) for url, name in PROFILES.items()
    ]
    crate.add_dataset(dest_path=CODE, properties={"name": "Code of Holdfast, with its license"})
    workflow = crate.add_workflow(
        dest_path=f"{CODE}/workflow/Snakefile",
        properties={**_version(latest), "license": _work(crate, "https://spdx.org/licenses/MIT", "MIT License")},
        main=True,
        lang="snakemake",
        lang_version=latest.software.get("snakemake"),
    )
    instruments = {latest.code: workflow}
    for run in runs:
        if run.code not in instruments:
            instruments[run.code] = crate.add(SoftwareApplication(crate, f"#holdfast-{run.code}", _version(run)))
        instrument = instruments[run.code]
        known = instrument.get("softwareRequirements", [])
        instrument["softwareRequirements"] = known + [each for each in _software(crate, run) if each not in known]
        files = [crate.add_file(dest_path=name, properties=told) for name, told in made[run.run].items()]
        action = crate.add_action(instrument, f"#{run.run}", list(_inputs(crate, run)), files, _story(run))
        crate.root_dataset.append_to("mentions", action)
        record = {"name": f"Record of run {run.run}", "encodingFormat": "application/json", "about": action}
        crate.add_file(dest_path=records[run.run][1].relative_to(results), properties=record)
    with atomic_text(results / METADATA) as file:
        file.write(json.dumps(crate.metadata.generate(), indent=2) + "\n")
    return changed


def _work(crate: ROCrate, url: str, name: str, **facts: str) -> ContextEntity:
    return crate.add(ContextEntity(crate, url, {"@type": "CreativeWork", "name": name, **facts}))


def read(path: Path) -> Run:
    """Read a record.

    Raises:
        ConfigError: there is none, or something else.
    """
    try:
        content = documents.keep(Run, documents.read_json(path))
        if not isinstance(content, dict) or content.get("format") != provenance.FORMAT:
            raise DocumentError(f"format is not {provenance.FORMAT}")
        run = documents.fill(Run, {**content, "config": json.dumps(content.get("config"))})
        for name in run.outputs:
            path_of = PurePath(name)
            if not path_of.is_relative_to(run.results) or ".." in path_of.parts or not name.isprintable():
                raise DocumentError(f"outputs: {name} is not the name of a result")
        for name in run.samples:
            if PurePath(name).name != name or name == "..":
                raise DocumentError(f"samples: {name} is not the name of a sample")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: is missing; give the directory of the results of a run that has ended") from None
    except DocumentError as error:
        raise ConfigError(f"{path}: not the record of a run: {error}") from None
    return run


def _results(results: Path, runs: list[Run]) -> tuple[dict[str, dict[str, dict[str, str]]], list[str]]:
    """By run and name what is said of the files that it made, and the names of those changed since; runs latest first.

    Embeddings are not hashed, as in records; the receipt beside them says which run made them.
    """
    made: dict[str, dict[str, dict[str, str]]] = {run.run: {} for run in runs}
    digests: dict[str, str] = {}
    for run in runs:
        for output, sha256 in run.outputs.items():
            name = PurePath(output).relative_to(run.results).as_posix()
            if name not in digests and (results / name).is_file():
                digests[name] = provenance.sha256(results / name)
            if digests.get(name) == sha256:
                made[run.run][name] = _file(results / name) | {"sha256": sha256}
                digests[name] = TOLD
    for sample in sorted({name for run in runs for name in run.samples}):
        outcome, path = receipt.read(results / sample / "receipt.json"), results / sample / "embeddings.h5"
        if outcome and outcome.run in made and path.is_file():
            made[outcome.run][f"{sample}/{path.name}"] = _file(path) | {"identifier": outcome.job}
    return made, sorted(name for name, digest in digests.items() if digest != TOLD)


def _file(path: Path) -> dict[str, str]:
    kind = "application/x-hdf5" if path.suffix == ".h5" else mimetypes.guess_type(path)[0]
    return {
        "name": f"{path.parent.name}/{path.name}",
        "encodingFormat": kind or "application/octet-stream",
        "contentSize": str(path.stat().st_size),
    }


def _inputs(crate: ROCrate, run: Run) -> Iterator[Entity]:
    """What a run read: samples, unless it reused their results, weights, a classifier, the config."""
    for sample, told in run.samples.items():
        if told.state in ("done", "failed") and told.input_sha256:
            url = Path(os.path.abspath(os.path.join(run.directory, told.fasta))).as_uri()
            if url in crate and crate.get(url)["sha256"] != told.input_sha256:
                url += f"#{told.input_sha256}"  # as it was then
            yield crate.add_file(url, properties={"name": f"Sample {sample}", "sha256": told.input_sha256})
    for model, weights in run.models.items():
        if sha256 := weights.weights_sha256:
            name = f"{'Synthetic weights' if weights.synthetic else 'Weights'} of {model}"
            yield _work(crate, f"#{model}-{sha256}", name, identifier=weights.source, sha256=sha256)
    if run.classifier_sha256:
        yield _work(crate, f"#classifier-{run.classifier_sha256}", "Classifier", sha256=run.classifier_sha256)
    config = {"@type": "PropertyValue", "name": "config", "value": run.config}
    yield crate.add(ContextEntity(crate, f"#config-{run.run}", config))


def _software(crate: ROCrate, run: Run) -> list[SoftwareApplication]:
    """What ran with Holdfast, in the process of Snakemake and in pools."""
    found = [*run.software.items(), *(pair for pool in run.pools.values() for pair in pool.software.items())]
    return [
        crate.add(SoftwareApplication(crate, f"#{name}-{version}", {"name": name, "softwareVersion": version}))
        for name, version in sorted(set(found))
        if not name.startswith("holdfast")
    ]


def _version(run: Run) -> dict[str, str]:
    digest = f"The Python package of this version has the digest (SHA-256, see docs/provenance.md) {run.code}."
    return {"name": "Holdfast", "version": run.software.get("holdfast", ""), "description": digest}


def _story(run: Run) -> dict[str, str]:
    """How a run went."""
    story = {"name": f"Run {run.run}", "description": f"{run.command}{_warning([run])}", "startTime": run.began}
    if run.ended:
        story["endTime"] = run.ended
    lacking = [name for name, told in run.samples.items() if told.state in ("failed", "missing")]
    if run.ended and not lacking:
        return story | {"actionStatus": "http://schema.org/CompletedActionStatus"}
    error = f"no result of {', '.join(lacking)}" if lacking else "killed"
    return story | {"actionStatus": "http://schema.org/FailedActionStatus", "error": error}


def _warning(runs: list[Run]) -> str:
    models = sorted({model for run in runs for model in run.synthetic_weights})
    return f" Synthetic weights: {', '.join(models)}; what comes from them means nothing." if models else ""


def _copy_code(target: Path) -> None:
    """Copy what Snakemake needs of this checkout, and the license, over an earlier copy."""
    shutil.rmtree(target, ignore_errors=True)
    for name in ("workflow", "envs"):
        shutil.copytree(CHECKOUT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(CHECKOUT / "LICENSE", target)
