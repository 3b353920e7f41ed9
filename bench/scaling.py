"""One run on more and more devices of a host: how the throughput grows, who is busy, what the CPU side costs.

    PYTHONPATH=workflow/scripts python3 bench/scaling.py [--devices 1 2 4 8]
    PYTHONPATH=workflow/scripts .venv/bin/python bench/scaling.py --simulated

The first is the real workflow through Snakemake on GPUs: ESM-2 3B and DNABERT-S, synthetic, of true size, made on the
device; pieces of a genome with mutations of their own, so that nothing is computed once for two samples. By one replica
and by as many as devices, about two minutes on one GPU; then 500 samples of ten proteins on the most devices.
Embeddings of every run are compared with those of the first.

``--simulated`` needs no GPU: pools by hand, whose workers (:mod:`feed`) take as long for a token as a GPU would, all
else real. ``--cpu`` tries the real workflow on small models, a worker on the CPU a device; its figures say nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import feed
import machine
import models
import numpy as np
import psutil  # type: ignore[import-untyped]
import samples
import torch
from holdfast.models.prepare import prepare
from holdfast.models.synthetic import write_tokenizer
from holdfast.results.embeddings import read_embeddings
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records
from holdfast.spool.progress import read_moments
from holdfast.spool.state import published_states
from report import Report

ROOT = Path(__file__).parents[1]
GENOME = ROOT / "demo" / "data" / "bacterium_train.fna.gz"
MUTATED = 0.05
GPU_TOKENS_PER_S = 100_000  # of ESM-2 3B on an H200, docs/performance.md
DEVICES = (1, 2, 4, 8)
LARGE, SMALL = (170, 5), (500, 10)  # samples, and records of each
PROTEIN_AA = 166
SAMPLED_S = 0.2


@dataclass
class Run:
    """What was seen of the pools of one run.

    Attributes:
        spools: Of its pools.
        began_s: When it began, seconds since 1970.
        ended_s: When it ended.
        cpu_s: CPU time by pid, of supervisors and of readers.
    """

    spools: Sequence[Path]
    began_s: float
    ended_s: float = 0.0
    cpu_s: dict[str, dict[int, float]] = field(default_factory=lambda: {"supervisor": {}, "reader": {}})

    def figures(self, devices: int) -> dict[str, float]:
        """By name: throughput while embedding, and where the time went."""
        histories = [read_moments(path) for spool in self.spools for path in (spool / "pools").glob("*.tsv")]
        pools = [moments for moments in histories if moments and moments[-1].tokens]
        starts = [
            [moments[0], *(moment for moment in moments if moment.time_s < self.began_s)][-1] for moments in pools
        ]
        ends = [next(moment for moment in moments if moment.tokens == moments[-1].tokens) for moments in pools]
        ready_s, last_s = max(self.began_s, min(start.time_s for start in starts)), max(end.time_s for end in ends)
        worked = [moment for moments in pools for moment in moments if moment.tokens and moment.time_s > self.began_s]
        tokens = sum(end.tokens - start.tokens for start, end in zip(starts, ends, strict=True))
        device_s = sum(end.device_s - start.device_s for start, end in zip(starts, ends, strict=True))
        lived_s = self.ended_s - ready_s
        return {
            "wall, s": self.ended_s - self.began_s,
            "tokens": tokens,
            "tokens/s while embedding": tokens / (last_s - ready_s),
            "device seconds": device_s,
            "busy share of the devices": device_s / devices / (last_s - ready_s),
            "start to first batch done, s": min(moment.time_s for moment in worked) - self.began_s,
            "last batch done to the end, s": self.ended_s - last_s,
            "busiest supervisor, share of a core": max(self.cpu_s["supervisor"].values(), default=0.0) / lived_s,
            "readers, cores": sum(self.cpu_s["reader"].values()) / lived_s,
        }


@contextmanager
def watched(spools: Sequence[Path]) -> Iterator[Run]:
    """Look at the pools of these spools meanwhile."""
    run, ended, before = Run(spools, time.time()), threading.Event(), _cpu_seconds(spools)

    def look() -> None:
        while not ended.wait(SAMPLED_S):
            now = _cpu_seconds(spools)
            for who, spent in run.cpu_s.items():
                spent |= {pid: seconds - before[who].get(pid, 0.0) for pid, seconds in now[who].items()}

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield run
        run.ended_s = time.time()
    finally:
        ended.set()
        thread.join()


def _cpu_seconds(spools: Sequence[Path]) -> dict[str, dict[int, float]]:
    """CPU time so far, by pid, of the supervisors that serve these spools and of their readers."""
    found: dict[str, dict[int, float]] = {"supervisor": {}, "reader": {}}
    for pid in {state.identity.pid for spool in spools for state in published_states(spool)}:
        with suppress(psutil.Error, OSError):
            pool = psutil.Process(pid)
            found["supervisor"][pid] = sum(pool.cpu_times()[:2])
            for child in pool.children():
                if "hdf5" in Path(f"/proc/{child.pid}/maps").read_text():
                    found["reader"][child.pid] = sum(child.cpu_times()[:2])
    return found


def main() -> None:
    """Measure the chosen numbers of devices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", type=int, default=DEVICES)
    parser.add_argument("--share", type=float, default=1.0, help="of the samples, for a shorter run")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--simulated", action="store_true", help="devices that only take the time of a GPU")
    how.add_argument("--cpu", action="store_true", help="small models on the CPU, to try the bench itself")
    parser.add_argument("--directory", type=Path, help="where models and results may lie for the run")
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    real, most = not arguments.simulated, max(arguments.devices)
    device = "cpu" if arguments.simulated or arguments.cpu else "cuda"
    report = Report(
        "scaling-simulated" if arguments.simulated else "scaling", machine.describe(device), arguments.results
    )
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        held = _models(directory / "models", device, real)
        for (number, records), kind in ((LARGE, "contigs"), (SMALL, "proteins")):
            number = max(1, round(number * arguments.share))
            files = write_samples(directory / kind, number, records, kind)
            tried = [(count, replicas) for count in arguments.devices for replicas in sorted({1, count})]
            first: dict[str, float] = {}
            for count, replicas in tried if kind == "contigs" else [pair for pair in tried if pair[0] == most]:
                section = f"{number} of {records} {kind}: {count} devices, {replicas} replicas"
                place = directory / f"{kind} {count} {replicas}"
                run = (by_snakemake if real else by_hand)(place, held, files, kind, count, replicas, device)
                figures = run.figures(count)
                first = first or figures
                for figure, value in figures.items():
                    report.add(section, figure, value)
                for figure in ("tokens/s while embedding", "wall, s"):
                    report.add(section, f"{figure}, against the first", figures[figure] / first[figure])
                if real:
                    reference = directory / f"{kind} {tried[0][0] if kind == 'contigs' else most} 1"
                    report.add(section, "largest difference to the first", _difference(place, reference, len(files)))
    print(report.path)


def write_samples(directory: Path, number: int, records: int, kind: str) -> list[Path]:
    """Write samples of proteins, or of copies of pieces of a genome; no record is like another."""
    directory.mkdir()
    chance = np.random.default_rng(7)
    pieces = "".join(record.sequence for record in read_records(GENOME, Alphabet.NUCLEOTIDE))
    genome = np.frombuffer(pieces.encode(), np.uint8)
    residues, bases = (np.frombuffer(letters, np.uint8) for letters in (samples.RESIDUES.encode(), b"ACGT"))
    paths = [directory / f"s{sample}.fasta" for sample in range(number)]
    for path in paths:
        with open(path, "wb") as file:
            for record in range(records):
                if kind == "proteins":
                    letters = chance.choice(residues, PROTEIN_AA)
                else:
                    drawn = chance.random(len(genome)) < MUTATED
                    letters = np.where(drawn, chance.choice(bases, len(genome)), genome)
                file.write(b">r%d\n%s\n" % (record, letters.tobytes()))
    return paths


def _models(directory: Path, device: str, real: bool) -> dict[str, Path]:
    """Directories of ESM-2 3B and DNABERT-S: described, tiny, or of true size."""
    directory.mkdir()
    if not real:
        return feed.describe(directory)
    if device == "cpu":
        tiny = {"esm2": "esm2_t6_8M_UR50D", "dnabert_s": "dnabert_s_tiny"}
        for name, architecture in tiny.items():
            prepare(f"synthetic:{architecture}", directory / name)
        return {name: directory / name for name in tiny}
    described = {
        "esm2": ("esm", models.esm2_architecture("esm2_t36_3B_UR50D")),
        "dnabert_s": ("mosaic_bert", models.dnabert_s_architecture()),
    }
    for name, (family, architecture) in described.items():
        weights = models.make(family, architecture, "cuda", torch.float16)
        models.write_prepared(family, architecture, weights, directory / name)
        del weights
    write_tokenizer(4096, directory / "dnabert_s" / feed.TOKENIZER_FILE)
    return {name: directory / name for name in described}


def by_snakemake(
    directory: Path, held: Mapping[str, Path], files: Sequence[Path], kind: str, count: int, replicas: int, device: str
) -> Run:
    """The workflow, from the start of Snakemake to its end."""
    (directory / "config").mkdir(parents=True)
    sheet = ["sample\tfasta\tkind", *(f"{path.stem}\t{path}\t{kind}" for path in files)]
    (directory / "config" / "samples.tsv").write_text("\n".join(sheet) + "\n")
    fitting = ["esm2"] if kind == "proteins" else list(held)
    config = {
        "samples": "config/samples.tsv",
        "models": {name: {"weights": str(held[name])} for name in fitting},
        "pool": {"replicas": replicas, "device": device},
    }
    resources = ["--resources", f"gpu={count}"]
    if device == "cpu":
        config["pool"] |= {"cpu_workers": count // replicas}
        resources = []
    (directory / "config" / "config.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "workflow" / "Snakefile"), "-d", str(directory)]
    wanted = [f"results/{path.stem}/embeddings.h5" for path in files]
    words = ["--cores", str(max(os.cpu_count() or 1, count)), "--quiet", "all", *resources, "--", *wanted]
    with watched([directory / ".holdfast" / "spool"]) as run:
        ended = subprocess.run([*command, *words], capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}: {(ended.stderr or ended.stdout)[-3000:]}")
    return run


def by_hand(
    directory: Path, held: Mapping[str, Path], files: Sequence[Path], kind: str, count: int, replicas: int, device: str
) -> Run:
    """Pools whose devices are simulated, each with its share of the samples."""
    directory.mkdir()
    os.environ["FEED_TOKENS_PER_S"] = str(GPU_TOKENS_PER_S)
    each = count // replicas
    with ExitStack() as stack, ThreadPoolExecutor(replicas) as beside:
        places = [directory / str(replica) for replica in range(replicas)]
        serving = {"device": device, "cpu_workers": each, "threads": max(each, os.cpu_count() or 1)}
        clients = [
            stack.enter_context(samples.serving(place, dict(held), [feed.__file__], **serving)) for place in places
        ]
        for client in clients:
            client.run(1, 10, kind)
        with watched([client.spool.root for client in clients]) as run:
            shares = (files[replica::replicas] for replica in range(replicas))
            list(beside.map(lambda client, share: client.embed(share, kind), clients, shares))
    return run


def _difference(directory: Path, reference: Path, number: int) -> float:
    """The largest between the vectors of two runs."""
    largest = 0.0
    for sample in range(number):
        found, wanted = (
            read_embeddings(where / "results" / f"s{sample}" / "embeddings.h5") for where in (directory, reference)
        )
        for name, matrix in wanted.matrices.items():
            gap = np.abs(found.matrices[name].astype(np.float32) - matrix.astype(np.float32))
            largest = max(largest, float(gap.max(initial=0.0)))
    return largest


if __name__ == "__main__":
    main()
