"""Calls and report of one sample of many contigs: memory and time of each command against the number of contigs.

    PYTHONPATH=workflow/scripts .venv/bin/python bench/calls.py [--contigs N ...] [--directory DIR]

The sample is written in the published format by the workflow's writer, but by no model: vectors of four seeded random
numbers, contigs of 600 bp in two chunks, one frame in most of them. The commands are those that the rules call, each a
process of its own. Memory is read from /proc: the most that was ever resident (VmHWM), and the most of its anonymous
part (RssAnon, looked at twenty times a second), which is what the process holds itself.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import machine
import numpy as np
from holdfast.models.registry import Letters, Output, Prepared
from holdfast.results.calibration import calibrate
from holdfast.results.classifier import Classifier
from holdfast.results.writer import EmbeddingsWriter
from holdfast.run.config import read_samples
from holdfast.run.failures import write_failures
from holdfast.sequences.frames import FRAMES
from holdfast.spool.job import Receipt
from report import Report

ROOT = Path(__file__).parents[1]
CONTIGS = (200_000, 1_000_000)
CONTIG_BP, CHUNK_BP, WIDTH, HIDDEN = 600, 500, 4, 8
BLOCK = 50_000
LOOKED_S = 0.05
MODELS = {"esm2": ("esm", "protein"), "dnabert_s": ("mosaic_bert", "nucleotide")}
CALLS = '{"preset": "relaxed"}'


def main() -> None:
    """Measure the chosen sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contigs", nargs="+", type=int, default=CONTIGS)
    parser.add_argument("--directory", type=Path, help="where the files may lie for the run, 1.3 GB a million contigs")
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    parser.add_argument("--write", nargs=2, metavar=("DIR", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_run(Path(arguments.write[0]), int(arguments.write[1]))
        return
    report = Report("calls", machine.describe("cpu"), arguments.results)
    for contigs in arguments.contigs:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
            measure(report, contigs, Path(scratch))


def measure(report: Report, contigs: int, root: Path) -> None:
    """Write a run of one sample of so many contigs, and have it called, combined, counted and drawn."""
    watch([sys.executable, __file__, "--write", str(root), str(contigs)])
    results = root / "results"
    sample, trained = results / "s", results / "classifier"
    classifier, calibration = trained / "classifier.safetensors", trained / "calibration.json"
    templates = ROOT / "workflow/report"
    of_run = [root / "samples.tsv", "--results", results, "--failures", root / "failures.tsv"]
    of_run += ["--classifier", classifier]
    calling = ["classify", sample / "embeddings.h5", "--classifier", classifier, "--calls", CALLS]
    calling += ["--fasta", root / "s.fna", "--output", sample, "--viruses", sample / "virus.fna"]
    drawing = ["draw", *of_run, "--calls", CALLS, "--summary", results / "summary.tsv", "--runs", root / "runs"]
    drawing += ["--calibration", calibration, "--spool", root / "spool", "--projection", "pca", "--seed", "1"]
    figures = [path for path in sorted(templates.glob("*.rst")) if path.stem in drawn()]
    commands = {
        "classify, uncalibrated": calling,
        "classify": [*calling, "--calibration", calibration],
        "combine": ["combine", *of_run, "--contigs", results / "contigs.tsv", "--viruses", results / "virus.fna"],
        "summarize": ["summarize", *of_run, "--output", results / "summary.tsv"],
        "draw": [*drawing, "--template", templates / "page.html", "--captions", *figures],
    }
    for name, command in commands.items():
        entry = [sys.executable, ROOT / "workflow/scripts/entry.py", *command]
        peak_mb, own_mb, seconds = watch([str(word) for word in entry])
        report.add(f"{contigs:,} contigs", f"{name}, resident", peak_mb, "MB")
        report.add(f"{contigs:,} contigs", f"{name}, anonymous", own_mb, "MB")
        report.add(f"{contigs:,} contigs", f"{name}, time", seconds, "s")
    report.add(f"{contigs:,} contigs", "report.html", (results / "report.html").stat().st_size / 1e6, "MB")


def drawn() -> set[str]:
    """The figures of a run whose classifier was given."""
    return {"outcomes", "scores", "lengths", "frames", "embeddings", "calibration", "throughput", "load"}


def watch(command: list[str]) -> tuple[float, float, float]:
    """Run a command to its end; the most memory that was resident, and of it anonymous, MB, and its seconds."""
    began, peak_kib, own_kib = time.perf_counter(), 0, 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None:
            own_kib = max(own_kib, machine.memory_kib(process.pid)[1])
            with suppress(OSError):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                peak_kib = max([peak_kib, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
            time.sleep(LOOKED_S)
    if process.returncode:
        sys.exit(f"{' '.join(command[:4])} ... ended with {process.returncode}")
    return peak_kib * 1024 / 1e6, own_kib * 1024 / 1e6, time.perf_counter() - began


def write_run(root: Path, contigs: int) -> None:
    """Write sheet, FASTA, embeddings, receipt, classifier and calibration."""
    results, chance = root / "results", np.random.default_rng(5)
    (results / "s").mkdir(parents=True)
    (results / "classifier").mkdir()
    (root / "samples.tsv").write_text("sample\tfasta\tkind\ns\ts.fna\tcontigs\n")
    sha256 = write_fasta(root / "s.fna", contigs)
    rows = write_embeddings(results / "s/embeddings.h5", contigs, sha256, chance)
    counts = {"records": contigs, "rows": rows, "tokens": 100 * rows, "sequences": rows}
    receipt = Receipt("j", "s", "done", run="r", counts=counts, pool={"id": "p", "devices": "none"})
    receipt.write(results / "s/receipt.json")
    write_failures(read_samples(root / "samples.tsv"), results, root / "failures.tsv")
    width = WIDTH * len(MODELS)
    state = {"hidden_layer.weight": chance.normal(size=(HIDDEN, width)), "hidden_layer.bias": np.zeros(HIDDEN)}
    state |= {"output_layer.weight": chance.normal(size=(2, HIDDEN)), "output_layer.bias": np.zeros(2)}
    state |= {f"bn1.{name}": np.ones(HIDDEN) for name in ("weight", "bias", "running_mean", "running_var")}
    arrays = {name: array.astype(np.float32) for name, array in state.items()}
    path = results / "classifier/classifier.safetensors"
    Classifier({**arrays, "bn1.num_batches_tracked": np.array(1)}, {}, "random numbers").save(path)
    score, label = chance.random(2000), np.arange(2000) % 2
    calibrate((score + label) / 2, label, "all", 0.2, path).write(results / "classifier/calibration.json")


def write_fasta(path: Path, contigs: int) -> str:
    """Write the sequences, cut from random letters; the digest of the file (hex)."""
    letters = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(3).integers(0, 4, 2**20)].tobytes()
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for start in range(0, contigs, BLOCK):
            places = ((number, number * 7919 % 2**19) for number in range(start, min(start + BLOCK, contigs)))
            text = b"".join(b">c_%d\n%s\n" % (number, letters[at : at + CONTIG_BP]) for number, at in places)
            digest.update(text)
            file.write(text)
    return digest.hexdigest()


def write_embeddings(path: Path, contigs: int, sha256: str, chance: np.random.Generator) -> int:
    """Write records and rows, then vectors; how many rows there are."""
    rows = 0
    with EmbeddingsWriter.create(path, "s", "contigs", CHUNK_BP, 1) as writer:
        for start in range(0, contigs, BLOCK):
            numbers = np.arange(start, min(start + BLOCK, contigs))
            lengths = np.full(len(numbers), CONTIG_BP)
            writer.append_records([f"c_{number}" for number in numbers], lengths, lengths, ["ok"] * len(numbers))
            record, chunk = np.repeat(numbers, 2), np.tile([1, 2], len(numbers))
            open_frame = chance.random(len(record)) < 0.8
            record, chunk = record[open_frame], chunk[open_frame]
            frame = chance.integers(0, len(FRAMES), len(record))
            names = zip(record.tolist(), chunk.tolist(), frame.tolist(), strict=True)
            ids = [f"c_{number}_chunk_{place}{FRAMES[which]}" for number, place, which in names]
            digests = [bytes(32)] * len(ids)
            writer.append_rows(ids, np.full(len(ids), 166), digests, record, chunk, frame)
            rows += len(ids)
        writer.name_input(sha256)
        writer.mark_empty("no_stop_free_frame")
    with EmbeddingsWriter.reopen(path, {}) as writer:
        for model, (family, alphabet) in MODELS.items():
            sizes = (min(BLOCK, rows - start) for start in range(0, rows, BLOCK))
            blocks = (chance.normal(size=(size, WIDTH)).astype(np.float32) for size in sizes)
            described = describe(family, alphabet)
            writer.write_matrix(model, described, Output(1, "mean"), "float16", "fp32", blocks)
    return rows


def describe(family: str, alphabet: str) -> Prepared:
    """What ``model.json`` would say of a model that nobody prepared."""
    letters = Letters({letter: number for number, letter in enumerate("ACGTLX")}, 3, 0, 2)
    digests = {"source_sha256": "ab" * 32, "weights_sha256": "cd" * 32}
    described = {"family": family, "alphabet": alphabet, "letters": letters, "mean_of": "tokens", "layers": 1}
    described |= {"architecture": {"layers": 1}, "width": WIDTH, "start_tokens": 1, "end_tokens": 1}
    described |= {"start_is_cls": True, "max_length": None, "long": "whole", "source": "random", **digests}
    return Prepared(**described, synthetic=True, verification={})


if __name__ == "__main__":
    main()
