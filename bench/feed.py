"""What the CPU side of a pool can deliver: supervisor and readers at work for devices that cost nothing.

Takes the arguments of ``holdfast serve`` and serves a pool whose workers write a block of zeros for every batch, at
once, or at the speed of a GPU where FEED_TOKENS_PER_S says one; everything else is real. A model is its description
alone, without weights. Nothing that such a pool writes is a result.
"""

import os
import sys
import time
from pathlib import Path

import models
import numpy as np
from holdfast.cli import main
from holdfast.models.registry import TOKENIZER_FILE, WEIGHTS_FILE, Prepared, read_prepared
from holdfast.models.synthetic import write_tokenizer
from holdfast.pool import worker
from holdfast.pool.batches import Recipe
from holdfast.pool.blocks import write_block
from holdfast.pool.worker import Ready, WorkerSettings
from safetensors.numpy import save_file

TOKENS_PER_S = float(os.environ.get("FEED_TOKENS_PER_S", "inf"))
"""Of a protein model; a nucleotide model has :data:`NUCLEOTIDE_TIMES` that, as DNABERT-S beside ESM-2 3B."""
NUCLEOTIDE_TIMES = 12
_known: dict[str, Prepared] = {}


def describe(directory: Path) -> dict[str, Path]:
    """Write the models of such a pool."""
    described = {
        "esm2": models.describe("esm", models.esm2_architecture("esm2_t36_3B_UR50D")),
        "dnabert_s": models.describe("mosaic_bert", models.dnabert_s_architecture()),
    }
    directories = {model: directory / model for model in described}
    for model, path in directories.items():
        write_description(described[model], path)
    write_tokenizer(4096, directories["dnabert_s"] / TOKENIZER_FILE)
    return directories


def write_description(described: Prepared, directory: Path) -> None:
    """Write a model that is nothing but its description; of weights there is one number, for the header."""
    directory.mkdir(parents=True)
    described.write(directory)
    save_file({"none": np.zeros(1, np.float32)}, directory / WEIGHTS_FILE)


def start(settings: WorkerSettings) -> Ready:
    """Be ready, in place of :func:`worker.start`."""
    _known.update({known.weights_sha256: known for known in map(read_prepared, settings.models.values())})
    return Ready(0.0, f"nothing, as {settings.name}", "")


def embed(recipe: Recipe, tokens: np.ndarray, lengths: np.ndarray, digests: bytes, path: Path) -> float:
    """Write zeros, in place of :func:`worker.embed`; the time that it takes is the device's."""
    began, known = time.perf_counter(), _known[recipe.weights_sha256]
    device_s = len(tokens) / TOKENS_PER_S / (1 if known.alphabet == "protein" else NUCLEOTIDE_TIMES)
    residues = lengths.astype(np.int64) - known.around
    rows = {output.name: residues.sum() if output.pooling == "residues" else len(lengths) for output in recipe.outputs}
    write_block(path, digests, residues, {name: np.zeros((n, known.width), np.float32) for name, n in rows.items()})
    time.sleep(max(0.0, began + device_s - time.perf_counter()))
    return device_s


if __name__ == "__main__":
    import feed  # by the name that the processes of the pool know it by

    worker.start, worker.embed = feed.start, feed.embed
    main(["serve", *sys.argv[1:]])
