"""``make bench``: the CPU's figures, each beside the ceiling or the peer measured in the same run.

ESM-2 35M in fp32 on two threads, frames of a genome, samples through a pool, thousands of samples through the workflow,
and the memory of one large sample. Weights are synthetic. A machine that does other work meanwhile gives figures that
mean little; the spread of the ceiling is printed for that reason.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import feed
import machine
import many
import models
import numpy as np
import peers
import psutil  # type: ignore[import-untyped]
import samples
import size
import torch
import workload
from holdfast.models.esm import Esm
from holdfast.models.prepare import prepare
from holdfast.results.training import Network
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records
from holdfast.sequences.frames import chunk_bounds, write_frames_fasta
from report import Report
from timing import seconds

NAME, SMALL_NAME = "esm2_t12_35M_UR50D", "esm2_t6_8M_UR50D"
SECTIONS = ("speed", "frames", "feed", "samples", "renewal", "many", "size")
THREADS = 2
GENOME_BP = 20_000_000
CHUNK_BP = 500
BACTERIUM = Path(__file__).parents[1] / "demo" / "data" / "bacterium_train.fna.gz"
# How a peer is given its sequences: sorted or not, and the tokens in a batch, padding included.
PEER_CASES = (
    ("in order", False, 8192),
    ("sorted as by its extract.py", True, 4096),
)
GPU_TOKENS_PER_S = 100_000  # of ESM-2 3B on an H200, docs/performance.md
MANY = {"proteins": (100, 500, 2000), "contigs": (100, 500)}
SIZES = (100_000, 400_000)


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
        if "feed" in arguments.only:
            measure_feed(report, Path(name))
        architecture = models.esm2_architecture(SMALL_NAME)
        weights = models.make("esm", architecture, "cpu", torch.float32)
        small = {"esm2": models.write_prepared("esm", architecture, weights, Path(name) / "esm2")}
        if "samples" in arguments.only:
            measure_samples(report, small, Path(name))
        if "renewal" in arguments.only:
            measure_renewal(report, small, Path(name))
        if "many" in arguments.only:
            measure_many(report, Path(name))
        if "size" in arguments.only:
            size.measure(report, Path(name), SIZES)
    print(report.path)


def measure_speed(report: Report, peak: float) -> None:
    """ESM-2 35M at one length and at mixed lengths, ours and the peers."""
    architecture = models.esm2_architecture(NAME)
    weights = models.make("esm", architecture, "cpu", torch.float32)
    ours = Esm(weights, models.describe("esm", architecture))
    forwards = {
        "fair-esm": peers.fair_esm(architecture, weights),
        "transformers SDPA": peers.transformers_sdpa(architecture, weights),
    }
    layers, width = int(architecture["layers"]), int(architecture["width"])
    for label, lengths in (("168 tokens", workload.uniform(8192)), ("32-1024 tokens", workload.mixed(8192))):
        ids = workload.proteins(lengths)
        tokens = torch.from_numpy(ids)
        own = seconds(partial(models.means, ours, tokens, lengths), 3, 1)
        report.add("speed", f"{label}: holdfast, tokens/s", len(ids) / own)
        report.add("speed", f"{label}: holdfast, share of sgemm", workload.flops(lengths, layers, width) / own / peak)
        vectors = models.means(ours, tokens, lengths).numpy()
        cases = PEER_CASES if label != "168 tokens" else PEER_CASES[:1]
        many = workload.mixed(2**19) if label != "168 tokens" else lengths
        for case, by_length, budget_tokens in cases:
            for which, some in (("these", lengths), ("many", many)):
                given_lengths = sorted(some) if by_length else some
                padding = peers.padded(given_lengths, budget_tokens)
                report.add("speed", f"{label}: {case}, padded tokens a token, {which}", padding)
        for name, forward in forwards.items():
            peers.embed(forward, ids[: lengths[0]], lengths[:1], lengths[0], "cpu")
            for case, by_length, budget_tokens in cases:
                order = np.argsort(lengths, kind="stable") if by_length else np.arange(len(lengths))
                given = workload.ordered(ids, lengths, order)
                began = time.perf_counter()
                found = peers.embed(forward, *given, budget_tokens, "cpu")
                taken = time.perf_counter() - began
                report.add("speed", f"{label}: {name}, {case}, tokens/s", len(ids) / taken)
                report.add("speed", f"{label}: holdfast faster than {name}, {case}, times", taken / own)
                difference = float(np.abs(vectors[order] - found).max())
                report.add("speed", f"{label}: largest difference to {name}, {case}", difference)


def measure_frames(report: Report, directory: Path) -> None:
    """Chunks and frames of pieces of E. coli, over and over, on one core; beside them seqkit, if it is installed.

    Seqkit translates chunks in six frames, as we do, but writes frames with a stop, too; those without must be ours.
    """
    pieces = [record.sequence for record in read_records(BACTERIUM, Alphabet.NUCLEOTIDE)]
    sequence = "".join(pieces * (1 + GENOME_BP // sum(map(len, pieces))))[:GENOME_BP]
    genome, chunks, ours = directory / "genome.fna", directory / "chunks.fna", directory / "p.faa"
    genome.write_text(f">genome\n{sequence}\n")
    taken = seconds(lambda: write_frames_fasta(genome, CHUNK_BP, directory / "n.fna", ours), 3, 1)
    report.add("frames", "chunks and frames, written, Mbp/s", GENOME_BP / taken / 1e6)
    seqkit = shutil.which("seqkit")
    if seqkit is None:
        report.add("frames", "seqkit translate -f 6 -j 1, Mbp/s", "not measured: not installed")
        return
    bounds = zip(*chunk_bounds(GENOME_BP, CHUNK_BP), strict=True)
    chunks.write_text("".join(f">{start}\n{sequence[start:end]}\n" for start, end in bounds))
    output = directory / "seqkit.faa"
    for name, source in (("chunks that lie there", chunks), ("the genome uncut", genome)):
        command = [seqkit, "translate", "-j", "1", "-f", "6", "-w", "0", str(source), "-o", str(output)]
        other = seconds(partial(subprocess.run, command, check=True, capture_output=True), 3, 1)
        report.add("frames", f"seqkit translate -f 6 -j 1, {name}, Mbp/s", GENOME_BP / other / 1e6)
        report.add("frames", f"holdfast faster than seqkit, {name}, times", other / taken)
        if source == chunks:
            wanted, found = (Counter(path.read_text().splitlines()[1::2]) for path in (ours, output))
            same = wanted == {protein: count for protein, count in found.items() if "*" not in protein}
            report.add("frames", "stop-free frames of seqkit equal ours", same)


def measure_samples(report: Report, small: dict[str, Path], directory: Path) -> None:
    """Many small samples against one large one through a pool on the CPU, and what a tiny job costs."""
    with samples.serving(directory / "pool", small, device="cpu", threads=THREADS) as client:
        report.add("samples", "start of the pool to ready, s", client.start_s)
        report.add("samples", "of that, load, s", client.load_s)
        client.run(1, 10)
        large, _ = client.run(1, 1000)
        many, receipts = client.run(100, 10)
        work = client.load_s + sum(receipt.seconds["device_s"] for receipt in receipts)
        report.add("samples", "1 of 1,000 proteins, s", large)
        report.add("samples", "100 of 10 proteins, s", many)
        report.add("samples", "100 of 10 against 1 of 1,000, times", many / large)
        report.add("samples", "start and 100 of 10 against load and work, times", (client.start_s + many) / work)
        report.add("samples", "tiny job, beside the work, median ms", client.beside() * 1000)


def measure_feed(report: Report, directory: Path) -> None:
    """Tokens for ESM-2 that one supervisor and one reader deliver to devices that cost nothing, and to how many GPUs.

    Counted by the CPU time of each process, since readers are as many as there are threads, but the supervisor is one.
    """
    described = feed.describe(directory / "described")
    cases = {
        "proteins, 1 of 20,000": (1, 20_000),
        "proteins, 200 of 100": (200, 100),
        "proteins, 500 of 10": (500, 10),
        "contigs, 1 of 10,000": (1, 10_000),
    }
    with samples.serving(directory / "feed", described, [feed.__file__], device="cpu") as client:
        client.run(1, 10, "contigs")
        for label, (count, records) in cases.items():
            before = cpu_seconds(client.server.pid)
            taken, receipts = client.run(count, records, label.partition(",")[0])
            spent = [after - earlier for after, earlier in zip(cpu_seconds(client.server.pid), before, strict=True)]
            tokens = sum(receipt.counts["tokens"] for receipt in receipts)
            report.add("feed", f"{label}: tokens/s", tokens / taken)
            for who, seconds_of in zip(("supervisor", "reader"), spent, strict=True):
                report.add("feed", f"{label}: tokens a CPU second of the {who}", tokens / seconds_of)
            report.add("feed", f"{label}: GPUs that a supervisor feeds", tokens / spent[0] / GPU_TOKENS_PER_S)
            report.add("feed", f"{label}: readers a GPU needs", spent[1] / tokens * GPU_TOKENS_PER_S)


def cpu_seconds(pid: int) -> tuple[float, float]:
    """CPU time so far of a pool's supervisor, and of its readers, which are those that have loaded HDF5."""
    supervisor = psutil.Process(pid)
    readers = [child for child in supervisor.children() if "hdf5" in Path(f"/proc/{child.pid}/maps").read_text()]
    used = [sum(sum(process.cpu_times()[:2]) for process in group) for group in ([supervisor], readers)]
    return used[0], used[1]


def measure_renewal(report: Report, small: dict[str, Path], directory: Path) -> None:
    """Memory and time of a worker that stays, against workers that are renewed; batches of mixed lengths."""
    for label, limit in (("never", None), ("every 5 batches", 5)):
        settings: dict[str, Any] = {
            "device": "cpu",
            "threads": THREADS,
            "tokens_per_batch": 4096,
            "max_tasks_per_worker": limit,
        }
        with samples.serving(directory / f"renewal{limit}", small, **settings) as client:
            client.run(1, 10)
            for part in ("first", "second", "third"):
                taken, _ = client.run(1, 50, residues_aa=range(30, 1023))
                report.add("renewal", f"{label}: {part} 50 proteins, s", taken)
                report.add("renewal", f"{label}: memory of the worker then, MB", worker_bytes(client.server.pid) / 1e6)


def worker_bytes(pid: int) -> int:
    """Memory of a pool's workers, which are those that have loaded torch."""
    children = psutil.Process(pid).children()
    loaded = [child for child in children if "libtorch" in Path(f"/proc/{child.pid}/maps").read_text()]
    return sum(child.memory_info().rss for child in loaded)


def measure_many(report: Report, directory: Path) -> None:
    """Tiny samples through the workflow, against plain Snakemake with one trivial job a sample."""
    architectures = {"esm2": SMALL_NAME, "dnabert_s": "dnabert_s_tiny"}
    prepared = {
        model: prepare(f"synthetic:{architecture}", directory / "models" / model)
        for model, architecture in architectures.items()
    }
    classifier = directory / "classifier.safetensors"
    Network(sum(model.width for model in prepared.values())).classifier({}, "synthetic").save(classifier)
    config: dict[str, Any] = {
        "models": {model: {"weights": str(directory / "models" / model)} for model in prepared},
        "classifier": str(classifier),
    }
    for kind, counts in MANY.items():
        for count in counts:
            label = f"{count:,} {kind}"
            plain = many.run_plain(directory / f"plain {label}", count)
            greedy = many.run_plain(directory / f"greedy {label}", count, "--workflow-profile", str(many.PROFILE))
            taken, memory_bytes = many.run_workflow(directory / label, count, config, kind)
            report.add("many", f"{label}: plain Snakemake, a trivial job a sample, s", plain)
            report.add("many", f"{label}: plain Snakemake with our scheduler, s", greedy)
            report.add("many", f"{label}: holdfast, s", taken)
            report.add("many", f"{label}: holdfast against plain, times", taken / plain)
            report.add("many", f"{label}: holdfast against plain with our scheduler, times", taken / greedy)
            report.add("many", f"{label}: holdfast, a sample, ms", taken / count * 1000)
            report.add("many", f"{label}: all consumers, GB", memory_bytes / 1e9)


if __name__ == "__main__":
    main()
