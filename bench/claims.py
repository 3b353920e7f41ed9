"""Claims on a host with two GPUs or more: who gets which, what a crash leaves, what others without claims do.

``PYTHONPATH=workflow/scripts python3 bench/claims.py``, about three minutes on two GPUs. Makes its own model, needs no
network, changes no setting of a GPU. Every step is a check: what is not as promised ends the script with its name. The
last step, replicas and two runs of the workflow, needs Snakemake and is left out where that is missing.

On a machine without GPUs the same steps run on pretended ones:
``--program tests/pool/pretended_gpus.py`` with PRETENDED_GPUS as that file says.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import models
import torch
from holdfast.pool.hardware import host_gpus, read_card
from holdfast.pool.settings import pool_settings
from holdfast.spool.state import PoolState, read_state, state_path
from report import Report

ROOT = Path(__file__).parents[1]
ARCHITECTURE = "esm2_t33_650M_UR50D"
LONG_S = 240.0
SAMPLES = 8
CLAIMED = re.compile(r"claimed: (\S+) \((.*), ((?:GPU|MIG)-\S+)\)")
OCCUPY = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
taken = torch.empty(free - 2**30, dtype=torch.uint8, device="cuda")
print("taken", flush=True)
sys.stdin.read()
"""


class Pool:
    """A pool of its own spool, by ``holdfast serve``."""

    def __init__(self, directory: Path, program: Path, model: Path, mask: str | None = None, **settings: Any) -> None:
        """Start it; ``mask`` for CUDA_VISIBLE_DEVICES."""
        directory.mkdir()
        self.began = time.perf_counter()
        self.spool, self.endpoint, self.log = directory / "spool", directory / "endpoint.json", directory / "pool.log"
        pool_settings({"models": {"esm2": str(model)}, **settings}, "bench").write(directory / "pool.yaml")
        words = ["--config", directory / "pool.yaml", "--spool", self.spool, "--endpoint", self.endpoint]
        command = [sys.executable, str(program), "serve", *map(str, words)]
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": mask} if mask else {})}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    @property
    def state(self) -> PoolState | None:
        """What it says of itself."""
        announced = read_state(self.endpoint)
        return announced and (read_state(state_path(self.spool, announced.identity.pool)) or announced)

    @property
    def reason(self) -> str:
        """For whom it waits."""
        return self.state.reason if self.state else ""

    @property
    def ready(self) -> bool:
        """Whether its models are loaded."""
        return self.state is not None and self.state.state == "ready"

    @property
    def claimed(self) -> list[str]:
        """UUIDs of the GPUs that it has claimed, in its order."""
        return [found[2] for found in CLAIMED.findall(self.log.read_text())]

    def until(self, condition: Callable[[], object], what: str) -> float:
        """Seconds from the pool's start until something is so."""
        limit = time.perf_counter() + LONG_S
        while not condition():
            if self.process.poll() is not None or time.perf_counter() > limit:
                raise SystemExit(f"FAILED: {what}\n{self.log.read_text()}")
            time.sleep(0.02)
        return time.perf_counter() - self.began

    def end(self) -> None:
        """As Snakemake ends it."""
        self.process.terminate()
        self.process.wait(LONG_S)


def require(promise: str, kept: bool, report: Report, found: object = "yes") -> None:
    """Report a promise, or end."""
    if not kept:
        raise SystemExit(f"FAILED: {promise}: {found}")
    report.add("claims", promise, found)


def main() -> None:
    """Go through the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", type=Path, default=ROOT / "workflow/scripts/entry.py", help="what serves")
    parser.add_argument("--architecture", default=ARCHITECTURE)
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    given = parser.parse_args()
    pretended = "PRETENDED_GPUS" in os.environ
    report = Report("claims", machine.describe("cpu" if pretended else "cuda"), given.results)
    architecture = models.esm2_architecture(given.architecture)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        weights = models.make("esm", architecture, "cpu", torch.float16)
        model = models.write_prepared("esm", architecture, weights, directory / "esm2")
        pools: list[Pool] = []

        def start(name: str, mask: str | None = None, **settings: Any) -> Pool:
            pools.append(Pool(directory / name, given.program, model, mask, **settings))
            return pools[-1]

        try:
            spread_and_crash(report, start, given.program)
            if not pretended:
                memory_taken(report, start)
            if importlib.util.find_spec("snakemake") and not pretended:
                workflow(report, directory, model)
            else:
                report.add("claims", "replicas and two runs of the workflow", "left out")
        finally:
            for pool in pools:
                pool.process.kill()


def spread_and_crash(report: Report, start: Callable[..., Pool], program: Path) -> None:
    """Two pools side by side, a third that waits, a worker and a supervisor that are killed, one that wants both."""
    first, second = start("first", gpu=1), start("second", gpu=1)
    for pool in (first, second):
        report.add("claims", "start to claim, s", pool.until(lambda pool=pool: pool.claimed, "a claim"))  # type: ignore[misc]
    require("two pools have two GPUs", {*first.claimed} != {*second.claimed}, report, [first.claimed, second.claimed])
    for pool in (first, second):
        report.add("claims", "start to ready, s", pool.until(lambda pool=pool: pool.ready, "ready"))  # type: ignore[misc]
    mask = None if len(host_gpus()) <= 2 else "0,1"
    third = start("third", mask, gpu=1)
    third.until(lambda: third.reason, "a third that waits")
    named = all(f"process {pool.process.pid} of" in third.reason for pool in (first, second))
    require("a third waits and names both", named, report, third.reason)
    shown = subprocess.run([sys.executable, program, "status", "--host"], capture_output=True, text=True, check=True)
    print(shown.stdout, flush=True)
    require("status --host names both", all(str(p.process.pid) in shown.stdout for p in (first, second)), report)
    identity = first.claimed[0]
    card = read_card(identity)
    for child in Path(f"/proc/{first.process.pid}/task/{first.process.pid}/children").read_text().split():
        if b"multiprocessing.spawn" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), 9)
    time.sleep(3)
    require("who loses its worker keeps its place", not third.claimed and "waiting" in third.reason, report)
    killed = time.perf_counter()
    first.process.kill()
    first.process.wait()
    third.until(lambda: third.claimed, "the place of a pool that was killed")
    report.add("claims", "SIGKILL of a pool to the next one's claim, s", time.perf_counter() - killed)
    require("the next has the GPU of the one that was killed", third.claimed == [identity], report, third.claimed)
    third.until(lambda: third.ready, "the next one, ready")
    after = read_card(identity)
    if card and after:
        report.add(
            "claims",
            "free GiB there before and after",
            f"{card.free_bytes / 2**30:.1f}, {after.free_bytes / 2**30:.1f}",
        )
    both = start("both", mask, gpu=2)
    both.until(lambda: both.reason, "one that wants both and waits")
    third.end()
    time.sleep(3)
    require("who wants both takes none before", not both.claimed, report)
    second.end()
    report.add("claims", "gpu=2 claimed, s after its start", both.until(lambda: len(both.claimed) == 2, "both"))
    both.until(lambda: both.ready, "both ready")
    both.end()
    require("nobody holds anything at the end", not host_claims(program), report)


def host_claims(program: Path) -> list[str]:
    """Lines of ``holdfast status --host`` with a holder."""
    shown = subprocess.run([sys.executable, program, "status", "--host"], capture_output=True, text=True, check=True)
    return re.findall(r"process \d+", shown.stdout.replace("processes", ""))


def memory_taken(report: Report, start: Callable[..., Pool]) -> None:
    """A program without a claim fills GPU 0: a pool for that waits, a pool for both numbers takes the other."""
    command = [sys.executable, "-c", OCCUPY]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    filler = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if filler.stdout is None or filler.stdout.readline() != "taken\n":
        raise SystemExit("FAILED: GPU 0 could not be filled")
    try:
        other = start("other", "0,1", gpu=1)
        other.until(lambda: other.claimed, "the GPU that is free")
        require("a full GPU is passed over", "cuda:1" in other.log.read_text().partition("claimed: ")[2], report)
        only = start("only", "0", gpu=1)
        only.until(lambda: only.reason, "one that waits for memory")
        require("it says whose memory it waits for", "GiB free, the models need" in only.reason, report, only.reason)
    finally:
        filler.kill()
    report.add(
        "claims", "claimed once the memory is free, s after its start", only.until(lambda: only.claimed, "memory")
    )
    other.end()
    only.end()


def workflow(report: Report, directory: Path, model: Path) -> None:
    """One run of two replicas, then two runs at once, each by Snakemake."""
    letters = random.Random(3)
    for run, replicas in (("replicas", 2), ("one", 1), ("two", 1)):
        place = directory / run
        (place / "config").mkdir(parents=True)
        lines = ["sample\tfasta\tkind"]
        for number in range(SAMPLES):
            records = ("".join(letters.choices(models.VOCABULARY[4:24], k=300)) for _ in range(4000))
            text = "".join(f">r{row}\n{record}\n" for row, record in enumerate(records))
            (place / f"s{number}.faa").write_text(text)
            lines.append(f"s{number}\ts{number}.faa\tproteins")
        (place / "config/samples.tsv").write_text("\n".join(lines) + "\n")
        config = {"samples": "config/samples.tsv", "models": {"esm2": {"weights": str(model)}}}
        (place / "config/config.yaml").write_text(
            json.dumps({**config, "pool": {"replicas": replicas, "device": "cuda"}})
        )

    def begin(run: str, gpu: int) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "snakemake", "-s", ROOT / "workflow/Snakefile", "-d", directory / run]
        wanted = [f"results/s{number}/embeddings.h5" for number in range(SAMPLES)]
        words = ["--cores", "8", "--resources", f"gpu={gpu}", "--", *wanted]
        terminal = open(directory / f"{run}.txt", "wb")  # noqa: SIM115, for as long as the run takes
        return subprocess.Popen([*map(str, command), *words], stdout=terminal, stderr=terminal)

    def claims_of(run: str) -> list[str]:
        logs = sorted((directory / run / "logs").glob("pool.*.log"))
        return [found[2] for log in logs for found in CLAIMED.findall(log.read_text())]

    for runs, gpu in ((["replicas"], 2), (["one", "two"], 1)):
        processes = [begin(run, gpu) for run in runs]
        for run, process in zip(runs, processes, strict=True):
            if process.wait(LONG_S):
                raise SystemExit(f"FAILED: {run}\n{(directory / f'{run}.txt').read_text()}")
        found = [identity for run in runs for identity in claims_of(run)]
        require(f"{' and '.join(runs)}: two GPUs", len(found) == 2 and len({*found}) == 2, report, found)


if __name__ == "__main__":
    main()
