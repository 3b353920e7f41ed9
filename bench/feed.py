"""What the CPU side of a pool can deliver: supervisor and readers at work for devices that cost nothing.

Takes the arguments of ``holdfast serve`` and serves a pool whose workers answer every batch at once with vectors of
zeros; everything else is real. A model is its description alone, without weights. Nothing that such a pool writes is a
result.
"""

import sys
from pathlib import Path

import numpy as np
from holdfast.cli import main
from holdfast.models.registry import TOKENIZER_FILE, Prepared, read_prepared
from holdfast.models.synthetic import write_tokenizer
from holdfast.pool import worker
from holdfast.pool.worker import Ready, WorkerSettings

ARCHITECTURES = {"esm2": {"layers": 36, "width": 2560}, "dnabert_s": {"layers": 12, "width": 768}}
_widths: dict[str, int] = {}


def describe(directory: Path) -> dict[str, Path]:
    """Write the models of such a pool."""
    models = {model: directory / model for model in ARCHITECTURES}
    for model, path in models.items():
        path.mkdir(parents=True)
        sizes = ARCHITECTURES[model]
        Prepared(model, dict(sizes), sizes["width"], "synthetic:bench", "", "0" * 64, True, {}).write(path)
    write_tokenizer(4096, models["dnabert_s"] / TOKENIZER_FILE)
    return models


def start(settings: WorkerSettings) -> Ready:
    """Be ready, in place of :func:`worker.start`."""
    _widths.update({model: read_prepared(directory).width for model, directory in settings.models.items()})
    return Ready(0.0, f"nothing, as {settings.name}", "")


def embed(model: str, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, float]:
    """Give zeros, in place of :func:`worker.embed`."""
    return np.zeros((len(lengths), _widths[model]), np.float32), 0.0


if __name__ == "__main__":
    import feed  # by the name that the processes of the pool know it by

    worker.start, worker.embed = feed.start, feed.embed
    main(["serve", *sys.argv[1:]])
