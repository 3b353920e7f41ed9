"""One file, or some sequences, through one model by hand: the same pool as that of the workflow, in a private spool."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HoldfastError, ResourceError
from ..models.registry import DESCRIPTION_FILE, KINDS, Prepared, read_prepared
from ..pool.settings import pool_settings
from ..spool.job import Receipt, fingerprint, make_manifest
from ..spool.spool import Spool
from ..spool.state import LAUNCHER_VARIABLE, Identity
from .client import submit_jobs

if TYPE_CHECKING:
    import numpy as np

KIND_OF_MODEL = {kind.models[0]: name for name, kind in KINDS.items() if len(kind.models) == 1}
SERVE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from holdfast.cli import main; main()"
ENDS_S = 30.0


def embed_file(fasta: Path, model: str, output: Path, device: str, precision: str, store_dtype: str) -> str:
    """Embed every record of a file and write an embeddings file.

    Args:
        fasta: FASTA or FASTQ file, of the letters that the model knows.
        model: Directory of a prepared model, or a source that :func:`.prepare.prepare` takes.
        output: The embeddings file, HDF5.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32`` or ``fp16``.
        store_dtype: ``float16`` or ``float32``.

    Returns:
        What was written, in one line.

    Raises:
        HoldfastError: the file, the model or the device cannot be used.
    """
    place = output.absolute().parent
    if not place.is_dir():
        raise ResourceError(f"{output.parent}: no such directory, make it first")
    with tempfile.TemporaryDirectory(dir=place, prefix=".embed-") as directory:
        outcome, known = _embed(fasta, model, Path(directory), device, precision, store_dtype)
        os.replace(outcome.embeddings, output)
    for row, reason in outcome.failures.items():
        print(f"holdfast: {row} was given up: {reason}", file=sys.stderr)
    rows, records = outcome.counts["rows"] - len(outcome.failures), outcome.counts["records"]
    weights = f"{'synthetic ' * known.synthetic}{known.model}"
    return f"{output}: {rows} embeddings of {records} records, {weights} on {outcome.pool['devices']}"


def embed(sequences: Sequence[str], model: str, device: str = "auto", precision: str = "auto") -> "np.ndarray":
    """Embed sequences with one model: the mean over each after the last layer, as the family defines it.

    Args:
        sequences: Proteins or DNA, of the letters that the model knows; none empty.
        model: Directory of a prepared model, or a source that :func:`.prepare.prepare` takes.
        device: ``auto`` (the GPUs, or the CPU where there is none), ``cpu`` or ``cuda``.
        precision: ``fp32``, ``fp16``, or ``auto``: fp16 on GPUs, fp32 on a CPU.

    Returns:
        float32 [sequences, width], in their order.

    Raises:
        HoldfastError: a sequence, the model or the device cannot be used.
    """
    from ..results.embeddings import read_embeddings  # numpy and h5py, which light commands do not need

    with tempfile.TemporaryDirectory(prefix="holdfast-") as directory:
        fasta = Path(directory) / "sequences.fa"
        fasta.write_text("".join(f">{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
        outcome, known = _embed(fasta, model, Path(directory), device, precision, "float32")
        file = read_embeddings(outcome.embeddings)
    if missing := sorted(set(range(len(sequences))) - set(map(int, file.ids))):
        status = file.records.status[missing[0]]
        raise HoldfastError(f"sequence {missing[0]} of {len(sequences)} has no embedding: {status}; leave it out")
    return file.matrices[known.model]


def prepared_directory(source: str) -> Path:
    """The directory of a prepared model: the source itself, or one in the user's cache, prepared now if need be."""
    if os.path.exists(os.path.join(source, DESCRIPTION_FILE)):
        return Path(source)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast" / "models"
    local = (os.path.abspath(source), *fingerprint(source)) if os.path.exists(source) else (source,)
    digest = hashlib.sha256(repr(local).encode()).hexdigest()[:12]
    directory = cache / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', source).strip('-.')[-60:]}-{digest}"
    if not (directory / DESCRIPTION_FILE).exists():
        print(f"holdfast: preparing {source} in {directory}, once", file=sys.stderr)
        from ..models.prepare import prepare  # torch

        prepare(source, directory)
    return directory


def _embed(
    fasta: Path, model: str, directory: Path, device: str, precision: str, store_dtype: str
) -> tuple[Receipt, Prepared]:
    """Have a file embedded by a pool in ``directory``; the receipt, whose embeddings are there, and the model."""
    models = prepared_directory(model)
    known = read_prepared(models)
    sample = re.sub(r"[^A-Za-z0-9_.-]", "_", fasta.name).lstrip("_.-")[:128] or "sample"
    digests = {known.model: known.weights_sha256}
    job = make_manifest(sample, KIND_OF_MODEL[known.model], str(fasta), 0, digests, precision, store_dtype)
    settings = {"models": {known.model: str(models)}, "device": device, "precision": precision}
    with _pool(directory, settings | {"threads": os.cpu_count() or 1}) as endpoint:
        (outcome,) = submit_jobs([job], Spool(directory / "spool"), endpoint, [directory / "receipt.json"])
    if outcome.state == "failed":
        raise HoldfastError(outcome.error)
    return outcome, known


@contextmanager
def _pool(directory: Path, settings: dict[str, object]) -> Iterator[Path]:
    """Serve a pool in a process of its own, which ends with this block or with this process; its endpoint file."""
    config, endpoint = directory / "pool.yaml", directory / "endpoint.json"
    pool_settings(settings, "embed").write(config)
    arguments = ["serve", "--config", config, "--spool", directory / "spool", "--endpoint", endpoint]
    with open(directory / "pool.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(Path(__file__).parents[2]), *map(str, arguments)],
            env={**os.environ, LAUNCHER_VARIABLE: json.dumps(asdict(Identity.own()))},
            stdout=log,
            stderr=log,
        )
    try:
        while not endpoint.exists():
            if process.poll() is not None:
                raise ResourceError(f"the pool did not start: {(directory / 'pool.log').read_text().strip()[-500:]}")
            time.sleep(0.01)
        yield endpoint
    finally:
        endpoint.unlink(missing_ok=True)
        try:
            process.wait(ENDS_S)
        finally:
            process.kill()
            process.wait()
