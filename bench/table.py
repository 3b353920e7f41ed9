"""The README's table of models: what a model takes to prepare, and how much two CPU threads embed in an hour.

``PYTHONPATH=workflow/scripts python3 bench/table.py ARCHITECTURE ...``: each is written as a synthetic checkpoint of
the published size and prepared by the production code in a process of its own, then embeds proteins of 166 residues, or
DNA in pieces of about 110 tokens, which is what 500 bp are. Other work on the machine makes the figures smaller.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import models
import torch
import workload
from holdfast.models.registry import open_model, read_prepared
from report import Report
from timing import seconds

ENTRY = Path(__file__).parents[1] / "workflow/scripts/entry.py"
THREADS = 2
LOOK_S = 0.02
TOKENS = 16 * workload.UNIFORM_TOKENS
PROTEIN_TOKENS, DNA_TOKENS = workload.UNIFORM_TOKENS, 110  # of 166 residues, and of 500 bp
FRAMES_PER_MBP = 1100  # stop-free frames of a bacterial genome in chunks of 500 bp: 0.55 a chunk


def main() -> None:
    """Measure the chosen models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="architectures of synthetic checkpoints, such as esm2_t12_35M_UR50D")
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    report = Report("table", machine.describe("cpu"), arguments.results)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch) / "prepared"
            took_s, peak_bytes = prepare(name, prepared)
            report.add(name, "prepared in", took_s, "s")
            report.add(name, "memory to prepare (RssAnon)", peak_bytes / 1e9, "GB")
            report.add(name, "on disk", (prepared / "model.safetensors").stat().st_size / 1e9, "GB")
            measure_speed(report, name, prepared)


def prepare(name: str, directory: Path) -> tuple[float, int]:
    """Prepare a synthetic model: seconds, and the most memory of its own that the process had, bytes."""
    began, peak_kib = time.perf_counter(), 0
    command = [sys.executable, ENTRY, "prepare", f"synthetic:{name}", "--output", directory]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    while process.poll() is None:
        peak_kib = max(peak_kib, machine.memory_kib(process.pid)[1])
        time.sleep(LOOK_S)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - began, peak_kib * 1024


def measure_speed(report: Report, name: str, prepared: Path) -> None:
    """Sequences an hour, and millions of base pairs of contigs, of which this model embeds the stop-free frames."""
    known = read_prepared(prepared)
    lengths = workload.uniform(TOKENS, PROTEIN_TOKENS if known.is_protein else DNA_TOKENS)
    ids = workload.proteins(lengths) if known.is_protein else workload.dna(lengths)
    model = open_model(prepared, "cpu")
    taken_s = seconds(lambda: models.means(model, torch.from_numpy(ids), lengths), 3, 1)
    an_hour = len(lengths) * 3600 / taken_s
    report.add(name, "tokens/s", sum(lengths) / taken_s)
    report.add(name, "sequences an hour", an_hour)
    report.add(name, "Mbp of contigs an hour", an_hour / FRAMES_PER_MBP)


if __name__ == "__main__":
    main()
