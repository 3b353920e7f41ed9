"""Which samples are pending: what earlier runs have left, compared by content with what is asked for now."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, HoldfastError
from ..models.published import changed_since, configuration_sha256, digest_files, weights_files
from ..models.registry import DESCRIPTION_FILE, WEIGHTS_FILE, Prepared, read_prepared
from ..spool.job import Receipt, fingerprint, read_receipt
from .config import Sample
from .digests import digest_inputs
from .requests import job_settings, make_job, models_of

Place = Callable[[str], str]


def directory_of(source: str, model: str, place: Place = str) -> str:
    """Where the prepared weights of a model are: ``source`` itself if it is prepared, otherwise below ``resources``."""
    return source if os.path.exists(os.path.join(source, DESCRIPTION_FILE)) else place(f"resources/{model}")


def find_pending(
    config: Mapping[str, Any], samples: Sequence[Sample], known: Mapping[str, Prepared], place: Place = str
) -> dict[str, int]:
    """Samples whose receipt is absent, failed or made from something else, or whose embeddings are gone.

    A file of the size and time that its receipt names is believed to be the same; any other is read, and if its content
    is the same, the result stands and the receipt gets the new size and time. A sequence file that is gone has not
    changed: it may be a temporary file of the workflow around. A file at a URL is known by that, and by the size and
    time that its storage reports; if those differ, its sample is pending. One that cannot be reached has not changed.

    Args:
        config: The checked config.
        samples: The samples.
        known: The models that are prepared, as far as they are what the config says.
        place: Where a path of the workflow is.

    Returns:
        Size of the file of each, in bytes; 0 if it is not there yet.

    Raises:
        ConfigError: no model for a sample, or more asked of one than it can give.
    """
    settings = job_settings(config, samples)
    outcomes: dict[str, Receipt] = {}
    doubtful: dict[str, str] = {}
    for sample in samples:
        outcome = _done(sample.sample, place)
        if outcome is not None and known.keys() >= set(models_of(sample, config["models"], known)):
            known_by = (outcome.url, outcome.size_bytes, outcome.mtime_ns)
            if sample.url and known_by != (sample.url, sample.size_bytes, sample.mtime_ns) and not sample.trouble:
                continue  # to be fetched; if the content is the same, the spool has the result
            outcomes[sample.sample] = outcome
            found = fingerprint(sample.fasta)
            if not sample.url and found[0] >= 0 and found != known_by[1:]:
                doubtful[sample.sample] = sample.fasta
    digests = digest_inputs(doubtful)
    pending = {}
    for sample in samples:
        name = sample.sample
        outcome = outcomes.get(name)
        if outcome is not None:
            job = make_job(settings, sample, known, digests.get(name, outcome.input_sha256))
            if outcome.job == job.job:
                if name in doubtful:
                    _renew(outcome, sample.fasta, Path(place(f"results/{name}/receipt.json")))
                continue
        elif known.keys() >= set(models_of(sample, config["models"], known)):
            make_job(settings, sample, known, "")  # so that what is asked of models is checked now
        pending[name] = max(0, sample.size_bytes if sample.url else fingerprint(sample.fasta)[0])
    return pending


def _renew(outcome: Receipt, fasta: str, path: Path) -> None:
    """Note size and time of a file whose content is the same; the receipt's own time stays, for Snakemake."""
    size_bytes, mtime_ns = fingerprint(fasta)
    with suppress(OSError):  # of somebody else's: the file is read again next time
        status = path.stat()
        replace(outcome, url="", size_bytes=size_bytes, mtime_ns=mtime_ns).write(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def known_models(config: Mapping[str, Any], place: Place = str) -> dict[str, Prepared]:
    """The models that are prepared already, and will not be prepared anew."""
    found = {model: _known(entry, model, place) for model, entry in config["models"].items()}
    return {model: prepared for model, prepared in found.items() if prepared is not None}


def _known(entry: Mapping[str, Any], model: str, place: Place) -> Prepared | None:
    """The prepared model that will be used; None if it is still to be prepared."""
    source = entry["weights"]
    directory = directory_of(source, model, place)
    try:
        description = read_prepared(directory)
    except HoldfastError:
        return None
    if (entry["sha256"] or description.source_sha256) != description.source_sha256:
        return None
    if directory != source and (description.source != source or not _is_current(Path(source), description, directory)):
        return None
    return description


def _is_current(source: Path, description: Prepared, directory: str) -> bool:
    """Whether a prepared model was made from what its source holds now.

    Files of a later time are read; where they hold the same, the prepared ones get a later time, for Snakemake to see.
    """
    prepared = Path(directory, DESCRIPTION_FILE)
    if not source.exists() or not changed_since(source, prepared.stat().st_mtime):
        return True
    files = [source] if source.is_file() else weights_files(source) or []
    try:
        found = digest_files(files, None), configuration_sha256(source)
    except (HoldfastError, OSError):
        return False  # preparing it will say why
    if found != (description.source_sha256, description.configuration_sha256):
        return False
    with suppress(OSError):
        for path in (prepared, prepared.with_name(WEIGHTS_FILE)):
            os.utime(path)
    return True


def _done(sample: str, place: Place) -> Receipt | None:
    """The receipt of a sample that was done and whose embeddings are still there."""
    try:
        outcome = read_receipt(place(f"results/{sample}/receipt.json"))
    except HoldfastError:
        return None
    if outcome is None or outcome.state != "done":
        return None
    kept = (place(f"results/{sample}/embeddings.h5"), outcome.embeddings)
    return outcome if any(map(os.path.exists, kept)) else None


def check_prepared(config: Mapping[str, Any]) -> None:
    """Check those models that the config names as prepared directories, which no rule will look at.

    Raises:
        ConfigError: a directory that was made from another checkpoint than ``sha256`` says.
        WeightsError: a directory that this version cannot read.
    """
    for model, entry in config["models"].items():
        if directory_of(entry["weights"], model) == entry["weights"]:
            description = read_prepared(entry["weights"])
            if (entry["sha256"] or description.source_sha256) != description.source_sha256:
                raise ConfigError(
                    f"models.{model}.sha256: {entry['weights']} was made from a checkpoint with digest "
                    f"{description.source_sha256}, not {entry['sha256']}; prepare the right one, or correct the digest"
                )
