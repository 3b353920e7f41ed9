"""``make bench-gpu``: ESM-2 3B and DNABERT-S on one CUDA device, beside its ceilings and the peers.

Weights are synthetic, of the true shape and size, made on the device. Needs no network; peers that are not installed
are left out. ``--only`` chooses sections.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import machine
import models
import numpy as np
import torch
import workload
from holdfast.documents import own_schema
from holdfast.models.encoder import Encoder
from holdfast.models.esm import Esm
from holdfast.models.registry import open_model
from holdfast.pool.batches import Recipe
from holdfast.pool.blocks import write_block
from holdfast.pool.worker import Worker, WorkerSettings
from report import Report
from timing import seconds

HERE = Path(__file__).parent
NAME = "esm2_t36_3B_UR50D"
SECTIONS = ("speed", "fp8", "dnabert", "idle", "loading", "memory", "samples")
BUDGETS = (8192, 16384, 32768, 65536)
PEER_BUDGET_TOKENS = 16384
RENEWED_AFTER = 40


def main() -> None:
    """Measure the chosen sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--directory", type=Path, help="where 12 GB of weights may lie for the run")
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    report = Report("gpu", machine.describe("cuda"), arguments.results)
    ceilings = machine.ceilings("cuda")
    for name, value in ceilings.items():
        report.add("ceilings", name, value / 1e12, "TFLOP/s" if "matmul" in name else "TB/s")
    architecture = models.esm2_architecture(NAME)
    weights = models.make("esm", architecture, "cuda", torch.float16)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        prepared = models.write_prepared("esm", architecture, weights, directory / "esm2")
        if "speed" in arguments.only:
            measure_speed(report, architecture, weights, prepared, ceilings["matmul"])
        if "fp8" in arguments.only:
            measure_fp8(report, architecture, weights, prepared)
        if "dnabert" in arguments.only:
            measure_dnabert_s(report, prepared, directory)
        if "idle" in arguments.only:
            measure_idle(report, prepared, directory)
        if "loading" in arguments.only:
            measure_loading(report, architecture, weights, prepared, directory)
        del weights
        torch.cuda.empty_cache()
        if "memory" in arguments.only:
            measure_memory(report, prepared)
        if "samples" in arguments.only:
            measure_samples(report, prepared, directory)


def start_worker(directories: dict[str, Path], precision: str = "fp16") -> Worker:
    """A worker in this process, as the pool starts it in its own."""
    pool = own_schema("config.schema.yaml")["properties"]["pool"]["properties"]
    settings = WorkerSettings(
        name="cuda:0",
        models=directories,
        precision=precision,
        threads=pool["threads"]["default"],
        allocator=pool["allocator"]["default"],
        memory_fraction=pool["memory_fraction"]["default"],
        cache_clear_interval=pool["cache_clear_interval"]["default"],
    )
    return Worker(settings)


def embed_all(
    owner: Worker, recipe: Recipe, batches: list[tuple[np.ndarray, np.ndarray]], blocks: Path | None = None
) -> None:
    """Send every batch, one after the other; with ``blocks``, write the block of each to that directory."""
    for number, (ids, lengths) in enumerate(batches):
        residues, arrays = owner.embed(recipe, ids, lengths)
        if blocks is not None:
            write_block(blocks / f"{number}.safetensors", bytes(32 * len(lengths)), residues, arrays)


def enqueue_all(encoder: Encoder, batches: list[tuple[torch.Tensor, list[int]]]) -> None:
    """Send every batch, which is on the device already, and take nothing back."""
    for tokens, lengths in batches:
        models.means(encoder, tokens, lengths)


def means(owner: Worker, recipe: Recipe, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The means that a worker gives for one batch, float32 [sequences, width]."""
    _, arrays = owner.embed(recipe, ids, lengths)
    return arrays[recipe.outputs[0].name]


def cosine(found: np.ndarray, exact: np.ndarray) -> float:
    """The smallest cosine of any sequence."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
    return float(((found * exact).sum(1) / norms).min())


def measure_speed(
    report: Report, architecture: models.Architecture, weights: dict[str, torch.Tensor], prepared: Path, peak: float
) -> None:
    """From host tokens to vectors on the host: ours by budget, the peers, and every path's accuracy."""
    owner, recipe = start_worker({"esm2": prepared}), models.recipe(prepared)
    layers, width = int(architecture["layers"]), int(architecture["width"])
    exact_model = Esm({name: tensor.float() for name, tensor in weights.items()}, models.describe("esm", architecture))
    peers = load_peers(architecture, weights)
    for label, lengths in (("168 tokens", workload.uniform(2**17)), ("32-1024 tokens", workload.mixed(2**17))):
        ids, flops, total = workload.proteins(lengths), workload.flops(lengths, layers, width), sum(lengths)
        few = 60
        checked = int(np.sum(lengths[:few]))
        exact = models.means(exact_model, torch.from_numpy(ids[:checked]), lengths[:few]).cpu().numpy()
        close = cosine(means(owner, recipe, ids[:checked], np.array(lengths[:few], np.int32)), exact)
        report.add("speed", f"{label}: holdfast, smallest cosine to fp32", close)
        ours = float("inf")
        for budget in BUDGETS:
            batches = workload.batches(ids, lengths, budget)
            taken = seconds(partial(embed_all, owner, recipe, batches), 3, 1)
            report.add("speed", f"{label}: holdfast, {budget} a batch, tokens/s", total / taken)
            report.add("speed", f"{label}: holdfast, {budget} a batch, share of matmul", flops / taken / peak)
            ours = min(ours, taken)
        if label == "168 tokens":
            batches = 8 * workload.batches(ids, lengths, PEER_BUDGET_TOKENS)
            taken = seconds(partial(embed_all, owner, recipe, batches), 1, 0)
            report.add("speed", f"{label}: holdfast, a million tokens without a pause, tokens/s", 8 * total / taken)
        for name, (embed, forward) in peers.items():
            order = np.argsort(lengths, kind="stable")
            cases = {"in order": (ids, lengths)}
            if label != "168 tokens":
                cases["sorted"] = workload.ordered(ids, lengths, order)
            for case, (case_ids, case_lengths) in cases.items():
                run = partial(embed, forward, case_ids, case_lengths, PEER_BUDGET_TOKENS, "cuda")
                taken = seconds(run, 2, 1)
                report.add("speed", f"{label}: {name}, {case}, tokens/s", total / taken)
                report.add("speed", f"{label}: holdfast faster than {name}, {case}, times", taken / ours)
            near = cosine(embed(forward, ids[:checked], lengths[:few], PEER_BUDGET_TOKENS, "cuda"), exact)
            report.add("speed", f"{label}: {name}, smallest cosine to fp32", near)


def measure_fp8(
    report: Report, architecture: models.Architecture, weights: dict[str, torch.Tensor], prepared: Path
) -> None:
    """What fp8 matrix products would buy, and what they cost in accuracy; both models on the device, no copies."""
    import fp8

    lengths = workload.uniform(PEER_BUDGET_TOKENS)
    tokens = torch.from_numpy(workload.proteins(lengths)).cuda()
    known = models.describe("esm", architecture)
    exact = Esm({name: tensor.float() for name, tensor in weights.items()}, known)
    wanted = models.means(exact, tokens, lengths).cpu().numpy()
    del exact
    torch.cuda.empty_cache()
    times = {}
    for name, model in (("fp16", open_model(prepared, "cuda")), ("fp8", fp8.Fp8(weights, known))):
        times[name] = seconds(partial(models.means, model, tokens, lengths), 8, 3)
        report.add("fp8", f"{name}, tokens/s", len(tokens) / times[name])
        found = models.means(model, tokens, lengths).cpu().numpy()
        report.add("fp8", f"{name}, smallest cosine to fp32", cosine(found, wanted))
    report.add("fp8", "fp8 faster than fp16, times", times["fp16"] / times["fp8"])


def load_peers(architecture: models.Architecture, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The peers that are installed."""
    try:
        import peers
    except ImportError as error:
        print(f"no peers: {error}")
        return {}
    return {
        "fair-esm .half()": (peers.embed, peers.fair_esm(architecture, weights)),
        "transformers SDPA fp16": (peers.embed, peers.transformers_sdpa(architecture, weights)),
    }


def measure_dnabert_s(report: Report, esm2_directory: Path, directory: Path) -> None:
    """DNABERT-S on the nucleotides of the frames whose proteins ESM-2 embeds: 500 bp are 100-119 tokens."""
    architecture = models.dnabert_s_architecture()
    weights = models.make("mosaic_bert", architecture, "cuda", torch.float32)
    prepared = models.write_prepared("mosaic_bert", architecture, weights, directory / "dnabert_s")
    recipe = models.recipe(prepared)
    owner = start_worker({"esm2": esm2_directory, "dnabert_s": prepared})
    frames = 1536
    lengths = workload.mixed(frames * 110, 100, 119)[:frames]
    ids = workload.dna(lengths)
    budget = 16384
    proteins = workload.uniform(frames * 168)
    protein_batches = workload.batches(workload.proteins(proteins), proteins, budget)
    protein_s = seconds(partial(embed_all, owner, models.recipe(esm2_directory), protein_batches), 2, 1)
    batches = workload.batches(ids, lengths, budget)
    taken = seconds(partial(embed_all, owner, recipe, batches), 5, 2)
    report.add("dnabert", "frames/s", frames / taken)
    report.add("dnabert", "time beside ESM-2 3B, share", taken / protein_s)
    exact = start_worker({"dnabert_s": prepared}, "fp32")
    found, wanted = (means(w, recipe, *batches[0]) for w in (owner, exact))
    report.add("dnabert", "smallest cosine to fp32", cosine(found, wanted))


def measure_idle(report: Report, prepared: Path, directory: Path) -> None:
    """Share of time the device waits between batches: through a worker against batches enqueued without a pause.

    Through a worker as in the pool, :func:`holdfast.pool.worker.embed`: the time includes the writing of each block, to
    a directory beside the weights.
    """
    owner, recipe = start_worker({"esm2": prepared}), models.recipe(prepared)
    _, encoder = owner.models[recipe.weights_sha256]
    blocks = directory / "blocks"
    blocks.mkdir()
    lengths = workload.uniform(2**18)
    ids = workload.proteins(lengths)
    for budget in (16384, 65536):
        batches = workload.batches(ids, lengths, budget)
        on_device = [(torch.from_numpy(tokens).cuda(), counts.tolist()) for tokens, counts in batches]
        through = seconds(partial(embed_all, owner, recipe, batches, blocks), 3, 1)
        without = seconds(partial(enqueue_all, encoder, on_device), 3, 1)
        report.add("idle", f"{budget} a batch, share of time", 1 - without / through)


def measure_loading(
    report: Report, architecture: models.Architecture, weights: dict[str, torch.Tensor], prepared: Path, directory: Path
) -> None:
    """Prepared weights and fair-esm's own loader, each in a new process, from a warm page cache."""
    report.add("loading", "page cache, one thread, GB/s", machine.page_cache(prepared / "model.safetensors") / 1e9)
    published = models.write_fair_esm(architecture, weights, directory / f"{NAME}.pt")
    machine.page_cache(published)
    found = {}
    for loader, path, state in (
        ("holdfast", prepared, "cold"),
        ("holdfast", prepared, "warm"),
        ("fair-esm", published, "warm"),
        ("fair-esm", published, "cold"),
    ):
        if state == "cold":
            machine.forget(weights_file(path))
        command = [sys.executable, HERE / "loading.py", loader, path, "cuda"]
        result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if result.returncode:
            print(f"{loader}: {result.stderr[-400:]}")
            continue
        found[loader, state] = json.loads(result.stdout.splitlines()[-1])
        for name, value in found[loader, state].items():
            report.add("loading", f"{loader}, {state} page cache, {name}", value)
    published.unlink()
    if ("fair-esm", "warm") in found:
        ratio = found["fair-esm", "warm"]["load_s"] / found["holdfast", "warm"]["load_s"]
        report.add("loading", "holdfast faster than fair-esm, times", ratio)


def weights_file(path: Path) -> Path:
    """The file that holds the weights of a source."""
    return path / "model.safetensors" if path.is_dir() else path


def measure_memory(report: Report, prepared: Path) -> None:
    """A long run of mixed lengths with and without expandable segments, and with a cache that is cleared."""
    for allocator, interval in (
        ("expandable_segments:True", 0),
        ("expandable_segments:False", 0),
        ("expandable_segments:True", 10),
        ("expandable_segments:False", 10),
    ):
        command = [sys.executable, HERE / "memory.py", prepared, "100", "32768", str(interval)]
        environment = os.environ | {"PYTORCH_ALLOC_CONF": allocator}
        result = subprocess.run([str(p) for p in command], capture_output=True, text=True, env=environment)
        if result.returncode:
            print(result.stderr[-600:])
            continue
        for name, value in json.loads(result.stdout.splitlines()[-1]).items():
            report.add("memory", f"{allocator}, clear every {interval or 'never'}: {name}", value)


def measure_samples(report: Report, prepared: Path, directory: Path) -> None:
    """One sample of 10,000 proteins against 1,000 of 10, through a pool; and what a tiny job costs."""
    import samples

    for budget in (32768, 16384):
        settings: dict[str, Any] = {"device": "cuda", "gpu": 1, "tokens_per_batch": budget}
        with samples.serving(directory / f"pool{budget}", {"esm2": prepared}, **settings) as client:
            report.add("samples", f"{budget} a batch: start of the pool to ready, s", client.start_s)
            report.add("samples", f"{budget} a batch: of that, load, s", client.load_s)
            client.run(1, 500)
            large, (receipt,) = client.run(1, 10_000)
            many, receipts = client.run(1_000, 10)
            report.add("samples", f"{budget} a batch: 1 of 10,000 proteins, s", large)
            report.add("samples", f"{budget} a batch: 1 of 10,000, device, s", receipt.seconds["device_s"])
            report.add("samples", f"{budget} a batch: 1,000 of 10 proteins, s", many)
            report.add("samples", f"{budget} a batch: 1,000 of 10 against 1 of 10,000, times", many / large)
            work = sum(receipt.seconds["device_s"] for receipt in receipts)
            report.add("samples", f"{budget} a batch: 1,000 of 10, device, s", work)
            report.add("samples", f"{budget} a batch: 1 of 10,000, tokens/s", 10_000 * 168 / large)
            report.add("samples", f"{budget} a batch: tiny job, beside the work, ms", client.beside() * 1000)
    with samples.serving(
        directory / "renewed", {"esm2": prepared}, max_tasks_per_worker=RENEWED_AFTER, **settings
    ) as client:
        client.run(1, 500)
        renewed, _ = client.run(1, 10_000)
    name = f"{budget} a batch: 1 of 10,000 proteins, the worker renewed every {RENEWED_AFTER} batches, s"
    report.add("samples", name, renewed)


if __name__ == "__main__":
    main()
