"""Which models embed a sample, and what is asked of them: from the config, once the prepared models are known."""

import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ResourceError
from ..models.registry import KINDS, Output, Prepared, choose_method
from ..spool.job import Manifest, Request, make_manifest, make_request
from .config import Sample

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
SETTINGS = ("chunk_length", "genetic_code", "models", "method", "precision", "store_dtype")


def job_settings(config: Mapping[str, Any], samples: Iterable[Sample]) -> dict[str, Any]:
    """What jobs are made by: some keys of the config, and ``classified``, whether frames are classified."""
    classified = config["classifier"] is not None or any(sample.label for sample in samples)
    return {key: config[key] for key in SETTINGS} | {"classified": classified}


def make_job(settings: Mapping[str, Any], sample: Sample, known: Mapping[str, Prepared]) -> Manifest:
    """The job of a sample.

    Args:
        settings: As :func:`job_settings` gives them.
        sample: The sample.
        known: The prepared models that it uses, or more.

    Raises:
        ConfigError: what is asked of a model it cannot give, or no model fits.
    """
    requests = _requests(settings, sample, known)
    cutting = (settings["chunk_length"], settings["genetic_code"])
    settled = (*cutting, requests, settings["precision"], settings["store_dtype"])
    return make_manifest(sample.sample, sample.kind, sample.fasta, *settled)


def models_of(sample: Sample, models: Iterable[str], known: Mapping[str, Prepared]) -> list[str]:
    """The models that embed a sample: those that its line names, or all whose alphabet fits or is not known yet.

    Raises:
        ConfigError: a model of another alphabet, or none that fits.
    """
    named = sample.models.replace(",", " ").split()
    for name in named:
        if name in known and not known[name].fits(sample.kind):
            raise ConfigError(
                f"sample '{sample.sample}' is of kind {sample.kind}, but {name} embeds {known[name].alphabet} "
                "sequences; name another in the column 'models'"
            )
    fitting = named or [name for name in models if name not in known or known[name].fits(sample.kind)]
    if not fitting:
        wanted = " or ".join(alphabet.name.lower() for alphabet in KINDS[sample.kind])
        raise ConfigError(
            f"sample '{sample.sample}' is of kind {sample.kind}, but no model of the config embeds {wanted} sequences; "
            "add one under 'models'"
        )
    return fitting


def models_in_use(models: Iterable[str], samples: Iterable[Sample], known: Mapping[str, Prepared]) -> list[str]:
    """The models that any of these samples uses, or may use, in the order of the config."""
    models = list(models)
    used = {name for sample in samples for name in models_of(sample, models, known)}
    return [name for name in models if name in used]


def _requests(settings: Mapping[str, Any], sample: Sample, known: Mapping[str, Prepared]) -> dict[str, Request]:
    names = models_of(sample, settings["models"], known)
    requests = {name: make_request(name, known[name], settings["models"][name]) for name in names}
    if sample.kind == "contigs" and settings["classified"]:
        method = choose_method({name: known[name].alphabet for name in names}, settings["method"])
        for name in method.values():
            asked = requests[name]
            outputs = sorted({*asked.outputs, Output(known[name].layers, "mean")})
            requests[name] = replace(asked, outputs=outputs)
    return requests


def check_classifier(classifier: Path, settings: Mapping[str, Any], known: Mapping[str, Prepared]) -> None:
    """Refuse a classifier that was trained with other models than those of the config, before anything is embedded.

    Raises:
        ConfigError: no models for the method.
        WeightsError: another classifier.
    """
    from ..results.classifier import describe_prepared, load_classifier  # numpy and h5py

    method = choose_method({name: prepared.alphabet for name, prepared in known.items()}, settings["method"])
    load_classifier(classifier).require_fit(describe_prepared(known, method), "the config")


def check_room(
    settings: Mapping[str, Any],
    pending: Iterable[Sample],
    sizes: Mapping[str, int],
    known: Mapping[str, Prepared],
    spool: Path,
) -> None:
    """Say how much room a vector a residue takes, and refuse where the disk has not got it.

    A letter of a file is taken for a residue, of a compressed one for two. What is exact is checked by the pool, sample
    by sample.

    Args:
        settings: As :func:`job_settings` gives them.
        pending: The samples to embed.
        sizes: Of their files, bytes.
        known: The models that are prepared.
        spool: Where blocks and embeddings are written.

    Raises:
        ResourceError: there is less room than the files need.
    """
    needed = 0
    item = {"float16": 2, "float32": 4}[settings["store_dtype"]]
    for sample in pending:
        letters = sizes[sample.sample] * (2 if Path(sample.fasta).suffix in COMPRESSED else 1)
        for name in models_of(sample, settings["models"], known):
            entry = settings["models"][name]
            if name in known and "residues" in entry["pooling"]:
                needed += letters * known[name].width * len(entry["layers"]) * item
    if not needed:
        return
    free = shutil.disk_usage(next(parent for parent in (spool, *spool.absolute().parents) if parent.exists())).free
    amount = f"about {needed / 1e9:.1f} GB of vectors of residues, {2 * needed / 1e9:.1f} GB at the peak"
    if 2 * needed > free:
        raise ResourceError(
            f"{spool}: {amount} would be written, {free / 1e9:.1f} GB are free; ask for fewer layers or samples, or "
            "set pool.spool to a larger disk; nothing has been started"
        )
    print(f"holdfast: {amount} will be written, {free / 1e9:.1f} GB are free", file=sys.stderr)
