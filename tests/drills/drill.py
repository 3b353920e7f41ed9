"""Kill the real workflow at random moments, run it again, and compare with an undisturbed run.

    python tests/drills/drill.py --kills 1000 [--seed 1]

Victims are drawn at random: a worker, a reader, the supervisor, Snakemake, or all at once, by SIGKILL. A run that
fails is unlocked and started again; after a few kills it may finish. Then every row and value is compared, and the next
project begins, until the kills are used up.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"
sys.path[:0] = [str(ROOT), str(SCRIPTS)]

from holdfast.models.registry import read_prepared  # noqa: E402
from holdfast.results.embeddings import read_embeddings  # noqa: E402
from holdfast.spool.job import Request, make_request  # noqa: E402

from tests.drills.processes import (  # noqa: E402
    LONG_S,
    PROCESSES_END_S,
    eventually,
    is_supervisor,
    processes_in,
    processes_of,
)

MODELS = {"esm2": "synthetic:esm2_t6_8M_UR50D", "dnabert_s": "synthetic:dnabert_s_tiny"}
ASKED = {"layers": ["last"], "pooling": ["mean"], "long": None, "max_length": None}
VICTIMS = {"worker": 2, "reader": 2, "supervisor": 1, "snakemake": 1, "all": 1}  # the last three end the run
SAMPLES_A_FILE = 2
KILLS_A_PROJECT = 8
PAUSE_S = (0.1, 3.0)
NEAR = 1e-5
NEAR_CALL = 1e-2


@dataclass
class Outcome:
    """What the drill found: all but kills, runs and repeated should be zero, and repeated be small."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    left: int = 0
    crashes: int = 0
    repeated: int = 0

    @property
    def well(self) -> bool:
        """Whether everything promised was kept."""
        return not (self.lost or self.doubled or self.changed or self.left or self.crashes)

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {victim}" for victim, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills ({kills}) in {self.runs} runs: {self.lost} rows lost, {self.doubled} doubled, "
            f"{self.changed} changed, {self.left} processes left, {self.crashes} supervisors crashed, "
            f"{self.repeated} batches computed again"
        )


def prepare_models(directory: Path) -> None:
    """Prepare the two small synthetic models below a directory."""
    for model, source in MODELS.items():
        prepare = [sys.executable, str(SCRIPTS / "entry.py"), "prepare", source, "--output", str(directory / model)]
        subprocess.run(prepare, check=True, capture_output=True)


def make_requests(directory: Path, kind: str) -> dict[str, Request]:
    """What a job of a kind asks of the models prepared below a directory: a mean over the last layer."""
    known = {model: read_prepared(directory / model) for model in MODELS}
    return {model: make_request(model, prepared, ASKED) for model, prepared in known.items() if prepared.fits(kind)}


def make_project(directory: Path, models: Path) -> None:
    """Cut half of each of the demo's files into samples, so that a run has many jobs, and make batches small."""
    (directory / "config").mkdir(parents=True)
    lines = ["sample\tfasta\tkind\tlabel"]
    for name, label in (("bacterium_train", "non-viral"), ("phage_train", "virus"), ("bacterium_heldout", "")):
        (source,) = (ROOT / "demo" / "data").glob(f"{name}.fna*")
        text = subprocess.run(["zcat", "-f", str(source)], capture_output=True, text=True, check=True).stdout
        records = [f">{record}" for record in text.split(">")[1:]]
        for part in range(SAMPLES_A_FILE):
            path = directory / f"{name}_{part}.fna"
            path.write_text("".join(records[part :: 2 * SAMPLES_A_FILE]))
            lines.append(f"{name}_{part}\t{path.name}\tcontigs\t{label}")
    (directory / "config" / "samples.tsv").write_text("\n".join(lines) + "\n")
    (directory / "config" / "config.yaml").write_text(
        "samples: config/samples.tsv\n"
        f"models:\n  esm2: {{weights: {models / 'esm2'}}}\n  dnabert_s: {{weights: {models / 'dnabert_s'}}}\n"
        "store_dtype: float32\npool: {tokens_per_batch: 1024, device: cpu}\n"
    )


def command(directory: Path, *more: str) -> list[str]:
    """The command line of the workflow on a project, without the report, which is not compared."""
    snakemake = [str(Path(sys.executable).parent / "snakemake"), "-s", str(ROOT / "workflow" / "Snakefile")]
    return [*snakemake, "-d", str(directory), "--cores", "2", "--omit-from", "draw", *more]


def victims(kind: str, main: psutil.Process) -> list[psutil.Process]:
    """The processes to kill; none if there is no such one now."""
    if kind == "snakemake":
        return [main]
    children = main.children(recursive=True)
    if kind == "all":
        return [main, *children]
    pools = [child for child in children if is_supervisor(child.cmdline())]
    if kind == "supervisor":
        return pools
    return [process for pool in pools for process in processes_of(pool, with_torch=kind == "worker")][:1]


def kill(kind: str, run: "subprocess.Popen[bytes]", pause_s: float) -> bool:
    """Wait for a victim, then a moment, and kill it; False if the run ends before that."""
    main = psutil.Process(run.pid)
    paused = False
    while run.poll() is None:
        with suppress(psutil.Error):
            doomed = victims(kind, main)
            if doomed and paused:
                for process in doomed:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                return True
            paused = paused or bool(doomed)
        time.sleep(pause_s if paused else 0.05)
    return False


def disturbed_run(directory: Path, kills: int, chance: random.Random, outcome: Outcome) -> bool:
    """One run with up to ``kills`` kills at random moments; whether it succeeded."""
    outcome.runs += 1
    pool_log = directory / "logs" / "pool.0.log"
    pool_log.unlink(missing_ok=True)
    with open(directory / f"run-{outcome.runs}.log", "w") as log:
        run = subprocess.Popen(command(directory), stdout=log, stderr=log, start_new_session=True)
        while kills and run.poll() is None:
            (kind,) = chance.choices([*VICTIMS], [*VICTIMS.values()])
            if kill(kind, run, chance.uniform(*PAUSE_S)):
                outcome.kills[kind] += 1
                kills -= 1
        try:
            run.wait(LONG_S)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            raise SystemExit(f"a run hangs: {log.name}") from None
    if pool_log.exists():
        text = pool_log.read_text()
        outcome.repeated += text.count(" over a batch of ")
        outcome.crashes += "Traceback" in text
    return run.returncode == 0


def wait_for_quiet(directory: Path, outcome: Outcome) -> None:
    """Wait until no process of a run is left; that they end by themselves is promised, so count and kill the others."""
    with suppress(AssertionError):
        eventually(lambda: not processes_in(directory.resolve()), PROCESSES_END_S)
    left = processes_in(directory.resolve())
    outcome.left += len(left)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def compare(directory: Path, reference: Path, outcome: Outcome) -> None:
    """Count rows that are lost, doubled or changed against an undisturbed run."""
    for path in sorted((reference / "results").rglob("*")):
        mine = directory / "results" / path.relative_to(reference / "results")
        if path.suffix == ".h5":
            compare_embeddings(mine, path, outcome)
        elif path.suffix == ".tsv" and path.name not in ("summary.tsv", "failures.tsv"):
            expected, found = path.read_text().splitlines(), mine.read_text().splitlines() if mine.exists() else []
            outcome.lost += max(0, len(expected) - len(found))
            outcome.doubled += max(0, len(found) - len(expected))
            outcome.changed += sum(not same_line(a, b) for a, b in zip(expected, found, strict=False))


def same_line(mine: str, theirs: str) -> bool:
    """Whether two lines of a table are the same; of numbers, as near as calls by two trainings on near vectors are."""
    cells = mine.split("\t"), theirs.split("\t")
    return len(cells[0]) == len(cells[1]) and all(same_cell(*pair) for pair in zip(*cells, strict=True))


def same_cell(mine: str, theirs: str) -> bool:
    """Whether two cells are the same text or near numbers."""
    with suppress(ValueError):
        return mine == theirs or abs(float(mine) - float(theirs)) <= NEAR_CALL
    return False


def compare_embeddings(mine: Path, theirs: Path, outcome: Outcome) -> None:
    """Compare two embeddings files row by row, as near as fp32 is.

    A CPU's library may choose how it multiplies by the shape of a batch, and a kill changes which sequences share one;
    bit-equal they are on CUDA, whose kernels do not.
    """
    expected = read_embeddings(theirs)
    if not mine.exists():
        outcome.lost += len(expected.ids)
        return
    found = read_embeddings(mine)
    outcome.lost += len(set(expected.ids) - set(found.ids))
    outcome.doubled += len(found.ids) - len(set(found.ids))
    if found.ids != expected.ids:
        outcome.changed += 1
        return
    for model, matrix in expected.matrices.items():
        near = np.isclose(np.asarray(found.matrices[model]), np.asarray(matrix), rtol=NEAR, atol=NEAR)
        outcome.changed += int((~near).any(1).sum())


def drill(work: Path, models: Path, kills: int, seed: int) -> Outcome:
    """Run undisturbed, then disturbed until the kills are used up, then to the end; compare."""
    chance, outcome = random.Random(seed), Outcome()
    reference, disturbed = work / "undisturbed", work / "disturbed"
    make_project(reference, models)
    subprocess.run(command(reference, "--quiet", "all"), check=True, capture_output=True)
    while outcome.kills.total() < kills:
        shutil.rmtree(disturbed, ignore_errors=True)
        make_project(disturbed, models)
        wanted = min(kills, outcome.kills.total() + KILLS_A_PROJECT)
        while not disturbed_run(disturbed, wanted - outcome.kills.total(), chance, outcome):
            wait_for_quiet(disturbed, outcome)
            subprocess.run(command(disturbed, "--unlock"), check=True, capture_output=True)
        wait_for_quiet(disturbed, outcome)
        compare(disturbed, reference, outcome)
    return outcome


def main() -> None:
    """Print one line; exit 1 if a row was lost, doubled or changed, a process left, or a supervisor crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drill-") as work:
        models = Path(work) / "models"
        prepare_models(models)
        outcome = drill(Path(work), models, arguments.kills, arguments.seed)
    print(outcome)
    raise SystemExit(not outcome.well)


if __name__ == "__main__":
    main()
