"""One file, or some sequences, through one model by hand: the same pool as that of the workflow, in a private spool."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HoldfastError, InputError, ResourceError
from ..files import check_outputs, put
from ..models.registry import DESCRIPTION_FILE, KINDS, Prepared, read_prepared, require_known
from ..pool.settings import pool_settings, usable_cpus
from ..spool.job import Receipt, fingerprint, make_manifest, make_request
from ..spool.spool import Spool
from ..spool.state import LAUNCHER_VARIABLE, Identity
from .client import RECORDS, submit_jobs

if TYPE_CHECKING:
    import numpy as np

MODEL = "model"
"""The name of the one model in files that are made by hand."""
SERVE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from holdfast.cli import main; main()"
ENDS_S = 30.0
DEFAULTS: Mapping[str, Any] = {"layers": ["last"], "pooling": ["mean"], "long": None, "max_length": None}


def embed_file(
    fasta: Path,
    model: str,
    output: Path,
    asked: Mapping[str, Any] = DEFAULTS,
    device: str = "auto",
    precision: str = "auto",
    store_dtype: str = "float32",
) -> str:
    """Embed every record of a file and write them in the form that the output's suffix names.

    What became of each record stands beside it, in ``OUT.records.tsv``.

    Args:
        fasta: FASTA or FASTQ file, of the letters that the model knows.
        model: Directory of a prepared model, or a source that :func:`.prepare.prepare` takes.
        output: See :data:`.tables.WRITERS`.
        asked: ``layers``, ``pooling``, ``long`` and ``max_length`` as in the config.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32``, ``fp16`` or ``bf16``.
        store_dtype: ``float16`` or ``float32``.

    Returns:
        What was written, in one line.

    Raises:
        HoldfastError: the file, the model, the device or the form of the output cannot be used.
    """
    from ..results.tables import choose_writer  # numpy and h5py, which light commands do not need

    write = choose_writer(output, asked["pooling"])
    if not fasta.is_file():
        problem = "is a directory or a pipe; give a file" if fasta.exists() else "no such file; check the path"
        raise InputError(problem, fasta)
    table = output.with_suffix(".records.tsv")
    check_outputs([output, table], [fasta])
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".embed-") as directory:
        outcome, known = _embed(fasta, model, Path(directory), asked, device, precision, store_dtype)
        put(Path(outcome.embeddings).with_name(RECORDS), table)
        write(Path(outcome.embeddings), output)
    for warning in outcome.warnings:
        print(f"holdfast: warning: {fasta}: {warning}", file=sys.stderr)
    for row, reason in outcome.failures.items():
        print(f"holdfast: {row} was given up: {reason}", file=sys.stderr)
    rows, records = outcome.counts["rows"] - len(outcome.failures), outcome.counts["records"]
    weights = f"{'synthetic ' * known.synthetic}{known.family}"
    return f"{output}: {rows} embeddings of {records} records, {weights} on {outcome.pool['devices']}"


def embed(
    sequences: Sequence[str],
    model: str,
    layers: str | int | Sequence[str | int] = "last",
    pooling: str | Sequence[str] = "mean",
    long: str | None = None,
    max_length: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Any:
    """Embed sequences with one model.

    Args:
        sequences: Proteins or DNA, of the letters that the model knows; none empty.
        model: Directory of a prepared model, or a source that :func:`.prepare.prepare` takes.
        layers: One or several: numbers from 0 (the embedding of tokens) on, or ``last``.
        pooling: One or several of ``mean`` (as the family defines it), ``max``, ``cls`` and ``residues``.
        long: What becomes of sequences of more than ``max_length`` letters; None for what suits the model.
        max_length: None for the model's own limit.
        device: ``auto`` (the GPUs, or the CPU where there is none), ``cpu`` or ``cuda``.
        precision: ``fp32``, ``fp16``, ``bf16``, or ``auto``: fp16 on GPUs, fp32 on a CPU.

    Returns:
        float32 [sequences, width], in their order, or for ``residues`` a list of [residues, width] each. Where layers
        or poolings were given as sequences: a dict of these by ``LAYER/POOLING``.

    Raises:
        HoldfastError: a sequence, the model or the device cannot be used.
    """
    from ..results.embeddings import read_embeddings  # numpy and h5py, which light commands do not need

    several = not isinstance(layers, str | int) or not isinstance(pooling, str)
    asked = {
        "layers": [layers] if isinstance(layers, str | int) else list(layers),
        "pooling": [pooling] if isinstance(pooling, str) else list(pooling),
        "long": long,
        "max_length": max_length,
    }
    with tempfile.TemporaryDirectory(prefix="holdfast-") as directory:
        fasta = Path(directory) / "sequences.fa"
        fasta.write_text(_as_fasta(sequences))
        outcome, _ = _embed(fasta, model, Path(directory), asked, device, precision, "float32")
        file = read_embeddings(outcome.embeddings)
        fates = Path(outcome.embeddings).with_name(RECORDS).read_text(encoding="utf-8").splitlines()[1:]
    if missing := sorted(set(range(len(sequences))) - set(map(int, file.ids))):
        *_, status, reason = fates[missing[0]].split("\t")
        why = f"{status}, {reason}".replace(f" of line {2 * missing[0] + 2}", "")
        raise HoldfastError(f"sequence {missing[0]} of {len(sequences)} has no embedding: {why}; leave it out")
    found: dict[str, np.ndarray | list[np.ndarray]] = {**file.matrices, **file.residues}
    named = {name.partition("/")[2]: values for name, values in found.items()}
    return named if several else next(iter(named.values()))


def _as_fasta(sequences: Sequence[str]) -> str:
    """Sequences as records that are called by their numbers.

    Raises:
        HoldfastError: one that is no text, or would be no sequence in a file.
    """
    if isinstance(sequences, str):
        raise HoldfastError(f"sequences is one text, {sequences!r:.40}; give a list of sequences")
    for number, sequence in enumerate(sequences):
        if not isinstance(sequence, str) or sequence.lstrip().startswith((">", "#")):
            raise HoldfastError(f"sequence {number} is {sequence!r:.40}; give the letters of each as text")
    return "".join(f">{number}\n{''.join(sequence.split())}\n" for number, sequence in enumerate(sequences))


def prepared_directory(source: str) -> Path:
    """The directory of a prepared model: the source itself, or one in the user's cache, prepared now if need be."""
    if os.path.exists(os.path.join(source, DESCRIPTION_FILE)):
        return Path(source)
    require_known(source)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast" / "models"
    local = (os.path.abspath(source), *fingerprint(source)) if os.path.exists(source) else (source,)
    digest = hashlib.sha256(repr(local).encode()).hexdigest()[:12]
    directory = cache / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', source).strip('-.')[-60:]}-{digest}"
    try:
        read_prepared(directory)
    except HoldfastError:  # not there, or of another version of Holdfast
        print(f"holdfast: preparing {source} in {directory}, once", file=sys.stderr)
        from ..models.prepare import prepare  # torch

        prepare(source, directory)
    return directory


def _embed(
    fasta: Path,
    model: str,
    directory: Path,
    asked: Mapping[str, Any],
    device: str,
    precision: str,
    store_dtype: str,
) -> tuple[Receipt, Prepared]:
    """Have a file embedded by a pool in ``directory``; the receipt, whose embeddings are there, and the model."""
    models = prepared_directory(model)
    known = read_prepared(models)
    sample = re.sub(r"[^A-Za-z0-9_.-]", "_", fasta.name).lstrip("_.-")[:128] or "sample"
    kind = next(kind for kind, alphabets in KINDS.items() if len(alphabets) == 1 and known.fits(kind))
    try:
        request = make_request(MODEL, known, asked)
    except HoldfastError as error:  # which names keys of the config
        raise type(error)(str(error).replace(f"models.{MODEL}.", "").replace(f"models.{MODEL}", model)) from None
    job = make_manifest(sample, kind, str(fasta), 0, 0, {MODEL: request}, precision, store_dtype)
    settings = {"models": {MODEL: str(models)}, "device": device, "precision": precision}
    with _pool(directory, settings | {"threads": usable_cpus()}) as endpoint, _progress(directory):
        (outcome,) = submit_jobs([job], Spool(directory / "spool"), endpoint, [directory / "receipt.json"])
    if outcome.state == "failed":
        raise HoldfastError(outcome.error)
    return outcome, known


@contextmanager
def _progress(directory: Path) -> Iterator[None]:
    """Show how far the job of the pool in ``directory`` is, where somebody looks at the terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from ..spool.view import SpoolWatch
    from .screen import show_job  # rich

    with show_job(SpoolWatch(directory / "spool")):
        yield


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
