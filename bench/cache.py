"""The shared cache: how fast known vectors are found, what it costs without hits, what it saves a second project.

    PYTHONPATH=workflow/scripts .venv/bin/python bench/cache.py

Vectors are found by one process, with the files in the page cache; the ceilings beside it are a copy of the same bytes
in memory, and writing them. The projects run on the CPU with synthetic weights of ESM-2 8M.
"""

import argparse
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import models
import numpy as np
import psutil  # type: ignore[import-untyped]
import samples
import torch
from holdfast.pool.access import Access
from holdfast.pool.exchange import FETCHED_BYTES
from holdfast.pool.keys import Key, Origin
from holdfast.pool.segments import Rows, prefixes
from holdfast.pool.shelf import Shelf
from holdfast.spool.job import Receipt
from report import Report

SECTIONS = ("find", "projects")
KNOWN = 1_000_000
SEGMENT = 200_000
PROTEINS = 1000
ORIGIN = Origin("run", "pool", "host", "user", "/spool", "0.1.0", "0" * 64, "2026-11-26T00:00:00+00:00")


def main() -> None:
    """Measure the chosen sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    report = Report("cache", machine.describe("cpu"), arguments.results)
    with tempfile.TemporaryDirectory() as name:
        if "find" in arguments.only:
            for width in (320, 1280):
                measure_find(report, Path(name) / str(width), width)
                shutil.rmtree(Path(name) / str(width))
        if "projects" in arguments.only:
            measure_projects(report, Path(name))
    print(report.path)


def measure_find(report: Report, directory: Path, width: int) -> None:
    """A million vectors, put in and found, in parts as a sample's are, every checksum compared."""
    directory.mkdir()
    shelf = Shelf(directory, Key("ab" * 32, width, "fp16", 33, "mean", None, "float32"), Access(None))
    random = np.random.default_rng(1)
    seeds = random.bytes(8 * KNOWN)
    joined = b"".join(hashlib.sha256(seeds[8 * n : 8 * n + 8]).digest() for n in range(KNOWN))
    digests = np.frombuffer(joined, np.uint8).reshape(-1, 32)
    residues = random.integers(30, 1000, KNOWN)
    slab = random.normal(size=(1024, width)).astype(np.float32)
    began = time.perf_counter()
    for first in range(0, KNOWN, SEGMENT):
        chosen = slice(first, first + SEGMENT)
        order = np.argsort(prefixes(digests[chosen])) + first
        rows = Rows(digests[order], residues[order], np.zeros(SEGMENT, np.int32))
        slabs = (slab[: min(1024, SEGMENT - start)] for start in range(0, SEGMENT, 1024))
        shelf.add("bench", rows, [ORIGIN], slabs)
    report.add(
        "find", f"width {width}: put in, with checksum and fsync, vectors/s", KNOWN / (time.perf_counter() - began)
    )
    order = np.argsort(prefixes(digests))
    for label in ("first time, prefixes read", "again"):
        began = time.perf_counter()
        held = int(shelf.holds(digests[order]).sum())
        report.add("find", f"width {width}: looked up, {label}, vectors/s", held / (time.perf_counter() - began))
    part_rows = FETCHED_BYTES // (4 * width)
    for label in ("first", "second"):
        began, cpu, held = time.perf_counter(), time.process_time(), 0
        for start in range(0, KNOWN, part_rows):
            part = order[start : start + part_rows]
            held += int(shelf.read(digests[part], residues[part]).good.sum())
        taken, used = time.perf_counter() - began, time.process_time() - cpu
        if held != KNOWN:
            raise SystemExit(f"{held} of {KNOWN} vectors were found")
        report.add("find", f"width {width}: found, checked and in memory, {label} time, vectors/s", KNOWN / taken)
        report.add("find", f"width {width}: the same a second of CPU, vectors/s", KNOWN / used)
    none = np.frombuffer(hashlib.shake_256(b"none").digest(32 * KNOWN), np.uint8).reshape(-1, 32)
    none = none[np.argsort(prefixes(none))]
    began = time.perf_counter()
    if shelf.holds(none).any():
        raise SystemExit("what is not there was found")
    report.add("find", f"width {width}: looked up and not there, sequences/s", KNOWN / (time.perf_counter() - began))
    source = np.ones((part_rows, width), np.float32)
    began = time.perf_counter()
    for _ in range(20):
        source.copy()
    report.add(
        "find",
        f"width {width}: memory copied, for comparison, vectors/s",
        20 * part_rows / (time.perf_counter() - began),
    )


def measure_projects(report: Report, directory: Path) -> None:
    """A project without and with a cache that is empty, and one that knows nine tenths of its proteins from there."""
    torch.set_num_threads(2)
    architecture = models.esm2_architecture("esm2_t6_8M_UR50D")
    weights = models.make("esm", architecture, "cpu", torch.float32)
    small = {"esm2": models.write_prepared("esm", architecture, weights, directory / "esm2")}
    settings = {"device": "cpu", "threads": 2}
    with samples.serving(directory / "without", small, **settings) as client:
        client.run(1, 10)
        _, without, _ = spent(client, lambda: client.run(1, PROTEINS))
    with samples.serving(directory / "first", small, cache=str(directory / "cache"), **settings) as client:
        client.run(1, 10)
        first, with_cache, total = spent(client, lambda: client.run(1, PROTEINS))
        known = sorted(client.directory.glob("sample*.fasta"))[-1].read_text().splitlines()
    report.add("projects", f"{PROTEINS:,} proteins without a cache: CPU of readers and supervisor, s", without)
    report.add("projects", "the same with an empty cache, s", with_cache)
    report.add("projects", "cost of a cache without hits, share of all CPU seconds", (with_cache - without) / total)
    with samples.serving(directory / "second", small, cache=str(directory / "cache"), **settings) as client:
        again = client.directory / "again.fasta"
        letters = "".join(f"{line}\n" for line in known[: 2 * PROTEINS * 9 // 10])
        new = "".join(random_proteins(PROTEINS // 10))
        again.write_text(letters + new)
        _, (second,) = client.embed([again])
    report.add("projects", "second project, 90 % known: sequences found", second.counts["cached"])
    device = {name: receipt.seconds["device_s"] for name, receipt in (("first", first), ("second", second))}
    report.add("projects", "device time of the first project, s", device["first"])
    report.add("projects", "of the second, s", device["second"])
    report.add("projects", "of the second against the first", device["second"] / device["first"])


def random_proteins(count: int) -> list[str]:
    """Records of new proteins, as long as those of the other samples."""
    letters = np.array(list(samples.RESIDUES))[np.random.default_rng(7).integers(0, 20, (count, samples.RESIDUES_AA))]
    return [f">new{number}\n{''.join(row)}\n" for number, row in enumerate(letters)]


def spent(client: samples.Client, work: Callable[[], tuple[float, list[Receipt]]]) -> tuple[Receipt, float, float]:
    """The receipt of a sample, and the CPU seconds that it took: of supervisor and readers, and of all processes."""
    before = cpu_seconds(client.server.pid)
    _, (receipt,) = work()
    after = cpu_seconds(client.server.pid)
    return receipt, after[0] - before[0], after[1] - before[1]


def cpu_seconds(pid: int) -> tuple[float, float]:
    """CPU time so far of a pool's supervisor and readers, which are without torch, and of all its processes."""
    supervisor = psutil.Process(pid)
    family = [supervisor, *supervisor.children(recursive=True)]
    used = {process.pid: sum(process.cpu_times()[:2]) for process in family}
    light = [number for number in used if "libtorch" not in Path(f"/proc/{number}/maps").read_text()]
    return sum(used[number] for number in light), sum(used.values())


if __name__ == "__main__":
    main()
