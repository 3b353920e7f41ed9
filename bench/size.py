"""One sample of many records through a pool whose devices cost nothing: memory and speed against its size.

    PYTHONPATH=workflow/scripts .venv/bin/python bench/size.py [--records N ...] [--loads NAME ...] [--plot FILE.svg]

Everything but the devices is real (:mod:`feed`): reading, parts, blocks, the joined file. Models are descriptions
without weights: ESM-2 8M for proteins; the families of ESM-2 and DNABERT-S of width 32 for contigs and residues, whose
five million records would else need 105 and 200 GB of disk. ``by hand`` is ``holdfast embed`` with a tiny, real
model. Memory is read from /proc every half second: resident, and its anonymous part, which is what a process holds.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import altair
import feed
import machine
import models
import numpy as np
import pandas
import psutil  # type: ignore[import-untyped]
import samples
from holdfast.models.prepare import prepare
from holdfast.models.synthetic import write_tokenizer
from report import Report

RECORDS = (200_000, 1_000_000)
LOADS = ("proteins", "contigs", "residues", "by hand")
RESIDUES_AA = 30
CONTIG_BP = 500
SAMPLED_S = 0.5
PROCESSES = ("supervisor", "largest reader", "all together")


def main() -> None:
    """Measure the chosen sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", nargs="+", type=int, default=RECORDS)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS)
    parser.add_argument("--directory", type=Path, help="where the files may lie for the run")
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    parser.add_argument("--plot", type=Path, help="draw memory against records here, as SVG")
    arguments = parser.parse_args()
    report = Report("size", machine.describe("cpu"), arguments.results)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        measure(report, Path(scratch), arguments.records, arguments.loads)
    if arguments.plot:
        draw(report).save(arguments.plot)
    print(report.path)


def measure(report: Report, directory: Path, records: Sequence[int] = RECORDS, loads: Sequence[str] = LOADS) -> None:
    """A sample of each size for each load, by a pool of its own; what lies in the directory meanwhile is removed."""
    for load in loads:
        for number in records:
            with tempfile.TemporaryDirectory(dir=directory) as scratch:
                if load == "by hand":
                    _measure_by_hand(report, number, Path(scratch))
                else:
                    _measure_served(report, number, load, Path(scratch))


def _measure_served(report: Report, records: int, load: str, directory: Path) -> None:
    kind, pooling = ("contigs", ["mean"]) if load == "contigs" else ("proteins", ["mean"])
    if load == "residues":
        pooling.append("residues")
    path = write_sample(directory / "sample.fasta", records, kind)
    program = [str(Path(feed.__file__))]
    described = _describe(load, directory)
    with samples.serving(directory / "pool", described, program, device="cpu", threads=2) as client:
        watch = Watch(client.server.pid)
        seconds, (receipt,) = client.embed([path], kind, pooling)
        supervisor_s = sum(psutil.Process(client.server.pid).cpu_times()[:2])
        watch.stop()
    if receipt.counts["records"] != records:
        raise SystemExit(f"{path}: {receipt.counts['records']} of {records} records")
    report.add(f"size, {load}", f"{records:,}: CPU of the supervisor", supervisor_s / records * 1e6, "us a record")
    _add(report, records, load, seconds, watch)


def _measure_by_hand(report: Report, records: int, directory: Path) -> None:
    """``holdfast embed`` with a tiny model on the CPU; its own process stands in the place of the supervisor's."""
    prepare("synthetic:esmc_tiny", directory / "model")
    path = write_sample(directory / "sample.fasta", records, "proteins")
    words = ["embed", path, "--model", directory / "model", "--output", directory / "out.h5", "--device", "cpu"]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, samples.SERVE[0], *map(str, words)])
    watch = Watch(process.pid)
    if process.wait():
        raise SystemExit(f"holdfast embed: {process.returncode}")
    watch.stop()
    _add(report, records, "by hand", time.perf_counter() - began, watch)


def _add(report: Report, records: int, load: str, seconds: float, watch: "Watch") -> None:
    report.add(f"size, {load}", f"{records:,}: records a second", records / seconds)
    for name, peak_mb in watch.peaks_mb.items():
        report.add(f"size, {load}", f"{records:,}: {name}, peak", peak_mb, "MB")


def _describe(load: str, directory: Path) -> dict[str, Path]:
    """Write the models of a load."""
    described = {"esm2": ("esm", models.esm2_architecture("esm2_t6_8M_UR50D"))}
    if load == "contigs":
        described["dnabert_s"] = ("mosaic_bert", models.dnabert_s_architecture())
    for name, (family, architecture) in described.items():
        narrow = {} if load == "proteins" else {"width": 32, "mlp_width": 128, "heads": 4}
        feed.write_description(models.describe(family, {**architecture, **narrow}), directory / name)
    if load == "contigs":
        write_tokenizer(4096, directory / "dnabert_s" / feed.TOKENIZER_FILE)
    return {name: directory / name for name in described}


def write_sample(path: Path, records: int, kind: str) -> Path:
    """Write a file of records that are all different; a contig is a chunk with one stop-free frame at least."""
    chance = np.random.default_rng(11)
    words, length = (
        (samples.SENSE_CODONS, CONTIG_BP // 3) if kind == "contigs" else (list(samples.RESIDUES), RESIDUES_AA)
    )
    alphabet = np.array([word.encode() for word in words])
    with open(path, "wb") as file:
        for start in range(0, records, 10_000):
            texts = alphabet[chance.integers(0, len(alphabet), (min(10_000, records - start), length))]
            file.writelines(b">r%d\n%s\n" % (start + row, text.tobytes()) for row, text in enumerate(texts))
    return path


def draw(report: Report) -> altair.TopLevelMixin:
    """Anonymous memory over records, a panel a load, each of which begins at zero."""
    rows = [
        {"load": section.removeprefix("size, "), "records": int(size.replace(",", "")), "process": name, "MB": value}
        for section, figures in report.found.items()
        if section.startswith("size, ")
        for size, _, rest in (key.partition(": ") for key in figures)
        for name in PROCESSES
        if rest == f"{name}, anonymous, peak" and (value := figures[f"{size}: {rest}"])
    ]
    return (
        altair.Chart(pandas.DataFrame(rows), width=220, height=180)
        .mark_line(point=True)
        .encode(
            x=altair.X("records:Q", title="records").scale(zero=True).axis(format="~s", tickCount=5),
            y=altair.Y("MB:Q", title="memory of its own, MB").scale(zero=True),
            color=altair.Color("process:N", sort=PROCESSES, title=None),
            column=altair.Column("load:N", sort=LOADS, title=None),
        )
    )


class Watch:
    """Looks at the memory of a supervisor and its processes.

    Attributes:
        peaks_mb: By name, the largest that was seen.
    """

    def __init__(self, pid: int) -> None:
        """Begin."""
        self.peaks_mb: dict[str, float] = {}
        self._process, self._ended = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLED_S):
            try:
                children = self._process.children(recursive=True)
            except psutil.NoSuchProcess:  # it has ended
                return
            supervisor, *others = (machine.memory_kib(process.pid) for process in [self._process, *children])
            together = tuple(map(sum, zip(supervisor, *others, strict=True)))
            for name, values in zip(PROCESSES, (supervisor, max(others, default=(0, 0)), together), strict=True):
                for kind, value in zip(("resident", "anonymous"), values, strict=True):
                    key = f"{name}, {kind}"
                    self.peaks_mb[key] = max(self.peaks_mb.get(key, 0.0), value / 1000)


if __name__ == "__main__":
    main()
