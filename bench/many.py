"""Thousands of tiny samples: the workflow against plain Snakemake with one trivial job a sample, on the same cores.

All are real runs of Snakemake from its start to its end: plain as it is, and with the scheduler of our profile.
The models are prepared and as small as they come, so that what is measured is what a sample costs beside its work.
"""

import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

SNAKEMAKE = Path(sys.executable).with_name("snakemake")
SNAKEFILE = Path(__file__).parents[1] / "workflow" / "Snakefile"
PROFILE = SNAKEFILE.parent / "profiles" / "default"
CORES = 2
RESIDUES_AA = 12
CONTIG_BP = 60
PLAIN = """
SAMPLES = range({samples})

rule all:
    input:
        expand("results/{{sample}}.txt", sample=SAMPLES),

rule trivial:
    output:
        "results/{{sample}}.txt",
    shell:
        "touch {{output}}"
"""


def run_plain(directory: Path, samples: int, *options: str) -> float:
    """Seconds that Snakemake takes for ``touch``, once a sample."""
    directory.mkdir()
    (directory / "Snakefile").write_text(PLAIN.format(samples=samples))
    began = time.perf_counter()
    _snakemake(directory, directory / "Snakefile", *options).check_returncode()
    return time.perf_counter() - began


def run_workflow(directory: Path, samples: int, config: dict[str, Any], kind: str) -> tuple[float, int]:
    """Run the workflow on tiny samples.

    Args:
        directory: Where; made.
        samples: How many, of one record each.
        config: All of the config but ``samples``.
        kind: ``proteins`` or ``contigs``.

    Returns:
        Seconds, and the most memory that all consumers took at once, in bytes (PSS: shared pages count once).
    """
    letters = random.Random(5)
    (directory / "data").mkdir(parents=True)
    (directory / "config").mkdir()
    alphabet, length, suffix = ("LAGVSERTIDPK", RESIDUES_AA, "faa") if kind == "proteins" else ("CG", CONTIG_BP, "fna")
    rows = ["sample\tfasta\tkind"]
    for number in range(samples):
        name = f"data/{number}.{suffix}"
        (directory / name).write_text(f">r{number}\n{''.join(letters.choices(alphabet, k=length))}\n")
        rows.append(f"s{number}\t{name}\t{kind}")
    (directory / "config" / "samples.tsv").write_text("\n".join(rows) + "\n")
    (directory / "config" / "config.yaml").write_text(yaml.safe_dump({"samples": "config/samples.tsv", **config}))
    ended = threading.Event()
    peaks = [0]
    watcher = threading.Thread(target=_watch, args=(directory, ended, peaks))
    watcher.start()
    began = time.perf_counter()
    try:
        status = _snakemake(directory, SNAKEFILE)
    finally:
        ended.set()
        watcher.join()
    if status.returncode:
        raise SystemExit(f"the workflow failed: {status.stderr[-2000:]}")
    return time.perf_counter() - began, max(peaks)


def _snakemake(directory: Path, snakefile: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [str(SNAKEMAKE), "-s", str(snakefile), "-d", str(directory), "--cores", str(CORES), "--quiet", "all"]
    return subprocess.run([*command, *options], capture_output=True, text=True)


def _watch(directory: Path, ended: threading.Event, peaks: list[int]) -> None:
    """Add up the consumers' memory twice a second."""
    while not ended.wait(0.5):
        total = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                if b"\0submit\0" in command and str(directory).encode() in (process / "environ").read_bytes():
                    sizes = re.findall(r"^Pss:\s+(\d+) kB", (process / "smaps_rollup").read_text(), re.MULTILINE)
                    total += sum(map(int, sizes)) * 1024
            except OSError:  # it has ended
                continue
        peaks.append(total)
