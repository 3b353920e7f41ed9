"""One file through one model in this process: the pool's steps without pool, spool or Snakemake."""

import os
import re
import tempfile
from pathlib import Path

import numpy as np

from . import manifest, prepared, reader, worker
from .batching import Queue
from .blocks import BlockStore
from .errors import ResourceError, WeightsError
from .models import KINDS
from .prepared import Prepared
from .sequences import Sequences
from .settings import PoolSettings

KIND_OF_MODEL = {kind.models[0]: name for name, kind in KINDS.items() if len(kind.models) == 1}


def embed_file(
    fasta: Path, model: str, directory: Path, output: Path, device: str, precision: str
) -> tuple[dict[str, int], Prepared]:
    """Embed every record of a file and write an embeddings file, in float32.

    Args:
        fasta: FASTA or FASTQ file, proteins for ``esm2`` and DNA for ``dnabert_s``.
        model: ``esm2`` or ``dnabert_s``.
        directory: The prepared model.
        output: The embeddings file, HDF5.
        device: ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32`` or ``fp16``.

    Returns:
        Counts of records and rows, and the model's description.

    Raises:
        HoldfastError: the file, the model or the device cannot be used.
    """
    description = prepared.read(directory)
    if description.model != model:
        raise WeightsError(f"{directory}: holds {description.model}, not {model}")
    sample = re.sub(r"[^A-Za-z0-9_.-]", "_", fasta.name).lstrip("_.-")[:128] or "sample"
    job = manifest.make(
        sample, KIND_OF_MODEL[model], str(fasta), 0, {model: description.weights_sha256}, precision, "float32"
    )
    defaults = PoolSettings(models={model: str(directory)})
    if not output.absolute().parent.is_dir():
        raise ResourceError(f"{output.parent}: no such directory, make it first")
    with (
        tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".embed-") as work,
        tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".embed-") as blocks,
    ):
        counts, _ = reader.read_sample(job, Path(work), {model: directory})
        sequences = Sequences(Path(work), model)
        settings = worker.WorkerSettings(
            name="cuda:0" if device == "cuda" else "cpu:0",
            models={model: directory},
            precision=precision,
            threads=os.cpu_count() or 1,
            allocator=defaults.allocator,
            memory_fraction=defaults.memory_fraction,
            cache_clear_interval=defaults.cache_clear_interval,
        )
        owner = worker.Worker(settings)
        store = BlockStore(Path(blocks), description.width, "block")
        queue = Queue(model, defaults.tokens_per_batch)
        queue.add(0, np.arange(len(sequences.lengths)), sequences.lengths)
        while batch := queue.next(partial=True):
            numbers = batch.sequences.tolist()
            tokens = np.concatenate([sequences.tokens(number) for number in numbers])
            vectors = owner.embed(model, tokens, batch.lengths)
            store.add([sequences.digests[number] for number in numbers], vectors, uses=[1] * len(numbers))
        places = {model: store.locate(sequences.digests)}
        report = owner.ready
        reader.finish_sample(job, Path(work), {model: description}, places, {}, report.precision, report.software)
        os.replace(Path(work) / reader.EMBEDDINGS_FILE, output)
    return counts, description
