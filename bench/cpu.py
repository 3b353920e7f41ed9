"""``make bench``: the CPU's figures, each beside the ceiling or the peer measured in the same run.

ESM-2 35M in fp32 on two threads, frames of a genome, samples through a pool, and thousands of samples through the
workflow. Weights are synthetic. A machine that
does other work meanwhile gives figures that mean little; the spread of the ceiling is printed for that reason.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import machine
import many
import models
import numpy as np
import peers
import samples
import torch
import workload
from holdfast import esm2, frames, weights
from holdfast.training import Network
from report import Report
from timing import seconds

NAME, SMALL_NAME = "esm2_t12_35M_UR50D", "esm2_t6_8M_UR50D"
SECTIONS = ("speed", "frames", "samples", "many")
THREADS = 2
GENOME_BP = 20_000_000
MANY = {"proteins": (100, 500, 2000), "contigs": (100, 500)}


def main() -> None:
    """Measure the chosen sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    report = Report("cpu", machine.describe("cpu"), arguments.results)
    ceilings = machine.ceilings("cpu")
    for name, value in ceilings.items():
        report.add("ceilings", name, value / 1e9, "GFLOP/s" if "matmul" in name else "GB/s")
    report.add("ceilings", "other load, processes", os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as name:
        if "speed" in arguments.only:
            measure_speed(report, max(ceilings["matmul"], ceilings["matmul_sustained"]))
        if "frames" in arguments.only:
            measure_frames(report, Path(name))
        if "samples" in arguments.only:
            measure_samples(report, Path(name))
        if "many" in arguments.only:
            measure_many(report, Path(name))
    print(report.path)


def measure_speed(report: Report, peak: float) -> None:
    """ESM-2 35M at one length and at mixed lengths, ours and the peers."""
    architecture = models.esm2_architecture(NAME)
    weights = models.make("esm2", architecture, "cpu", torch.float32)
    ours = esm2.Esm2(weights, architecture)
    forwards = {
        "fair-esm": peers.fair_esm(architecture, weights),
        "transformers SDPA": peers.transformers_sdpa(architecture, weights),
    }
    layers, width = int(architecture["layers"]), int(architecture["width"])
    for label, lengths in (("168 tokens", workload.uniform(8192)), ("32-1024 tokens", workload.mixed(8192))):
        ids = workload.proteins(lengths)
        tokens = torch.from_numpy(ids)
        own = seconds(partial(ours.embed, tokens, lengths), 3, 1)
        report.add("speed", f"{label}: holdfast, tokens/s", len(ids) / own)
        report.add("speed", f"{label}: holdfast, share of sgemm", workload.flops(lengths, layers, width) / own / peak)
        vectors = ours.embed(tokens, lengths).numpy()
        for name, forward in forwards.items():
            run = partial(peers.embed, forward, ids, lengths, 8192, "cpu")
            difference = float(np.abs(vectors - run()).max())
            taken = seconds(run, 1, 0)
            report.add("speed", f"{label}: {name}, tokens/s", len(ids) / taken)
            report.add("speed", f"{label}: holdfast faster than {name}, times", taken / own)
            report.add("speed", f"{label}: largest difference to {name}", difference)


def measure_frames(report: Report, directory: Path) -> None:
    """Chunks and frames of a random genome on one core; beside them seqkit's translation, if it is installed."""
    letters = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(3).integers(0, 4, GENOME_BP)]
    genome = directory / "genome.fna"
    genome.write_bytes(b">genome\n" + letters.tobytes() + b"\n")
    taken = seconds(lambda: frames.write(genome, 500, directory / "n.fna", directory / "p.faa"), 2, 0)
    report.add("frames", "chunks and frames, written, Mbp/s", GENOME_BP / taken / 1e6)
    seqkit = shutil.which("seqkit")
    if seqkit is None:
        report.add("frames", "seqkit translate -j 1, Mbp/s", "not measured")
        return
    command = [seqkit, "translate", "-j", "1", "-f", "6", str(genome), "-o", str(directory / "seqkit.faa")]
    other = seconds(lambda: subprocess.run(command, check=True, capture_output=True), 2, 0)
    report.add("frames", "seqkit translate -j 1, Mbp/s", GENOME_BP / other / 1e6)
    report.add("frames", "holdfast faster than seqkit, times", other / taken)


def measure_samples(report: Report, directory: Path) -> None:
    """Many small samples against one large one through a pool on the CPU, and what a tiny job costs."""
    architecture = models.esm2_architecture(SMALL_NAME)
    weights = models.make("esm2", architecture, "cpu", torch.float32)
    prepared = models.write_prepared("esm2", architecture, weights, directory / "esm2")
    with samples.serving(directory / "pool", prepared, "cpu", THREADS, 16384) as client:
        report.add("samples", "load, s", client.load_s)
        client.run(1, 10)
        large, _ = client.run(1, 1000)
        many, _ = client.run(100, 10)
        report.add("samples", "1 of 1,000 proteins, s", large)
        report.add("samples", "100 of 10 proteins, s", many)
        report.add("samples", "100 of 10 against 1 of 1,000, times", many / large)
        beside = []
        for _ in range(15):
            taken, (receipt,) = client.run(1, 1)
            beside.append(taken - receipt.seconds["device_s"])
        report.add("samples", "tiny job, beside the work, median ms", float(np.median(beside)) * 1000)


def measure_many(report: Report, directory: Path) -> None:
    """Tiny samples through the workflow, against plain Snakemake with one trivial job a sample."""
    architectures = {"esm2": SMALL_NAME, "dnabert_s": "dnabert_s_tiny"}
    prepared = {
        model: weights.prepare(f"synthetic:{architecture}", model, directory / "models" / model)
        for model, architecture in architectures.items()
    }
    classifier = directory / "classifier.safetensors"
    Network(sum(model.width for model in prepared.values())).classifier({}, "synthetic").save(classifier)
    config = {
        "models": {model: {"weights": str(directory / "models" / model)} for model in prepared},
        "classifier": str(classifier),
    }
    for kind, counts in MANY.items():
        for count in counts:
            label = f"{count:,} {kind}"
            plain = many.run_plain(directory / f"plain {label}", count)
            taken, memory_bytes = many.run_workflow(directory / label, count, config, kind)
            report.add("many", f"{label}: plain Snakemake, a trivial job a sample, s", plain)
            report.add("many", f"{label}: holdfast, s", taken)
            report.add("many", f"{label}: holdfast against plain, times", taken / plain)
            report.add("many", f"{label}: holdfast, a sample, ms", taken / count * 1000)
            report.add("many", f"{label}: all consumers, GB", memory_bytes / 1e9)


if __name__ == "__main__":
    main()
