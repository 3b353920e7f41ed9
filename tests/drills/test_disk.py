"""Full disks, file systems that cannot be written, spools of somebody else: a clear end, and the next run goes on."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from holdfast.results.embeddings import Embeddings, read_embeddings

from tests.drills.conftest import Launch, RunningPool, RunningSnakemake, check_equal, proteins, results_of
from tests.drills.faults import Fault, Injection
from tests.workflow.conftest import NewProject, Project, fasta

SAMPLES = ("a", "b")
SMALL_KB = 640
NOBODY = 65534
NO_SPACE = "No space left on device"
READ_ONLY = "Read-only file system"

Mount = Callable[..., None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount file systems in memory, and mount them anew with other options; they are gone after the test."""
    mounted: list[Path] = []

    def at(directory: Path, options: str) -> None:
        command = ["mount", "-o", f"remount,{options}" if directory in mounted else options]
        directory.mkdir(parents=True, exist_ok=True)
        tried = subprocess.run([*command, "-t", "tmpfs", "tmpfs", directory], capture_output=True, text=True)
        if tried.returncode and directory not in mounted:
            pytest.skip(f"needs root to mount a file system: {tried.stderr.strip()}")
        assert tried.returncode == 0, tried.stderr
        mounted.append(directory)

    yield at
    for directory in set(mounted):
        subprocess.run(["umount", "--lazy", directory], check=True)


def with_samples(made: Project) -> Project:
    """Give a project two samples of proteins; their vectors take about 300 kB each."""
    made.configure(store_dtype="float32", pool={"device": "cpu", "tokens_per_batch": 1024})
    for seed, name in enumerate(SAMPLES):
        made.write(f"data/{name}.faa", fasta(proteins(240, 20, seed)))
    made.write_sheet(*((name, f"data/{name}.faa", "proteins") for name in SAMPLES))
    return made


@pytest.fixture
def some(project: NewProject) -> Project:
    """A project of two samples."""
    return with_samples(project())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, models: Path) -> dict[str, Embeddings]:
    """What comes out where there is room."""
    directory = tmp_path_factory.mktemp("roomy")
    made = with_samples(Project(directory / "project", models))
    pool = RunningPool(directory / "pool", models, {})
    outcomes = pool.embed(*(pool.job(name, made.path(f"data/{name}.faa")) for name in SAMPLES))
    found = {name: read_embeddings(outcome.embeddings) for name, outcome in outcomes.items()}
    pool.stop()
    return found


def check_end(run: RunningSnakemake, *words: str) -> None:
    """A run has failed, and without a traceback a line of its terminal says why and where."""
    assert run.wait() != 0
    text = run.text
    assert "Traceback" not in text
    assert [line for line in text.splitlines() if all(word in line for word in words)], text
    assert "died without a word" not in text
    log = run.project.path("logs/pool.0.log")
    assert not log.exists() or "Traceback" not in log.read_text()


def check_rerun(some: Project, expected: dict[str, Embeddings]) -> None:
    """With everything in order, the next run completes the results, and they are right."""
    run = some.run()
    assert run.returncode == 0, run.text
    found = results_of(some)
    assert sorted(found) == sorted(SAMPLES)
    for name in SAMPLES:
        check_equal(found[name], expected[name])


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(None, id="for the blocks"),
        pytest.param(Fault("finish", "wait", "b"), id="for the embeddings", marks=pytest.mark.thorough),
        pytest.param(Fault("finish", "wait", "b", after=True), id="for the receipt", marks=pytest.mark.thorough),
    ],
)
def test_a_spool_without_room_ends_the_run_and_the_next_one_goes_on(
    some: Project, launch: Launch, mount: Mount, tmp_path: Path, expected: dict[str, Embeddings], fault: Fault | None
) -> None:
    spool = some.path(".holdfast/spool")
    mount(spool, f"mode=700,size={SMALL_KB}k" if fault is None else "mode=700,size=64m")
    if fault is None:
        run = launch(some)
    else:
        injection = Injection(tmp_path / "faults", fault)
        run = launch(some, environment=injection.environment)
        injection.wait_for()
        fill(spool)
        injection.release()
    check_end(run, NO_SPACE, str(spool))
    (spool / "ballast").unlink(missing_ok=True)
    mount(spool, "size=64m")
    check_rerun(some, expected)


def fill(directory: Path) -> None:
    """Fill a file system to the last byte."""
    with open(directory / "ballast", "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(directory).f_bavail == 0


@pytest.mark.parametrize("state", [pytest.param("full", marks=pytest.mark.thorough), "read-only"])
def test_results_that_cannot_be_written_end_the_run_and_the_next_one_goes_on(
    some: Project, launch: Launch, mount: Mount, expected: dict[str, Embeddings], state: str
) -> None:
    results = some.path("results")
    mount(results, "size=64m")
    for name in SAMPLES:
        (results / name).mkdir()
    if state == "full":
        fill(results)
    else:
        mount(results, "ro")
    run = launch(some)
    check_end(run, NO_SPACE if state == "full" else READ_ONLY, "results")
    if state == "full":
        (results / "ballast").unlink()
    else:
        mount(results, "rw")
    check_rerun(some, expected)


@pytest.mark.thorough
def test_a_full_project_ends_the_run_and_the_next_one_goes_on(
    models: Path, launch: Launch, mount: Mount, tmp_path: Path, expected: dict[str, Embeddings]
) -> None:
    directory = tmp_path / "small"
    mount(directory, "size=64m")
    small = with_samples(Project(directory / "project", models))
    injection = Injection(tmp_path / "faults", Fault("finish", "wait", "b"))
    run = launch(small, environment=injection.environment)
    injection.wait_for()
    fill(directory)
    injection.release()
    check_end(run, NO_SPACE, str(small.directory))
    (directory / "ballast").unlink()
    check_rerun(small, expected)


@pytest.mark.thorough
def test_a_spool_that_cannot_be_written_ends_the_run_and_the_next_one_goes_on(
    some: Project, launch: Launch, mount: Mount, expected: dict[str, Embeddings]
) -> None:
    spool = some.path(".holdfast/spool")
    mount(spool, "mode=700,size=64m")
    mount(spool, "ro")
    check_end(launch(some), str(spool), f"the spool cannot be used: {READ_ONLY}")
    mount(spool, "rw")
    check_rerun(some, expected)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a directory away")
def test_a_spool_of_another_user_is_refused(some: Project, launch: Launch) -> None:
    spool = some.path(".holdfast/spool")
    spool.mkdir(parents=True, mode=0o700)
    os.chown(spool, NOBODY, NOBODY)
    check_end(launch(some), f"{spool}: the spool belongs to another user, uid {NOBODY}; use one of yours")
    assert list(spool.glob("*/*")) == []


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_spool_that_others_may_write_to_is_refused(some: Project, launch: Launch, mode: int) -> None:
    spool = some.path(".holdfast/spool")
    spool.mkdir(parents=True)
    spool.chmod(mode)
    check_end(launch(some), f"{spool}: others may write to the spool; chmod 700 it")
    assert list(spool.glob("*/*")) == []
