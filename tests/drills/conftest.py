"""Faults for real processes, and what the drills run them in: pools of their own, and Snakemake on projects.

The package knows nothing of faults. A :class:`Fault` travels as ``sitecustomize.py`` on the PYTHONPATH: in the
processes that a pool spawns, and in no other, it wraps one function of the package, and where a marker goes through
that function the process does the deed for real: it kills itself, hangs, raises what CUDA would, or waits for the test.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from holdfast.models.registry import load_tokenizer, read_prepared
from holdfast.pool.settings import PoolSettings
from holdfast.results.embeddings import Embeddings, read_embeddings
from holdfast.run.client import submit_jobs
from holdfast.spool.job import Manifest, Receipt, make_manifest
from holdfast.spool.spool import Spool
from holdfast.spool.state import PoolState, read_state, state_path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # `pytest tests/drills` alone imports no conftest but this one

from tests.workflow.conftest import SCRIPTS, Project, models, project  # noqa: E402

__all__ = ["models", "project"]

LONG_S = 300  # far more than anything takes, so that only what hangs is ended
PROCESSES_END_S = 10
CONSUMERS_NOTICE_S = 15
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"

INJECTION = """
import functools, importlib.machinery, json, os, resource, signal, sys, time
from pathlib import Path

HERE = Path(__file__).parent
PLACES = {
    "load": ("holdfast.worker", "start"),
    "embed": ("holdfast.worker", "embed"),
    "encode": ("holdfast.worker", "Worker", "embed"),
    "read": ("holdfast.reader", "read_sample"),
    "finish": ("holdfast.reader", "finish_sample"),
}


def concerns(fault, arguments):
    if fault["place"] == "embed":
        return bytes.fromhex(fault["marker"]) in arguments[1].tobytes()
    if fault["place"] == "encode":
        return len(arguments[2]) > int(fault["marker"])
    return fault["marker"] in ("", arguments[0].name if fault["place"] == "load" else arguments[0].sample)


def do(fault, arguments):
    if fault["deed"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault["deed"] == "hang":
        time.sleep(1e6)
    elif fault["deed"] == "raise":
        raise RuntimeError(fault["words"])
    elif fault["deed"] == "distrust":
        sys.modules["holdfast.worker"].SELF_TEST_TOLERANCE["fp32"] = -1.0
    elif fault["deed"] == "delete":
        os.unlink(arguments[0].fasta)
    elif fault["deed"] == "slow":
        time.sleep(float(fault["words"]))
    elif fault["deed"] == "wait":
        (HERE / "arrived").touch()
        while not (HERE / "released").exists():
            time.sleep(0.01)
    elif fault["deed"] == "note":
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        tokens = len(arguments[1]) if fault["place"] == "embed" else 0
        with open(HERE / "notes", "a") as file:
            file.write(f"{peak_bytes} {tokens}\\n")


def wrap(function, fault):
    def faulty(*arguments):
        struck = concerns(fault, arguments)
        if struck and not fault["after"]:
            do(fault, arguments)
        result = function(*arguments)
        if struck and fault["after"]:
            do(fault, arguments)
        return result

    faulty.__module__, faulty.__qualname__ = function.__module__, function.__qualname__
    return faulty


class Injector:
    def find_spec(self, name, path, target=None):
        faults = [fault for fault in FAULTS if PLACES[fault["place"]][0] == name]
        if not faults:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def execute_and_inject(module):
            execute(module)
            for fault in faults:
                *owners, name = PLACES[fault["place"]][1:]
                owner = functools.reduce(getattr, owners, module)
                setattr(owner, name, wrap(getattr(owner, name), fault))

        spec.loader.exec_module = execute_and_inject
        return spec


if "--multiprocessing-fork" in sys.orig_argv:
    FAULTS = json.loads((HERE / "faults.json").read_text())
    sys.meta_path.insert(0, Injector())
"""


@dataclass(frozen=True)
class Fault:
    """What goes wrong in processes of a pool.

    Attributes:
        place: ``load``, ``embed`` and, inside that, ``encode`` in workers, ``read`` and ``finish`` in readers.
        deed: ``kill`` (SIGKILL to itself), ``hang``, ``raise`` (a RuntimeError), ``distrust`` (let the self-test
            fail), ``delete`` (the sample's file), ``slow``, ``wait`` (for the test, see :meth:`Injection.wait_for`),
            ``note`` (the process's peak of memory and the tokens of the batch).
        marker: For ``embed`` tokens in the batch, as hexadecimal digits; for ``encode`` how many tokens go well;
            for ``load`` a device's name, for readers a sample's. Empty for every one.
        words: Message of the error, or seconds to be slow.
        after: Whether it goes wrong behind the function, not before it.
    """

    place: str
    deed: str
    marker: str = ""
    words: str = ""
    after: bool = False


class Injection:
    """Faults on their way into processes.

    Attributes:
        environment: Variables of the process that starts the pool.
    """

    def __init__(self, directory: Path, *faults: Fault) -> None:
        """Write the faults to a new directory."""
        directory.mkdir()
        self._directory = directory
        (directory / "sitecustomize.py").write_text(INJECTION)
        (directory / "faults.json").write_text(json.dumps([asdict(fault) for fault in faults]))
        self.environment = {"PYTHONPATH": str(directory)}

    def wait_for(self) -> None:
        """Wait until a process has come to a fault that waits."""
        eventually((self._directory / "arrived").exists)

    def release(self) -> None:
        """Let it go on."""
        (self._directory / "released").touch()

    def notes(self) -> list[list[int]]:
        """What processes noted: their peak of memory in bytes, and the tokens of the batch in ``embed``."""
        return [[int(word) for word in line.split()] for line in (self._directory / "notes").read_text().splitlines()]


def eventually(condition: Callable[[], object], limit_s: float = LONG_S) -> None:
    """Wait for a condition; it must come true."""
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def token_marker(models: Path, protein: str) -> str:
    """The tokens of a protein's residues, as they stand in a batch."""
    numbers, _ = load_tokenizer("esm2", models / "esm2")([protein])
    return numbers[1:-1].astype(np.int16).tobytes().hex()


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
        told: dict[str, Any] = {"device": "cpu", "threads": 1, **changed}
        names = {model: str(models / model) for model in ("esm2", "dnabert_s")}
        PoolSettings(models=names, **told).write(directory / "pool.yaml")
        arguments = ["--config", directory / "pool.yaml", "--spool", self.root, "--endpoint", self.endpoint]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command([sys.executable, str(SCRIPTS / "entry.py"), "serve", *map(str, arguments)]),
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
                stdout=log,
                stderr=log,
            )
        eventually(lambda: self.endpoint.exists() or self.process.poll() is not None)
        self._threads = ThreadPoolExecutor(32)

    @property
    def spool(self) -> Spool:
        """Its spool."""
        return Spool(self.root)

    @property
    def state(self) -> PoolState:
        """What it says of itself."""
        announced = read_state(self.endpoint)
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
        digests = {model: read_prepared(self.models / model).weights_sha256 for model in ("esm2", "dnabert_s")}
        return make_manifest(sample, kind, str(path), 500, digests, "auto", "float32")

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
    """Two samples' rows are the same, bit for bit, but for the ids of ``without``, which only the second has."""
    kept = [row for row, name in enumerate(expected.ids) if name not in without]
    assert len(kept) == len(expected.ids) - len(without)
    assert found.ids == [expected.ids[row] for row in kept]
    assert found.records.ids == expected.records.ids
    assert np.array_equal(found.sha256, expected.sha256[kept])
    for model, matrix in expected.matrices.items():
        assert np.array_equal(np.asarray(found.matrices[model]), np.asarray(matrix)[kept])


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
        for pid in processes_in(self.project.directory):
            with suppress(psutil.NoSuchProcess):  # ended meanwhile
                process = psutil.Process(pid)
                program, *words = process.cmdline() or [""]
                if not program.endswith("sh") and any("serve_pool.py" in word for word in words):
                    found.append(process)
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
        for pid in [run.process.pid, *processes_in(run.project.directory)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.wait()


def blocks(spool: Path) -> list[Path]:
    """The blocks in a spool; unlike ``glob``, walking minds no directory that goes meanwhile."""
    return [
        Path(directory) / name
        for directory, _, names in os.walk(spool / "blocks")
        for name in names
        if name.endswith(".npy")
    ]


def processes_of(pool: psutil.Process, with_torch: bool) -> list[psutil.Process]:
    """The workers of a pool, or its readers; one that is just ending is none."""
    found = []
    for child in pool.children():
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            torch = "libtorch" in Path(f"/proc/{child.pid}/maps").read_text()
            if "--multiprocessing-fork" in child.cmdline() and torch == with_torch:
                found.append(child)
    return found


def processes_in(directory: Path) -> list[int]:
    """Ids of the living processes that work in a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(directory):
                found.append(int(process.name))
        except OSError:
            continue
    return found
