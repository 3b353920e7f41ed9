"""What the drills run: pools of their own, and Snakemake on projects, with or without :mod:`.faults`."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from holdfast.pool.settings import pool_settings
from holdfast.results.embeddings import Embeddings, read_embeddings
from holdfast.run.client import submit_jobs
from holdfast.spool.job import Manifest, Receipt, make_manifest
from holdfast.spool.spool import Spool
from holdfast.spool.state import PoolState, read_state, state_path

from tests.drills.drill import make_requests
from tests.drills.faults import Fault, Injection
from tests.drills.processes import (
    LONG_S,
    PROCESSES_END_S,
    blocks,
    eventually,
    is_supervisor,
    processes_in,
    processes_of,
)
from tests.workflow.conftest import HOLDFAST, Project, models, project

__all__ = ["models", "project"]

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def proteins(count: int, length_aa: int, seed: int) -> dict[str, str]:
    """Random proteins by name, all different."""
    letters = np.array(list(AMINO_ACIDS))[np.random.default_rng(seed).integers(0, 20, (count, length_aa))]
    return {f"p{number}": "".join(row) for number, row in enumerate(letters)}


class RunningPool:
    """``holdfast serve`` in a process of its own; its files are in ``directory``, the spool, too, if none is named."""

    def __init__(
        self,
        directory: Path,
        models: Path,
        environment: Mapping[str, str],
        spool: Path | None = None,
        endpoint: str = "endpoint.json",
        command: Callable[[list[str]], list[str]] = lambda usual: usual,
        **changed: Any,
    ) -> None:
        """Start it; ``command`` may make another command of the usual one, ``changed`` are settings."""
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.models = models
        self.root = spool or directory / "spool"
        self.endpoint = directory / endpoint
        self.endpoint.unlink(missing_ok=True)
        self.log = directory / "pool.log"
        names = {model: str(models / model) for model in ("esm2", "dnabert_s")}
        settings = {"models": names, "device": "cpu", "threads": 1, **changed}
        pool_settings(settings, "the test").write(directory / "pool.yaml")
        arguments = ["--config", directory / "pool.yaml", "--spool", self.root, "--endpoint", self.endpoint]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command([*HOLDFAST, "serve", *map(str, arguments)]),
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
                stdout=log,
                stderr=log,
            )
        eventually(lambda: self.endpoint.exists() or self.process.poll() is not None)
        self._announced = read_state(self.endpoint)
        self._threads = ThreadPoolExecutor(32)

    @property
    def spool(self) -> Spool:
        """Its spool."""
        return Spool(self.root)

    @property
    def state(self) -> PoolState:
        """What it says of itself."""
        announced = self._announced or read_state(self.endpoint)
        assert announced is not None
        return read_state(state_path(self.root, announced.identity.pool)) or announced

    def wait_until_ready(self) -> None:
        """Wait for the models to be loaded."""
        eventually(lambda: self.state.state != "starting")
        assert self.state.state == "ready", self.log.read_text()

    def progress(self, name: str) -> float:
        """A number of its published progress."""
        return float(getattr(self.state.progress, name))

    def restarts(self) -> int:
        """Workers that it has replaced."""
        return sum(device.restarts for device in self.state.progress.devices)

    def job(self, sample: str, path: Path, kind: str = "proteins") -> Manifest:
        """A job on a file, its embeddings to be stored in float32."""
        return make_manifest(sample, kind, str(path), 500, 1, make_requests(self.models, kind), "auto", "float32")

    def hand_in(self, job: Manifest) -> Future[Receipt]:
        """Submit a job through a consumer of its own; its receipt, or why there will be none."""
        output = self.directory / f"{job.sample}.json"
        return self._threads.submit(lambda: submit_jobs([job], self.spool, self.endpoint, [output])[0])

    def embed(self, *jobs: Manifest) -> dict[str, Receipt]:
        """Have jobs done at once; their receipts by sample."""
        waiting = [self.hand_in(job) for job in jobs]
        return {outcome.sample: outcome for outcome in (future.result(LONG_S) for future in waiting)}

    def processes(self, with_torch: bool) -> list[psutil.Process]:
        """Its workers, or its readers."""
        return processes_of(psutil.Process(self.process.pid), with_torch)

    def stop(self) -> None:
        """End it as Snakemake does; nothing of it may be left."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self.endpoint.unlink(missing_ok=True)
        try:
            self.process.wait(LONG_S)
        finally:
            self.process.kill()
        self._threads.shutdown()
        assert psutil.wait_procs(children, PROCESSES_END_S)[1] == []


def claims(pool: RunningPool) -> list[str]:
    """What a pool has claimed; its directory may go meanwhile."""
    name = pool.state.identity.pool
    return sorted(path.name for path in pool.root.glob(f"claimed/{name}/*.json"))


Serve = Callable[..., RunningPool]


@pytest.fixture
def serve(tmp_path: Path, models: Path) -> Iterator[Serve]:
    """Start pools; they are stopped at the end of the test."""
    pools: list[RunningPool] = []

    def start(*faults: Fault, name: str = "pool", **changed: Any) -> RunningPool:
        environment = changed.pop("environment", {})
        if faults:
            environment |= Injection(tmp_path / f"{name}-faults-{len(pools)}", *faults).environment
        pools.append(RunningPool(tmp_path / name, changed.pop("models", models), environment, **changed))
        return pools[-1]

    yield start
    for pool in pools:
        pool.stop()


def check_equal(found: Embeddings, expected: Embeddings, without: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Two samples' rows are the same but for the ids of ``without``, which only the second has.

    Values are as near as fp32 is, since a CPU's library may choose how it multiplies by the shape of a batch.
    """
    kept = [row for row, name in enumerate(expected.ids) if name not in without]
    assert len(kept) == len(expected.ids) - len(without)
    assert found.ids == [expected.ids[row] for row in kept]
    assert found.records.ids == expected.records.ids
    assert np.array_equal(found.sha256, expected.sha256[kept])
    for model, matrix in expected.matrices.items():
        tolerance = 1e-5 if matrix.dtype == np.float32 else 2e-3
        np.testing.assert_allclose(found.matrices[model], matrix[kept], rtol=tolerance, atol=tolerance)


def results_of(project: Project) -> dict[str, Embeddings]:
    """The embeddings of a project by sample."""
    return {path.parent.name: read_embeddings(path) for path in project.path("results").glob("*/embeddings.h5")}


class RunningSnakemake:
    """Snakemake at work on a project, in a session of its own, as in a terminal of its own."""

    def __init__(self, project: Project, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start it."""
        self.project = project
        command = [str(Path(sys.executable).with_name("snakemake")), "-s", f"{project.repository}/workflow/Snakefile"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        self._terminal = project.directory.with_name(f"{project.directory.name}-terminal.txt")
        with open(self._terminal, "w") as file:
            self.process = subprocess.Popen(
                [*command, "-d", str(project.directory), "--cores", "2", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**inherited, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **(environment or {})},
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What it has written to the terminal."""
        return self._terminal.read_text()

    def wait(self, limit_s: float = LONG_S) -> int:
        """Its exit status; a run that takes longer than it should is a failure."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(self.text) from None

    def supervisors(self) -> list[psutil.Process]:
        """The living pools of the project."""
        found = []
        for process in processes_in(self.project.directory):
            with suppress(psutil.NoSuchProcess):  # ended meanwhile
                found += [process] if is_supervisor(process.cmdline()) else []
        return found

    def wait_for_work(self) -> None:
        """Wait until the pool has written vectors."""
        eventually(lambda: blocks(self.project.path(".holdfast/spool")))


Launch = Callable[..., RunningSnakemake]


@pytest.fixture
def launch(project: Callable[..., Project]) -> Iterator[Launch]:
    """Start Snakemake on projects; what is left of a run when the test has ended is killed."""
    runs: list[RunningSnakemake] = []

    def start(some: Project, *arguments: str, environment: Mapping[str, str] | None = None) -> RunningSnakemake:
        runs.append(RunningSnakemake(some, *arguments, environment=environment))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        for process in processes_in(run.project.directory):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        run.process.wait()
