"""Send many small jobs through one pool and watch its memory, open files and spool.

    python tests/drills/soak.py --jobs 10000 --output docs/soak

Writes OUTPUT.tsv and OUTPUT.svg for docs/endurance.md. A job is a piece of phage lambda of two kilobases; ids
and sequences differ from job to job.
"""

import argparse
import gzip
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import altair
import pandas  # type: ignore[import-untyped]
import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"
sys.path[:0] = [str(ROOT), str(SCRIPTS)]

from holdfast.pool.settings import pool_settings  # noqa: E402
from holdfast.spool.job import Manifest, make_manifest  # noqa: E402
from holdfast.spool.spool import Spool  # noqa: E402

from tests.drills.drill import make_requests, prepare_models  # noqa: E402

OPEN_JOBS = 50
LENGTH_BP = 2000
WARM_UP = 0.2


def make_jobs(work: Path, models: dict[str, str], count: int) -> Iterator[Manifest]:
    """Jobs on pieces of phage lambda, their files written as they are asked for."""
    with gzip.open(ROOT / "tests" / "data" / "frames" / "NC_001416_1_20000.fna.gz", "rt") as file:
        genome = "".join(line.strip() for line in file if not line.startswith(">"))
    chance = random.Random(1)
    requests = make_requests(Path(next(iter(models.values()))).parent, "contigs")
    for number in range(count):
        start = chance.randrange(len(genome) - LENGTH_BP)
        path = work / "fasta" / f"{number}.fna"
        path.write_text(f">piece_{number}\n{genome[start : start + LENGTH_BP]}\n")
        yield make_manifest(f"s{number}", "contigs", str(path), 500, 1, requests, "fp32", "float16")


def measure(pool: psutil.Process, spool: Path, done: int, began: float) -> dict[str, float]:
    """Memory in MB and open files of the supervisor and its processes, and files in the spool."""
    children = pool.children()
    return {
        "jobs": done,
        "seconds": round(time.monotonic() - began, 1),
        "supervisor_mb": pool.memory_info().rss / 1e6,
        "worker_mb": max((child.memory_info().rss for child in children), default=0) / 1e6,
        "open_files": pool.num_fds() + sum(child.num_fds() for child in children),
        "spool_files": sum(len(directories) + len(files) for _, directories, files in os.walk(spool)),
    }


def soak(work: Path, jobs: int) -> pandas.DataFrame:
    """Run the jobs, at most OPEN_JOBS at once, as consumers would, each taking its result away; a row every 1%."""
    prepare_models(work / "models")
    models = {model: str(work / "models" / model) for model in ("esm2", "dnabert_s")}
    (work / "fasta").mkdir()
    settings = {"models": models, "precision": "fp32", "device": "cpu", "threads": 2, "tokens_per_batch": 4096}
    pool_settings(settings, "the soak").write(work / "pool.yaml")
    spool = Spool(work / "spool")
    arguments = ["--config", work / "pool.yaml", "--spool", spool.root, "--endpoint", work / "endpoint.json"]
    serve = [sys.executable, str(SCRIPTS / "entry.py"), "serve", *map(str, arguments)]
    with open(work / "pool.log", "w") as log:
        pool = subprocess.Popen(serve, stdout=log, stderr=log)
    process, rows, began = psutil.Process(pool.pid), [], time.monotonic()
    waiting: dict[str, Manifest] = {}
    source, done = make_jobs(work, models, jobs), 0
    while done < jobs:
        while len(waiting) < OPEN_JOBS and (job := next(source, None)) is not None:
            spool.submit(job)
            waiting[job.job] = job
        for name in [name for name in waiting if spool.receipt(name)]:
            outcome = spool.receipt(name)
            if outcome is None or outcome.state != "done":
                raise SystemExit(f"job {name} failed: {outcome}")
            job = waiting.pop(name)
            spool.forget({job.sample: ""})
            Path(job.fasta).unlink()
            done += 1
            if done % max(1, jobs // 100) == 0:
                rows.append(measure(process, spool.root, done, began))
        if pool.poll() is not None:
            raise SystemExit(f"the pool has ended: {(work / 'pool.log').read_text()}")
        time.sleep(0.02)
    (work / "endpoint.json").unlink()
    if pool.wait(60) != 0:
        raise SystemExit(f"the pool ended with {pool.returncode}")
    return pandas.DataFrame(rows)


def draw(rows: pandas.DataFrame, path: Path) -> None:
    """Memory, open files and spool files over jobs, each in a panel that begins at zero."""
    titles = {
        "supervisor_mb": "supervisor, MB",
        "worker_mb": "worker, MB",
        "open_files": "open files",
        "spool_files": "files in the spool",
    }
    panels = [
        altair.Chart(rows, width=360, height=120)
        .mark_line()
        .encode(x=altair.X("jobs:Q", title="jobs done"), y=altair.Y(f"{name}:Q", title=title).scale(zero=True))
        for name, title in titles.items()
    ]
    altair.vconcat(altair.hconcat(*panels[:2]), altair.hconcat(*panels[2:])).save(path)


def main() -> None:
    """Print how each figure changed from the end of the warm-up to the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "soak")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as work:
        rows = soak(Path(work), arguments.jobs)
    arguments.output.parent.mkdir(exist_ok=True)
    rows.round(2).to_csv(arguments.output.with_suffix(".tsv"), sep="\t", index=False)
    draw(rows, arguments.output.with_suffix(".svg"))
    warm = rows[rows["jobs"] >= arguments.jobs * WARM_UP]
    third = max(1, len(warm) // 3)
    print(
        f"{arguments.jobs} jobs in {rows['seconds'].iloc[-1]:.0f} s; medians of the first and last third after warm-up:"
    )
    for name in ("supervisor_mb", "worker_mb", "open_files", "spool_files"):
        print(f"  {name}: {warm[name][:third].median():.1f} -> {warm[name][-third:].median():.1f}")


if __name__ == "__main__":
    main()
