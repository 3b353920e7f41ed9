"""Pools started by hand on a spool that several runs share: they come, go, die, and no run gets what is another's."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from holdfast.models.registry import DESCRIPTION_FILE, WEIGHTS_FILE, Output, read_prepared
from holdfast.results.embeddings import read_embeddings
from holdfast.run import client
from holdfast.spool.job import Manifest, Receipt, Request
from holdfast.spool.spool import Spool
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.drills.conftest import Launch, RunningPool, Serve, check_equal, claims, proteins, results_of
from tests.drills.faults import Fault, Injection, token_marker
from tests.drills.processes import LONG_S, PROCESSES_END_S, blocks, eventually, processes_in
from tests.workflow.conftest import HOLDFAST, MEANS, REPOSITORY, NewProject, Project, fasta

EXAMPLES = REPOSITORY / "examples"
INSTALLED = str(Path(sys.executable).with_name("holdfast"))  # as `make` installs it
BATCHES = 6
TOKENS = 256  # in a batch of one sequence
SLOW = Fault("embed", "slow", words="0.25")


def make(project: NewProject, name: str, *samples: str, **changed: object) -> Project:
    """A project of protein samples on a spool beside it; a sample fills what a pool claims ahead to three quarters."""
    some = project(name)
    pool = {"lifecycle": "external", "spool": str(spool_of(some)), "tokens_per_batch": 64, "device": "cpu"}
    some.configure(store_dtype="float32", **{"pool": pool, **changed})
    for sample in samples:
        some.write(f"data/{sample}.faa", fasta(proteins(BATCHES, TOKENS - 2, sum(map(ord, sample)))))
    some.write_sheet(*((sample, f"data/{sample}.faa", "proteins") for sample in samples))
    return some


def fasta_of(project: Project, sample: str) -> list[str]:
    """The sequences of a sample."""
    return project.read(f"data/{sample}.faa").split()[1::2]


def spool_of(project: Project) -> Path:
    return project.directory.parent / "spool"


def by_sbatch(usual: list[str]) -> list[str]:
    """As Slurm runs the script of the repository on a node."""
    return [
        "bash",
        str(EXAMPLES / "pool.sbatch"),
        usual[usual.index("--config") + 1],
        usual[usual.index("--spool") + 1],
    ]


def by_systemd(usual: list[str]) -> list[str]:
    """As systemd runs the unit of the repository, but for its paths."""
    (line,) = [line for line in (EXAMPLES / "holdfast-pool.service").read_text().splitlines() if "ExecStart=" in line]
    words = shlex.split(line.removeprefix("ExecStart="))
    assert Path(words[0]).name == "holdfast"
    asked, usually = ([word for word in some if word.startswith("--")] for some in (words, usual))
    assert (words[1], asked) == ("serve", usually)
    return [INSTALLED, *usual[usual.index("serve") :]]


def end(pool: RunningPool, number: signal.Signals) -> float:
    """Send a pool a signal; seconds until it had ended."""
    sent = time.monotonic()
    pool.process.send_signal(number)
    pool.process.wait(LONG_S)
    return time.monotonic() - sent


def test_pools_come_and_go_and_die_under_two_runs_and_no_value_differs(
    project: NewProject, launch: Launch, serve: Serve, models: Path, tmp_path: Path
) -> None:
    samples = {"one": ("a", "b", "c"), "two": ("d", "e", "f")}
    projects = {name: make(project, name, *names) for name, names in samples.items()}
    spool = spool_of(projects["one"])
    runs = [launch(some) for some in projects.values()]

    def said(text: str) -> bool:
        logs = [path.read_text() for some in projects.values() for path in some.path("logs/embed").glob("*.log")]
        return all(text in run.text for run in runs) and len(logs) == 4 and all(text in log for log in logs)

    eventually(lambda: said(f"no pool serves {spool} now; start one with `holdfast serve`"))
    # Each pool stops at the fourth sequence of its first sample, until there are two pools to be ended.
    stops = [
        Fault("embed", "wait", token_marker(models, fasta_of(some, sample)[3]))
        for key, some in projects.items()
        for sample in samples[key]
    ]
    noting = Injection(tmp_path / "faults", SLOW, *stops, Fault("embed", "note", after=True))
    slurm = {"HOLDFAST": INSTALLED, "SLURM_JOB_ID": "7"}

    def start(name: str, **more: object) -> RunningPool:
        environment = {**noting.environment, **slurm, "TMPDIR": str(tmp_path / name)}
        return serve(name=name, spool=spool, environment=environment, tokens_per_batch=64, **more)

    killed = start("killed", command=by_sbatch, endpoint="holdfast-7.json")
    stopped = start("stopped", command=by_systemd)
    eventually(lambda: blocks(spool) and claims(killed) and claims(stopped))
    eventually(lambda: said(f"a pool serves {spool} now"))
    killed_name = killed.state.identity.pool
    held = claims(stopped)
    assert not set(held) & set(claims(killed))
    killed.process.kill()
    noting.release()
    assert end(stopped, signal.SIGTERM) < PROCESSES_END_S
    assert (stopped.process.returncode, stopped.state.reason) == (0, "SIGTERM")
    finished = {path.name for path in spool.glob("done/*")}
    assert set(Spool(spool).waiting()) >= {name for name in held if name.removesuffix(".json") not in finished}
    last = start("last", idle_timeout_s=2)
    for run in runs:
        assert run.wait() == 0, run.text
    assert last.process.wait(LONG_S) == 0
    assert (last.state.state, last.state.reason) == ("ended", "idle for 2 s")
    logs = stopped.log.read_text() + last.log.read_text()
    assert f"pool {killed_name} is dead: took over" in logs

    undisturbed = serve(name="undisturbed")
    jobs = [
        undisturbed.job(name, some.path(f"data/{name}.faa")) for key, some in projects.items() for name in samples[key]
    ]
    expected = {name: read_embeddings(done.embeddings) for name, done in undisturbed.embed(*jobs).items()}
    found = {name: result for some in projects.values() for name, result in results_of(some).items()}
    assert found.keys() == expected.keys() == set("abcdef")
    for name, result in found.items():
        check_equal(result, expected[name])
    assert sorted(path.name[0] for path in spool.glob("done/*")) == sorted("abcdef")
    assert [path for place in ("incoming", "claimed", "failed", "work") for path in (spool / place).iterdir()] == []
    computed = sum(tokens for _, tokens in noting.notes())
    assert 6 * BATCHES <= computed / TOKENS <= 6 * BATCHES + 2, (
        "only the batches of the pool that was killed are repeated"
    )


def other_weights(models: Path, directory: Path) -> Path:
    """A copy of the prepared models in which esm2 has other weights."""
    shutil.copytree(models, directory)
    path, description = directory / "esm2" / WEIGHTS_FILE, directory / "esm2" / DESCRIPTION_FILE
    with safe_open(path, "numpy") as file:
        header = file.metadata()
    save_file({name: matrix * np.float32(0.9) for name, matrix in load_file(path).items()}, path, header)
    content = json.loads(description.read_text())
    content["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    description.write_text(json.dumps(content))
    return directory


def test_jobs_of_other_weights_precision_and_versions_are_separated_or_refused(
    project: NewProject, serve: Serve, models: Path, tmp_path: Path
) -> None:
    pools = [
        serve(name="first"),
        serve(name="second", spool=tmp_path / "first/spool", models=other_weights(models, tmp_path / "o")),
    ]
    root = pools[0].root
    path = tmp_path / "s.faa"
    path.write_text(fasta(proteins(8, 62, 1)))
    jobs = [pool.job("s", path) for pool in pools]
    outputs = [tmp_path / f"{number}.json" for number in range(2)]
    outcomes = client.submit_jobs(jobs, Spool(root), None, outputs, patience_s=LONG_S)
    found = [read_embeddings(outcome.embeddings) for outcome in outcomes]
    for pool, outcome, result in zip(pools, outcomes, found, strict=True):
        assert outcome.pool["id"] == pool.state.identity.pool
        digest = read_prepared(pool.models / "esm2").weights_sha256
        assert result.attributes["matrices"][MEANS["esm2"]]["weights_sha256"] == digest
    assert not np.array_equal(found[0].matrices[MEANS["esm2"]], found[1].matrices[MEANS["esm2"]])

    some = make(
        project, "project", "a", precision="fp16", pool={"lifecycle": "external", "spool": str(root), "patience_s": 3}
    )
    lack = f"sample 'a' needs esm2 in fp16, with the weights of this config; the 2 pool(s) on {root} hold other weights"
    run = some.run()
    assert run.returncode == 1
    assert f"1 sample(s) from 'a' on wait: {lack} or compute otherwise; start one with `holdfast serve`" in run.text
    assert f"holdfast: error: {lack} or compute otherwise, and none came for 3 s (pool.patience_s)" in run.text
    assert not some.path("results/a/receipt.json").exists()
    (waiting,) = Spool(root).waiting()
    assert waiting.startswith("a-")

    (root / "format").write_text("1\n")
    run = some.run()
    assert run.returncode == 1
    assert f"{root}: a spool of format 1, this version of Holdfast reads" in run.text
    assert "Traceback" not in run.text


def test_a_pool_by_hand_outlives_its_shell_but_not_its_terminal(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "s.faa").write_text(fasta(proteins(100, 62, 1)))  # 25 s for the slow pool, which is ended early
    kept = serve(name="kept", command=lambda usual: ["bash", "-c", 'nohup "$@" & wait', "bash", *usual])
    hears = ["env", "--default-signal=HUP"]  # also where whoever started the tests ignores it
    closed = serve(SLOW, name="closed", tokens_per_batch=64, command=lambda usual: [*hears, *usual])
    job = closed.job("s", tmp_path / "s.faa")
    closed.spool.submit(job)
    eventually(lambda: blocks(closed.root))
    (supervisor,) = psutil.Process(kept.process.pid).children()
    kept.process.kill()  # the shell; the pool is nobody's child now
    kept.process.wait()
    supervisor.send_signal(signal.SIGHUP)
    assert end(closed, signal.SIGHUP) < PROCESSES_END_S
    assert (closed.process.returncode, closed.state.state, closed.state.reason) == (0, "ended", "SIGHUP")
    assert closed.spool.waiting() == [f"{job.job}.json"]
    assert kept.embed(kept.job("s", tmp_path / "s.faa"))["s"].state == "done"
    supervisor.terminate()
    psutil.wait_procs([supervisor], LONG_S)
    assert (kept.state.state, kept.state.reason) == ("ended", "no job open at SIGTERM")


def test_what_a_killed_snakemake_started_ends_be_it_a_pool_by_hand_or_a_waiting_consumer(
    project: NewProject, launch: Launch, models: Path, tmp_path: Path
) -> None:
    by_hand = project("by_hand")
    by_hand.write("pool.yaml", f"models: {{esm2: {models / 'esm2'}}}\ndevice: cpu\nthreads: 1\n")
    pool = [*HOLDFAST, "serve", "--config", "pool.yaml", "--spool", "spool"]
    shell = f"nohup {shlex.join(pool)} --endpoint pool.json > pool.log 2>&1 & sleep 1000"
    snakefile = by_hand.write("Snakefile", f"rule pool:\n    output: 'never'\n    shell: {shell!r}\n")
    command = [str(Path(sys.executable).with_name("snakemake")), "-s", str(snakefile), "--cores", "1"]
    with subprocess.Popen([*command, "-d", str(by_hand.directory)], stderr=subprocess.DEVNULL) as outer:
        waiting = launch(make(project, "waiting", "a"))
        eventually(lambda: "no pool serves" in waiting.text and waiting.project.path("logs/embed/0.log").exists())
        eventually(lambda: by_hand.path("spool/pools").is_dir() and [*by_hand.path("spool/pools").iterdir()])
        outer.kill()
    waiting.process.kill()
    projects = (by_hand, waiting.project)
    eventually(lambda: all("sleep" in left for some in projects for left in some.processes()), PROCESSES_END_S)
    assert "ending: the Snakemake that started the pool is gone" in by_hand.read("pool.log")
    assert "error: the Snakemake that started this consumer is gone" in waiting.project.read("logs/embed/0.log")
    for process in processes_in(by_hand.directory):
        with suppress(psutil.NoSuchProcess):  # the shell of the one before
            process.kill()


def test_a_waiting_consumer_hands_in_anew_what_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "HAND_IN_AGAIN_S", 0.1)
    spool = Spool(tmp_path / "spool")
    job = Manifest(
        "s",
        "proteins",
        "/s.faa",
        "",
        0,
        0,
        0,
        {"esm2": Request("a" * 64, [Output(6, "mean")], "whole", 0)},
        "auto",
        "float32",
    )
    outcome = Receipt(job.job, "s", "done")
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(client.submit_jobs, [job], spool, None, [tmp_path / "s.json"])
        for _ in range(3):
            eventually(spool.waiting)
            (spool.root / "incoming" / f"{job.job}.json").unlink(missing_ok=True)
        (spool.root / "done" / job.job).mkdir()
        outcome.write(spool.root / "done" / job.job / "receipt.json")
        assert waiting.result(LONG_S) == [outcome]


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no Slurm here")
def test_slurm_knows_what_the_script_asks_for(tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").write_text("ClusterName=none\nSlurmctldHost=localhost\n")
    environment = {**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")}
    lines = (EXAMPLES / "pool.sbatch").read_text().splitlines()
    asked = [line.removeprefix("#SBATCH ").partition("=")[0] for line in lines if line.startswith("#SBATCH ")]
    known = subprocess.run(["sbatch", "--help"], env=environment, capture_output=True, text=True, check=True).stdout
    assert len(asked) == 7
    assert [option for option in asked if option not in known] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (EXAMPLES / "holdfast-pool.service").read_text()
    unit = tmp_path / "holdfast-pool.service"
    unit.write_text(text.replace("%h/holdfast/.venv/bin/holdfast", INSTALLED))
    checked = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
