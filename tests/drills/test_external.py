"""Pools started by hand on a spool that several runs, and several hosts, share: they come, go, die, and none is mixed.

A second host is a process in mount, host-name and process-id namespaces of its own, which sees the spool at another
path and cannot ask after the processes of the first.
"""

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from holdfast.models.registry import DESCRIPTION_FILE, WEIGHTS_FILE, read_prepared
from holdfast.pool.settings import PoolSettings
from holdfast.results.embeddings import read_embeddings
from holdfast.run import client as consumer
from holdfast.spool.job import Manifest, Receipt
from holdfast.spool.spool import Spool
from holdfast.spool.state import read_state
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.drills.conftest import (
    LONG_S,
    PROCESSES_END_S,
    ROOT,
    Fault,
    Injection,
    Launch,
    RunningPool,
    Serve,
    blocks,
    check_equal,
    eventually,
    processes_in,
    proteins,
    results_of,
    token_marker,
)
from tests.workflow.conftest import SCRIPTS, NewProject, Project, fasta

EXAMPLES = ROOT / "examples"
LEASE_S = 10
BATCHES = 6
TOKENS = 256  # in a batch of one sequence
SLOW = Fault("embed", "slow", words="0.25")
NAMESPACES = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
NAMESPACES += [] if os.getuid() == 0 else ["--map-root-user"]
CAN_BE_ANOTHER_HOST = subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode == 0
needs_another_host = pytest.mark.skipif(not CAN_BE_ANOTHER_HOST, reason="unshare may not make namespaces here")


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
    assert [word if word.startswith("--") else "" for word in words] == [
        word if word.startswith("--") else "" for word in usual
    ]
    assert [Path(word).name for word in words[:2]] == ["python", "serve_pool.py"]
    return usual


def claims(pool: RunningPool) -> list[str]:
    """What a pool has claimed; its directory may go meanwhile."""
    name = pool.state.identity.pool
    return sorted(path.name for path in pool.root.glob(f"claimed/{name}/*.json"))


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

    def told(text: str) -> bool:
        logs = [path.read_text() for some in projects.values() for path in some.path("logs/embed").glob("*.log")]
        return all(text in run.text for run in runs) and len(logs) == 4 and all(text in log for log in logs)

    eventually(lambda: told(f"no pool serves {spool} now; start one with `holdfast serve`"))
    # Each pool stops at the fourth sequence of its first sample, until there are two to be told to end.
    stops = [
        Fault("embed", "wait", token_marker(models, fasta_of(some, sample)[3]))
        for key, some in projects.items()
        for sample in samples[key]
    ]
    noting = Injection(tmp_path / "faults", SLOW, *stops, Fault("embed", "note", after=True))
    slurm = {"HOLDFAST": str(ROOT), "HOLDFAST_PYTHON": sys.executable, "SLURM_JOB_ID": "7"}

    def start(name: str, **more: object) -> RunningPool:
        environment = {**noting.environment, **slurm, "TMPDIR": str(tmp_path / name)}
        return serve(name=name, spool=spool, environment=environment, tokens_per_batch=64, **more)

    killed = start("killed", command=by_sbatch, endpoint="holdfast-7.json")
    stopped = start("stopped", command=by_systemd)
    eventually(lambda: blocks(spool) and claims(killed) and claims(stopped))
    eventually(lambda: told(f"a pool serves {spool} now"))
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


def another_host(name: str, here: Path, there: Path, hidden: Path) -> list[str]:
    """The beginning of a command line that runs the rest on another host, which has ``here`` at ``there``."""
    script = f'hostname {name}; mount --bind "$0" "$1"; mount -t tmpfs none "$2"; shift 2; exec "$@"'
    return [*NAMESPACES, "sh", "-c", script, str(here), str(there), str(hidden)]


@needs_another_host
def test_another_host_takes_over_after_the_lease_and_a_pool_that_wakes_up_late_does_no_harm(
    serve: Serve, models: Path, tmp_path: Path
) -> None:
    spool, there, hidden = (tmp_path / name for name in ("spool", "there", "hidden"))
    Spool(spool)
    there.mkdir()
    hidden.mkdir()
    for directory, names in ((tmp_path, "abc"), (hidden, "h")):
        for name in names:
            (directory / f"{name}.faa").write_text(fasta(proteins(8, 62, ord(name))))

    def elsewhere(name: str, sample: str) -> RunningPool:
        """A pool on a host of that name, which hangs over the last sequence of a sample."""
        last = (tmp_path / f"{sample}.faa").read_text().split()[-1]

        def command(usual: list[str]) -> list[str]:
            usual[usual.index("--spool") + 1] = str(there)
            return [*another_host(name, spool, there, hidden), *usual]

        told = {"spool": spool, "command": command, "tokens_per_batch": 64, "lease_s": LEASE_S}
        return serve(Fault("embed", "hang", token_marker(models, last)), name=name, **told)

    dying, stalling = elsewhere("dying", "b"), elsewhere("stalling", "c")
    # Both do a whole job for a consumer here, which finds the embeddings at its own path; files they lack are named.
    job, lacking = dying.job("a", tmp_path / "a.faa"), dying.job("h", hidden / "h.faa")
    outputs = [tmp_path / f"{sample}.json" for sample in "ah"]
    done, failed = consumer.submit_jobs([job, lacking], Spool(spool), None, outputs, patience_s=LONG_S)
    assert Path(done.embeddings) == spool / "done" / job.job / "embeddings.h5"
    expected = {"a": read_embeddings(done.embeddings)}
    assert failed.error.startswith(f"{hidden}/h.faa: cannot be read: No such file or directory (by the pool on ")
    assert failed.error.split()[-1] in ("dying)", "stalling)")

    jobs = {name: dying.job(name, tmp_path / f"{name}.faa") for name in "bc"}
    (process,) = psutil.Process(stalling.process.pid).children()
    process.suspend()
    Spool(spool).submit(jobs["b"])
    eventually(lambda: claims(dying) and blocks(spool))
    dying.process.kill()  # and with it, by its namespace, all its processes
    killed = time.monotonic()
    process.resume()
    Spool(spool).submit(jobs["c"])
    eventually(lambda: claims(stalling) and len(blocks(spool)) > 1)
    process.suspend()
    here = serve(name="here", spool=spool, tokens_per_batch=64)
    for path in spool.glob("pools/*.json"):  # what clocks say, of this host or of the file server, does not matter
        os.utime(path, (0, 2**33))
    outcomes = here.embed(*jobs.values())
    assert time.monotonic() - killed > LEASE_S
    log = here.log.read_text()
    for pool in (dying, stalling):
        identity = read_state(pool.endpoint).identity  # type: ignore[union-attr]
        assert identity.host == pool.directory.name
        assert f"pool {identity.pool} is dead: took over 1 jobs" in log
    process.resume()
    assert stalling.process.wait(LONG_S) == 1
    assert "has lost its claims: it stood still for longer than lease_s" in stalling.log.read_text()
    assert "Traceback" not in stalling.log.read_text()
    assert {path.name for path in spool.glob("done/*")} == {job.job, *(entry.job for entry in jobs.values())}
    assert {outcome.pool["id"] for outcome in outcomes.values()} == {here.state.identity.pool}
    expected |= {name: read_embeddings(outcomes[name].embeddings) for name in jobs}
    again = [dataclasses.replace(entry, sample=f"{entry.sample}-again") for entry in (job, *jobs.values())]
    for name, undisturbed in here.embed(*again).items():
        check_equal(expected[name[0]], read_embeddings(undisturbed.embeddings))


SUBMITTER = """
import dataclasses, sys, threading
from holdfast import manifest
from holdfast.spool import Spool
first = manifest.parse(sys.stdin.read(), "first")
for number in range(int(sys.argv[3])):
    Spool(sys.argv[1]).submit(dataclasses.replace(first, sample=sys.argv[2], size_bytes=number))
"""


@needs_another_host
def test_hosts_whose_processes_have_the_same_ids_hand_in_whole_jobs(tmp_path: Path) -> None:
    count = 300
    first = Manifest("s", "proteins", "/s.faa", 0, 0, 0, {"esm2": "a" * 64}, "auto", "float32")
    command = [*NAMESPACES, sys.executable, "-c", SUBMITTER, str(tmp_path / "spool")]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}

    def hand_in(name: str) -> int:
        ended = subprocess.run(
            [*command, name, str(count)], input=first.dump(), env=environment, text=True, timeout=LONG_S
        )
        return ended.returncode

    Spool(tmp_path / "spool")
    with ThreadPoolExecutor() as threads:
        assert list(threads.map(hand_in, ("one", "two"))) == [0, 0]
    spool = Spool(tmp_path / "spool")
    spool.enroll("pool")
    claimed = sorted((job.sample, job.size_bytes) for job in spool.claim("pool", lambda _: True))
    assert claimed == [(name, number) for name in ("one", "two") for number in range(count)]
    assert list(spool.root.glob("failed/*")) == list(spool.root.glob("incoming/*")) == []


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
    outcomes = consumer.submit_jobs(jobs, Spool(root), None, outputs, patience_s=LONG_S)
    found = [read_embeddings(outcome.embeddings) for outcome in outcomes]
    for pool, outcome, result in zip(pools, outcomes, found, strict=True):
        assert outcome.pool["id"] == pool.state.identity.pool
        digest = read_prepared(pool.models / "esm2").weights_sha256
        assert result.attributes["models"]["esm2"]["weights_sha256"] == digest
    assert not np.array_equal(found[0].matrices["esm2"], found[1].matrices["esm2"])

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

    (root / "format").write_text("2\n")
    run = some.run()
    assert run.returncode == 1
    assert f"{root}: a spool of format 2, made by another version of Holdfast" in run.text
    assert "Traceback" not in run.text


ANOTHER_USER = """
import os, sys
from holdfast.errors import ResourceError
from holdfast.spool import Spool
os.setgid(65534)
os.setuid(65534)
for attempt, path in ((Spool, ""), (os.listdir, "/"), (os.mkdir, "/incoming/x")):
    try:
        print(attempt(sys.argv[1] + path))
    except (ResourceError, PermissionError) as error:
        print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_can_do_nothing_with_a_spool() -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        root = Spool(Path(open_to_all, "spool")).root
        command = [sys.executable, "-c", ANOTHER_USER, str(root)]
        tried = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True)
    opened, listed, made = tried.stdout.splitlines()
    assert opened == f"ResourceError {root}: the spool belongs to another user, uid 0; use one of yours"
    assert listed.startswith("PermissionError")
    assert made.startswith("PermissionError")


def test_a_pool_by_hand_outlives_its_shell_but_not_its_terminal(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "s.faa").write_text(fasta(proteins(100, 62, 1)))  # 25 s for the slow pool: it is told to end early
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
    assert (kept.state.state, kept.state.reason) == ("ended", "told to, with no job open (SIGTERM)")


def test_what_a_killed_snakemake_started_ends_be_it_a_pool_by_hand_or_a_waiting_consumer(
    project: NewProject, launch: Launch, models: Path, tmp_path: Path
) -> None:
    by_hand = project("by_hand")
    PoolSettings({"esm2": str(models / "esm2")}, device="cpu", threads=1).write(by_hand.path("pool.yaml"))
    pool = [sys.executable, str(SCRIPTS / "entry.py"), "serve", "--config", "pool.yaml", "--spool", "spool"]
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
    for pid in processes_in(by_hand.directory):
        with suppress(ProcessLookupError):  # the shell of the one before
            os.kill(pid, signal.SIGKILL)


def test_a_waiting_consumer_hands_in_anew_what_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "HAND_IN_AGAIN_S", 0.1)
    spool = Spool(tmp_path / "spool")
    job = Manifest("s", "proteins", "/s.faa", 0, 0, 0, {"esm2": "a" * 64}, "auto", "float32")
    outcome = Receipt(job.job, "s", "done")
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(consumer.submit_jobs, [job], spool, None, [tmp_path / "s.json"])
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
    unit.write_text(text.replace("%h/holdfast/.venv/bin/python", sys.executable))
    checked = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
