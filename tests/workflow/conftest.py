"""Projects for the tests of the workflow: directories with a config, a sample sheet and data, run by real Snakemake.

A test asks the fixture ``project`` for a :class:`Project`, configures it, runs it and looks at what ran and at the
results. Models are synthetic and prepared once a session, for all xdist workers. No run sees a GPU or the network, and
after every test no process may be left in any of its projects.
"""

import fcntl
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas  # type: ignore[import-untyped]
import pytest
import yaml
from holdfast.run.calling import MANY

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "workflow" / "scripts"
HOLDFAST = (sys.executable, str(SCRIPTS / "entry.py"))
DEMO = REPOSITORY / "demo"
TIMEOUT_S = 600  # far more than anything takes, so that only what hangs is ended
PROCESSES_END_S = 300

# Widths of synthetic esm2_t6_8M_UR50D and dnabert_s_tiny.
WIDTHS = {"esm2": 320, "dnabert_s": 96}
MEANS = {"esm2": "esm2/6/mean", "dnabert_s": "dnabert_s/2/mean"}
"""Names of their matrices where nothing is asked for."""
AFTERWARDS = ("list_failures", "summarize", "draw", "check_samples", "all")
"""Jobs that run once when all samples have a receipt."""


@dataclass(frozen=True)
class Run:
    """One finished run of Snakemake.

    Attributes:
        returncode: Its exit status.
        text: What it wrote to the terminal.
        jobs: The jobs that finished well, sorted: the rule, and the sample or model if it has one (``collect a``).
    """

    returncode: int
    text: str
    jobs: list[str]


class Project:
    """A working directory of the workflow."""

    def __init__(self, directory: Path, models: Path, repository: Path = REPOSITORY) -> None:
        """Make the directory.

        Args:
            directory: Where.
            models: Directory with a prepared ``esm2`` and ``dnabert_s``, which the config names.
            repository: The checkout whose Snakefile is run.
        """
        self.directory = directory
        self.repository = repository
        self.models = {model: {"weights": str(models / model)} for model in WIDTHS}
        for name in ("config", "data"):
            (directory / name).mkdir(parents=True)
        self.configure()

    def configure(self, **config: object) -> None:
        """Write ``config/config.yaml`` anew; ``samples`` and ``models`` have defaults."""
        content = {"samples": "config/samples.tsv", "models": self.models, **config}
        (self.directory / "config" / "config.yaml").write_text(yaml.safe_dump(content))

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file below the directory."""
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def write_sheet(self, *rows: Sequence[str]) -> None:
        """Write the sample sheet; a row is sample, fasta, kind and label, of which the last two may be left out."""
        lines = [("sample", "fasta", "kind", "label"), *rows]
        self.write("config/samples.tsv", "".join("\t".join(line) + "\n" for line in lines))

    def run(self, *arguments: str, cores: int = 2, **variables: str) -> Run:
        """Run Snakemake to its end, in a process of its own; ``variables`` are added to its environment.

        The terminal is a file: a process that outlives Snakemake cannot hold this up, it is found by
        :meth:`processes` instead.
        """
        command = [str(Path(sys.executable).with_name("snakemake")), "-s", f"{self.repository}/workflow/Snakefile"]
        command += ["-d", str(self.directory), "--cores", str(cores), *arguments]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        environment = {**inherited, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **variables}
        terminal = self.directory / "terminal.txt"
        with open(terminal, "wb") as file:
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, timeout=TIMEOUT_S
            )
        text = terminal.read_text()
        return Run(status.returncode, text, _finished_jobs(text))

    def path(self, name: str) -> Path:
        """A file below the directory."""
        return self.directory / name

    def read(self, name: str) -> str:
        """Text of a file below the directory."""
        return self.path(name).read_text()

    def table(self, name: str) -> pandas.DataFrame:
        """A table of the results: cells as written, quotes and NA included."""
        return pandas.read_csv(
            self.path(f"results/{name}"), sep="\t", quoting=3, dtype=str, keep_default_na=False, encoding="utf-8"
        )

    def processes(self) -> list[str]:
        """Command lines of living processes that work in this directory: pool, workers, readers, consumers."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if Path(os.readlink(process / "cwd")).is_relative_to(self.directory):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def processes_left(self) -> list[str]:
        """The processes that do not end by themselves after a run."""
        deadline = time.monotonic() + PROCESSES_END_S
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found


NewProject = Callable[..., Project]


def _finished_jobs(text: str) -> list[str]:
    """Names of the jobs that Snakemake's output reports as finished; a consumer is named for each of its samples."""
    names: dict[str, list[str]] = {}
    finished = []
    rule = number = receipts = ""
    for line in text.splitlines():
        if match := re.match(r"\s*(?:local)?(?:rule|checkpoint) (\w+):$", line):
            rule, receipts = match[1], ""
        elif rule.startswith("embed_") and (match := re.match(r"\s*output: (.*)$", line)):
            receipts = match[1]
        elif match := re.match(r"\s*jobid: (\d+)$", line):
            number = match[1]
            samples = re.findall(r"results/([^/]+)/receipt\.json", receipts)
            names.setdefault(number, [f"embed {sample}" for sample in samples] or [rule])
        elif match := re.match(r"\s*wildcards: (\w+)=(\S+)$", line):
            names[number] = [rule if match[1] == "replica" else f"{rule} {match[2]}"]
        elif match := re.match(r"\s*Finished jobid: (\d+) \(Rule: (\w+)\)$", line):
            assert {name.split()[0] for name in names[match[1]]} == {re.sub(r"^embed_\d+$", "embed", match[2])}
            finished += names[match[1]]
    return sorted(finished)


def jobs(*samples: str, called: Sequence[str] = (), once: Sequence[str] = ()) -> list[str]:
    """The jobs that computing just these samples takes, as :attr:`Run.jobs` names them.

    Args:
        samples: Those that are embedded.
        called: Those that are classified and called, in one process where they are many.
        once: Jobs beyond the pool and :data:`AFTERWARDS` that run once.
    """
    each = [f"{rule} {sample}" for rule in ("embed", "collect") for sample in samples]
    each += [f"classify_contigs {sample}" for sample in called] + ["combine"] * bool(called)
    each += ["classify_small"] * (len(called) >= MANY)
    return sorted([*each, *once, "pool", *AFTERWARDS])


def fasta(records: Mapping[str, str]) -> str:
    """Records as FASTA text."""
    return "".join(f">{name}\n{sequence}\n" for name, sequence in records.items())


def stop_free_sequence(length_bp: int, seed: int) -> str:
    """Random C and G: no stop codon in any of the six frames."""
    return "".join(random.Random(seed).choices("CG", k=length_bp))


def closed_sequence(length_bp: int) -> str:
    """Repeats of TTAA, which put a stop codon into each of the six frames within 12 bp."""
    return ("TTAA" * length_bp)[:length_bp]


def embedded(models: Path, model: str, sequences: Sequence[str]) -> list[list[float]]:
    """Embeddings computed directly, each sequence alone: the mean of the residues (esm2), or of all tokens."""
    import torch
    from holdfast.models.registry import load_tokenizer, open_model, read_prepared

    encoder = open_model(models / model, "cpu", "fp32")
    tokenize = load_tokenizer(read_prepared(models / model), models / model)
    vectors = []
    for sequence in sequences:
        numbers, lengths = tokenize([sequence])
        states = encoder.encode(torch.from_numpy(numbers), lengths.tolist())
        vectors.append((states[1:-1] if model == "esm2" else states).mean(0).tolist())
    return vectors


def _once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Make a directory once a session, whichever xdist worker comes first; the others wait for it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / name).exists():
            making = root / f"{name}.making"
            making.mkdir()
            make(making)
            making.rename(root / name)
    return root / name


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the prepared synthetic models ``esm2`` and ``dnabert_s``."""

    def make(directory: Path) -> None:
        for model, architecture in (("esm2", "esm2_t6_8M_UR50D"), ("dnabert_s", "dnabert_s_tiny")):
            source, output = f"synthetic:{architecture}", str(directory / model)
            subprocess.run([*HOLDFAST, "prepare", source, "--output", output], check=True, timeout=TIMEOUT_S)

    return _once(tmp_path_factory, "models", make)


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one synthetic classifier: what ``virnucpro.py`` writes, and ``500_model.safetensors``."""

    def make(directory: Path) -> None:
        publish = [sys.executable, "-W", "ignore", REPOSITORY / "tests/results/virnucpro.py", str(sum(WIDTHS.values()))]
        subprocess.run([*publish, directory], check=True, timeout=TIMEOUT_S)
        pickled, converted = directory / "500_model.pth", directory / "500_model.safetensors"
        subprocess.run([*HOLDFAST, "convert-classifier", pickled, converted], check=True, timeout=TIMEOUT_S)

    return _once(tmp_path_factory, "classifiers", make)


@pytest.fixture
def project(tmp_path: Path, models: Path) -> Iterator[NewProject]:
    """A function that makes projects; after the test, none may have a living process."""
    made: list[Project] = []

    def new(name: str = "project", repository: Path = REPOSITORY) -> Project:
        made.append(Project(tmp_path / name, models, repository))
        return made[-1]

    yield new
    left = [command for entry in made for command in entry.processes_left()]
    assert left == []


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the workflow needs of this repository, below a directory with spaces in its name."""
    copy = tmp_path / "a checkout" / "hold fast"
    for name in ("workflow", "envs"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that makes of a directory what git finds at ``https://github.com/OWNER/holdfast``, with a tag."""

    def at_github(source: Path) -> None:
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{source}.insteadOf")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/OWNER/holdfast")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("GITHUB_TOKEN", raising=False)
        author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        for command in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "All"), ("tag", "v0.2.0")):
            subprocess.run(["git", *command], cwd=source, check=True)

    return at_github
