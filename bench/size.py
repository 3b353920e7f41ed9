"""One sample of many records through a pool whose devices cost nothing: memory and speed against its size.

    PYTHONPATH=workflow/scripts .venv/bin/python bench/size.py [--records N ...] [--kind proteins|contigs]

Everything but the devices is real (:mod:`feed`): reading, parts, blocks, the joined file. The model is a description
of ESM-2 8M, whose vectors are small, so that the disk is not what is measured. Memory is read from /proc every half
second: resident, and its anonymous part, which is what a process holds itself.
"""

import argparse
import tempfile
import threading
from pathlib import Path

import feed
import machine
import models
import numpy as np
import psutil  # type: ignore[import-untyped]
import samples
from report import Report

RECORDS = (200_000, 1_000_000)
RESIDUES_AA = 30
CONTIG_BP = 500
SAMPLED_S = 0.5


def main() -> None:
    """Measure the chosen sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", nargs="+", type=int, default=RECORDS)
    parser.add_argument("--kind", choices=("proteins", "contigs"), default="proteins")
    parser.add_argument("--directory", type=Path, help="where the files may lie for the run")
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    report = Report(f"size-{arguments.kind}", machine.describe("cpu"), arguments.results)
    for records in arguments.records:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
            measure(report, records, arguments.kind, Path(scratch))


def measure(report: Report, records: int, kind: str, directory: Path) -> None:
    """One sample of so many records, by a pool of its own."""
    path = write_sample(directory / "sample.fasta", records, kind)
    model = directory / "esm2"
    feed.write_description(models.describe("esm", models.esm2_architecture("esm2_t6_8M_UR50D")), model)
    program = [str(Path(feed.__file__))]
    with samples.serving(directory / "pool", {"esm2": model}, program, device="cpu", threads=2) as client:
        watch = Watch(client.server.pid)
        seconds, (receipt,) = client.embed([path], kind)
        supervisor_s = sum(psutil.Process(client.server.pid).cpu_times()[:2])
        watch.stop()
    section = f"{records:,} {kind}"
    report.add(section, "rows", receipt.counts["rows"])
    report.add(section, "records a second", records / seconds)
    report.add(section, "CPU of the supervisor", supervisor_s / receipt.counts["rows"] * 1e6, "us a row")
    for name, peak_mb in watch.peaks_mb.items():
        report.add(section, f"{name}, peak", peak_mb, "MB")


def write_sample(path: Path, records: int, kind: str) -> Path:
    """Write a file of records that are all different."""
    chance = np.random.default_rng(11)
    letters, length = (b"ACGT", CONTIG_BP) if kind == "contigs" else (samples.RESIDUES.encode(), RESIDUES_AA)
    alphabet = np.frombuffer(letters, np.uint8)
    with open(path, "wb") as file:
        for start in range(0, records, 10_000):
            texts = alphabet[chance.integers(0, len(alphabet), (min(10_000, records - start), length))]
            file.writelines(b">r%d\n%s\n" % (start + row, text.tobytes()) for row, text in enumerate(texts))
    return path


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
            found = {"supervisor": machine.memory_kib(self._process.pid)}
            others = [machine.memory_kib(child.pid) for child in self._process.children(recursive=True)]
            found["largest reader"] = max(others, default=(0, 0))
            found["all together"] = tuple(map(sum, zip(found["supervisor"], *others, strict=True)))
            for name, values in found.items():
                for kind, value in zip(("resident", "anonymous"), values, strict=True):
                    key = f"{name}, {kind}"
                    self.peaks_mb[key] = max(self.peaks_mb.get(key, 0.0), value / 1000)


if __name__ == "__main__":
    main()
