"""The torch profiler's trace of batches that go through a worker, for chrome://tracing or ui.perfetto.dev.

Run as ``PYTHONPATH=workflow/scripts python bench/trace.py PREPARED TRACE.json [--device cuda]``, with a model that
``holdfast prepare`` made. The profiler slows the host, so shares of time are the device's, not the pool's.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import workload
from holdfast.errors import guarded
from holdfast.models.registry import Output, read_prepared
from holdfast.pool.batches import Recipe
from holdfast.pool.settings import pool_settings
from holdfast.pool.worker import Worker, WorkerSettings

BATCHES = 2


def trace(owner: Worker, recipe: Recipe, batches: list[tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Save the trace of some batches, after one to warm up."""
    owner.embed(recipe, *batches[0])
    with torch.profiler.profile() as profiled:
        for ids, lengths in batches:
            owner.embed(recipe, ids, lengths)
    profiled.export_chrome_trace(str(path))


def main() -> None:
    """Trace a worker at work on sequences of random letters."""
    defaults = pool_settings({"models": {"esm2": "."}}, "bench")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens-per-batch", type=int, default=defaults.tokens_per_batch)
    arguments = parser.parse_args()
    if arguments.tokens_per_batch < workload.UNIFORM_TOKENS:
        parser.error(f"--tokens-per-batch must be at least {workload.UNIFORM_TOKENS}")
    prepared = read_prepared(arguments.prepared)
    settings = WorkerSettings(
        name=f"{arguments.device}:0",
        models={prepared.family: arguments.prepared},
        precision="fp16" if arguments.device == "cuda" else "fp32",
        threads=torch.get_num_threads(),
        allocator=defaults.allocator,
        memory_fraction=defaults.memory_fraction,
        cache_clear_interval=0,
    )
    lengths = workload.uniform(arguments.tokens_per_batch) * BATCHES
    ids = workload.proteins(lengths) if prepared.is_protein else workload.dna(lengths)
    batches = workload.batches(ids, lengths, arguments.tokens_per_batch)
    recipe = Recipe(prepared.weights_sha256, (Output(prepared.layers, "mean"),), None, "")
    trace(Worker(settings), recipe, batches, arguments.trace)
    print(f"{arguments.trace}: {len(batches)} batches of {prepared.family} on {arguments.device}")


if __name__ == "__main__":
    guarded(main)
