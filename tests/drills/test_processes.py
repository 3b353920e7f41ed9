"""However a run ends, no process of its pool outlives it for long, and what a dead run leaves does no harm."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from holdfast.pool.devices import BATCHES_AHEAD
from holdfast.results.embeddings import read_embeddings
from holdfast.spool.state import read_state

from tests.drills.conftest import Launch, RunningSnakemake, Serve, check_equal, proteins, results_of
from tests.drills.faults import Fault, Injection, token_marker
from tests.drills.processes import LONG_S, PROCESSES_END_S, blocks, eventually
from tests.workflow.conftest import HOLDFAST, NewProject, Project, fasta, jobs

BATCHES = 12
LEASE_S = 10
SLOW = Fault("embed", "slow", words="1")
WRAPPER = '#!/bin/sh\n"{python}" "$@"\nexit $?\n'


def make(project: NewProject, *samples: str) -> Project:
    """A project of protein samples whose pool takes a handful of seconds where it is made slow."""
    some = project()
    some.configure(store_dtype="float32", pool={"device": "cpu", "tokens_per_batch": 64})
    for seed, name in enumerate(samples):
        some.write(f"data/{name}.faa", fasta(proteins(BATCHES // len(samples), 60, seed)))
    some.write_sheet(*((name, f"data/{name}.faa", "proteins") for name in samples))
    return some


def wrapper(directory: Path, text: str) -> dict[str, str]:
    """The environment in which rules run Python through a shell script, as conda or a container would."""
    path = directory / "wrapper.sh"
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return {"HOLDFAST_PYTHON": str(path)}


@pytest.mark.thorough
def test_no_process_outlives_a_run_that_ends_by_itself_behind_a_wrapper(
    project: NewProject, launch: Launch, tmp_path: Path
) -> None:
    some = make(project, "a", "broken")
    some.write("data/broken.faa", ">p\nMKV\n>p\nMKV\n")
    for status in (1, 0):
        run = launch(some, environment=wrapper(tmp_path, WRAPPER))
        assert run.wait() == status, run.text
        eventually(lambda: not some.processes(), PROCESSES_END_S)
        assert "Traceback" not in some.read("logs/pool.0.log")
        some.write("data/broken.faa", ">p\nMKV\n")


def interrupt(run: RunningSnakemake) -> None:
    """Ctrl-C: the terminal signals every process in the foreground."""
    os.killpg(run.process.pid, signal.SIGINT)
    run.wait()


def interrupt_alone(run: RunningSnakemake) -> None:
    run.process.send_signal(signal.SIGINT)
    run.wait()


def terminate(run: RunningSnakemake) -> None:
    run.process.send_signal(signal.SIGTERM)
    run.wait()


def kill(run: RunningSnakemake) -> None:
    run.process.kill()
    run.wait()


@pytest.mark.parametrize(
    ("ending", "wrapped"),
    [
        *((interrupt, False), (terminate, False), (kill, True)),
        *(pytest.param(ending, False, marks=pytest.mark.thorough) for ending in (interrupt_alone, kill)),
        *(pytest.param(ending, True, marks=pytest.mark.thorough) for ending in (interrupt, interrupt_alone, terminate)),
    ],
)
def test_no_process_outlives_a_run_that_is_ended(
    project: NewProject, launch: Launch, tmp_path: Path, ending: Callable[[RunningSnakemake], None], wrapped: bool
) -> None:
    some = make(project, "a")
    environment = wrapper(tmp_path, WRAPPER) if wrapped else {}
    run = launch(some, environment={**environment, **Injection(tmp_path / "faults", SLOW).environment})
    run.wait_for_work()
    ending(run)
    eventually(lambda: not some.processes(), PROCESSES_END_S)
    assert "Traceback" not in some.read("logs/pool.0.log")


def test_ctrl_c_says_how_many_vectors_are_kept_and_leaves_no_pool_that_says_it_starts(
    project: NewProject, launch: Launch, tmp_path: Path
) -> None:
    some = make(project, "a")
    run = launch(some, environment=Injection(tmp_path / "faults", SLOW).environment)
    run.wait_for_work()
    interrupt(run)
    eventually(lambda: not some.processes(), PROCESSES_END_S)
    (path,) = some.path(".holdfast/spool/pools").glob("*.json")
    state = read_state(path)
    assert state is not None
    assert (state.state, state.reason) == ("ended", "interrupted")
    kept = state.progress.sequences
    assert 0 < kept < BATCHES
    said = f"holdfast: interrupted; {kept} vectors are kept; run the same command again"
    assert run.text.rstrip().endswith(said), run.text
    assert "holdfast: error" not in run.text
    assert not some.path(".holdfast/pool.0.json").exists()
    shown = subprocess.run([*HOLDFAST, "status", some.path(".holdfast/spool")], capture_output=True, text=True)
    assert "ended (interrupted)" in shown.stdout
    again = some.run()
    assert again.returncode == 0, again.text
    assert json.loads(some.read("results/a/receipt.json"))["counts"]["inherited"] == kept


def test_a_pool_whose_snakemake_dies_before_it_has_begun_ends_too(
    project: NewProject, launch: Launch, tmp_path: Path
) -> None:
    """A slow activation, and a kill in the midst of it: the pool begins without the Snakemake that started it."""
    some = make(project, "a")
    slow = wrapper(tmp_path, '#!/bin/sh\ntouch activating\nsleep 2\nexec "{python}" "$@"\n')
    run = launch(some, environment=slow)
    eventually(some.path("activating").exists)
    kill(run)
    eventually(lambda: not some.processes(), PROCESSES_END_S)


def test_sigterm_lets_the_pool_finish_its_batches_and_hand_back_the_rest(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "a.faa"
    path.write_text(fasta(proteins(6, 60, 1)))
    injection = Injection(tmp_path / "faults", Fault("embed", "note"), Fault("embed", "wait"))
    pool = serve(environment=injection.environment, tokens_per_batch=64)
    job = pool.job("a", path)
    pool.spool.submit(job)
    injection.wait_for()
    pool.process.send_signal(signal.SIGTERM)
    eventually(lambda: "ending: SIGTERM" in pool.log.read_text())
    injection.release()
    assert pool.process.wait(LONG_S) == 0
    finished = len(injection.notes())
    assert finished == len(blocks(pool.spool.root)) == BATCHES_AHEAD  # the one in work, and the one behind it
    assert pool.spool.waiting() == [f"{job.job}.json"]
    assert list(pool.spool.root.glob("claimed/*")) == list(pool.spool.root.glob("work/*")) == []
    assert (pool.state.state, pool.state.reason) == ("ended", "SIGTERM")
    again = serve(tokens_per_batch=64)
    counts = again.embed(job)["a"].counts
    assert counts["inherited"] == finished
    assert counts["computed_tokens"] == counts["tokens"] * (6 - finished) // 6
    assert f"took over 0 jobs and {finished} blocks" in again.log.read_text()
    eventually(lambda: again.progress("sequences") == 6 - finished)


def test_vectors_go_with_the_jobs_that_a_pool_leaves_to_one_that_lives(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "a.faa"
    path.write_text(fasta(proteins(6, 60, 1)))
    injection = Injection(tmp_path / "faults", Fault("embed", "note"), Fault("embed", "wait"))
    leaving = serve(name="leaving", environment=injection.environment, tokens_per_batch=64)
    job = leaving.job("a", path)
    leaving.spool.submit(job)
    injection.wait_for()
    staying = serve(name="staying", spool=leaving.root, tokens_per_batch=64)
    staying.wait_until_ready()
    leaving.process.send_signal(signal.SIGTERM)
    eventually(lambda: "ending: SIGTERM" in leaving.log.read_text())
    injection.release()
    assert leaving.process.wait(LONG_S) == 0
    eventually(lambda: f"took over 1 jobs and {BATCHES_AHEAD} blocks" in staying.log.read_text())
    assert staying.embed(job)["a"].counts["inherited"] == len(injection.notes()) == BATCHES_AHEAD


def test_a_reader_at_work_does_not_hold_up_the_end_of_the_pool(serve: Serve, tmp_path: Path) -> None:
    """As over a huge file, or one on a file system that has gone away."""
    path = tmp_path / "a.faa"
    path.write_text(fasta(proteins(6, 60, 1)))
    injection = Injection(tmp_path / "faults", Fault("read", "wait", "a"))
    pool = serve(environment=injection.environment)
    job = pool.job("a", path)
    pool.spool.submit(job)
    injection.wait_for()
    pool.wait_until_ready()
    children = psutil.Process(pool.process.pid).children(recursive=True)
    pool.process.send_signal(signal.SIGTERM)
    try:
        assert pool.process.wait(PROCESSES_END_S) == 0
    finally:
        injection.release()
    assert psutil.wait_procs(children, PROCESSES_END_S)[1] == []
    assert pool.spool.waiting() == [f"{job.job}.json"]


def test_a_killed_supervisor_ends_the_run_within_seconds_and_is_named(
    project: NewProject, launch: Launch, serve: Serve, tmp_path: Path
) -> None:
    some = make(project, "a", "b")
    undisturbed = serve()
    outcomes = undisturbed.embed(*(undisturbed.job(name, some.path(f"data/{name}.faa")) for name in ("a", "b")))
    expected = {name: read_embeddings(outcome.embeddings) for name, outcome in outcomes.items()}
    injection = Injection(tmp_path / "faults", Fault("embed", "wait"))
    run = launch(some, environment=injection.environment)
    injection.wait_for()
    (supervisor,) = run.supervisors()
    supervisor.kill()
    killed = time.monotonic()
    assert run.wait() == 1
    assert time.monotonic() - killed < PROCESSES_END_S
    eventually(lambda: not some.processes(), PROCESSES_END_S)
    message = f"the pool (process {supervisor.pid} on {os.uname().nodename}) died without a word; see its log"
    logs = [some.read(f"logs/embed/{number}.log") for number in (0, 1)]
    assert f"holdfast: error: {message}" in "\n".join(run.text.splitlines()[-12:])
    assert f"holdfast: error: {message}" in "".join(logs)  # Snakemake may kill one consumer when the other has failed
    assert all("Traceback" not in text for text in (run.text, *logs))
    again = some.run()
    assert again.returncode == 0, again.text
    assert again.jobs == jobs("a", "b")
    found = results_of(some)
    assert found.keys() == expected.keys()
    for name, result in found.items():
        check_equal(result, expected[name])


def test_what_dead_runs_and_foreign_hosts_leave_does_no_harm(
    project: NewProject, launch: Launch, models: Path, tmp_path: Path
) -> None:
    some = make(project, "a", "b")
    last = [some.read(f"data/{name}.faa").split()[-1] for name in ("a", "b")]
    stops = [Fault("embed", "wait", token_marker(models, protein)) for protein in last]
    injection = Injection(tmp_path / "faults", *stops)
    run = launch(some, environment=injection.environment)
    injection.wait_for()
    eventually(lambda: len([*some.path(".holdfast/spool").glob("claimed/*/*.json")]) == 2)
    for process in [*psutil.Process(run.process.pid).children(recursive=True), psutil.Process(run.process.pid)]:
        with suppress(psutil.NoSuchProcess):  # it has followed another
            process.kill()
    run.wait()
    eventually(lambda: not some.processes(), PROCESSES_END_S)
    spool = some.path(".holdfast/spool")
    dead = read_state(some.path(".holdfast/pool.0.json"))
    assert dead is not None
    name = dead.identity.pool
    assert {path.name for path in spool.glob("claimed/*")} == {name}
    kept = blocks(spool)
    assert kept
    # One of the two claims comes from a host that nobody can ask; half a state, a half-written block and manifest.
    foreign = spool / "claimed" / "elsewhere-1-1"
    foreign.mkdir()
    (claim,) = spool.glob(f"claimed/{name}/a-*.json")
    claim.rename(foreign / claim.name)
    content = json.loads((spool / "pools" / f"{name}.json").read_text())
    content["lease_s"] = LEASE_S
    content["identity"] = {"host": "elsewhere", "pid": 1, "started": 1, "machine": "another"}
    (spool / "pools" / "elsewhere-1-1.json").write_text(json.dumps(content))
    (spool / "pools" / "torn-2-2.json").write_text('{"identity": {"ho')
    (kept[0].parent / ".torn.partial").write_bytes(b"\x93NUM")
    (spool / "incoming" / ".torn.json.1.partial").write_text('{"sample": [')
    assert some.run("--unlock").returncode == 0
    began = time.monotonic()
    again = some.run()
    assert again.returncode == 0, again.text
    assert again.jobs == jobs("a", "b")
    assert time.monotonic() - began > LEASE_S
    log = some.read("logs/pool.0.log")
    assert f"pool {name} is dead: took over 1 jobs and {len(kept)} blocks" in log
    assert "pool elsewhere-1-1 is dead: took over 1 jobs and 0 blocks" in log
    assert list(spool.glob("pools/*-1-1.json")) == list(spool.glob("claimed/*")) == list(spool.glob("blocks/*")) == []
    assert {name: len(found.ids) for name, found in results_of(some).items()} == {"a": 6, "b": 6}
