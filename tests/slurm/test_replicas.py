"""Replicas on a real Slurm: forty samples, one cancelled, one at its time limit, the node drained, and a second run.

One story, which happens in the fixture ``story``; what comes after reads it. The node has two GPUs, so two of the four
replicas run and two wait. One of the two is cancelled; the other is held, and its limit moved to now. Meanwhile the
node is drained, and given back when both have ended: the waiting replicas run. The second run, on a profile for sites
that want ``--gres``, does what is missing.
"""

import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from tests.drills.conftest import RunningSnakemake, proteins
from tests.drills.faults import Fault, Injection
from tests.drills.processes import LONG_S, PROCESSES_END_S, eventually, is_supervisor, processes_in, processes_of
from tests.slurm import cluster
from tests.workflow.conftest import REPOSITORY, Project, classifiers, fasta, models, stop_free_sequence

__all__ = ["classifiers", "models"]

pytestmark = pytest.mark.skipif(bool(cluster.missing()), reason=cluster.missing() or "there is one")

PROFILE = REPOSITORY / "workflow" / "profiles" / "slurm" / "config.yaml"
CONTIGS = 2
SAMPLES = [f"s{number}" for number in range(40)]
REPLICAS = 4
DONE = re.compile(r"INFO (\S+): done,")


@dataclass(frozen=True)
class ReplicaJob:
    """One replica's job on the cluster, as seen while its pool ran.

    Attributes:
        replica: Number of the replica.
        devices: CUDA_VISIBLE_DEVICES of its pool.
        asked: What Slurm knows of the job.
        pool: The pool's supervisor.
    """

    replica: int
    devices: str
    asked: dict[str, str]
    pool: psutil.Process

    @property
    def processes(self) -> list[psutil.Process]:
        """Everything that works on behalf of the job now."""
        return [process for process in psutil.process_iter() if _job(process) == self.asked["JobId"]]

    @property
    def log(self) -> str:
        """What Snakemake said inside the job."""
        return Path(self.asked["StdOut"]).read_text()


@dataclass
class Story:
    """What happened.

    Attributes:
        project: The project.
        plan: The first run's plan.
        jobs: The jobs of its replicas, by replica.
        cancelled: The replica that was cancelled.
        late: The replica that hit its time limit.
        waiting: States of the waiting replicas on the drained node.
        left: Processes of the two replicas that were there after their jobs.
        returncodes: Of the two runs.
        logs: Logs of all pools of the first run, by replica, and of the second.
        between: Samples with a receipt in the spool after the first run.
        last: All jobs of the second run.
        calls: The jobs of either run in which contigs are called.
    """

    project: Project
    plan: dict[str, Any] = field(default_factory=dict)
    jobs: dict[int, ReplicaJob] = field(default_factory=dict)
    cancelled: int = -1
    late: int = -1
    waiting: set[str] = field(default_factory=set)
    left: list[psutil.Process] = field(default_factory=list)
    returncodes: list[int] = field(default_factory=list)
    logs: list[dict[int, str]] = field(default_factory=list)
    between: set[str] = field(default_factory=set)
    last: list[dict[str, str]] = field(default_factory=list)
    calls: list[dict[str, str]] = field(default_factory=list)

    def look(self) -> None:
        """Take note of the replicas that run now."""
        for pool in processes_in(self.project.directory):
            with suppress(psutil.NoSuchProcess):
                words, environment = pool.cmdline(), pool.environ()
                if not is_supervisor(words):
                    continue
                replica = int(words[-1].split(".")[-2])  # of its endpoint, which comes last
                if replica not in self.jobs:
                    asked = _known(environment["SLURM_JOB_ID"])[0]
                    self.jobs[replica] = ReplicaJob(replica, environment["CUDA_VISIBLE_DEVICES"], asked, pool)

    def log(self, replica: int) -> str:
        """The log of the replica's pool of the present run."""
        path = self.project.path(f"logs/pool.{replica}.log")
        return path.read_text() if path.exists() else ""

    def done(self, replica: int) -> list[str]:
        """Samples that it has done."""
        return DONE.findall(self.log(replica))

    @property
    def claims(self) -> list[Path]:
        """Manifests that pools have taken and not finished."""
        return list(self.project.path(".holdfast/spool/claimed").glob("*/*.json"))

    def keep_logs(self) -> None:
        """Put the logs of a run aside."""
        kept = self.project.path("logs").rename(self.project.path(f"logs of run {len(self.logs) + 1}"))
        self.logs.append({int(path.name.split(".")[1]): path.read_text() for path in kept.glob("pool.*.log")})


def _job(process: psutil.Process) -> str | None:
    """Number of the job that a process belongs to."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return str(process.environ().get("SLURM_JOB_ID"))
    return None


def _known(*number: str) -> list[dict[str, str]]:
    """What Slurm knows of a job, or of all."""
    text = cluster.ask("scontrol", "show", "job", "-d", "-o", *number)
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines() if line.startswith("JobId=")]


def _states(jobs: list[ReplicaJob]) -> set[str]:
    return {_known(job.asked["JobId"])[0]["JobState"] for job in jobs}


def _profile(directory: Path, **pool: object) -> Path:
    """The profile of the repository with what a site may change: no accounting, logs kept, perhaps --gres."""
    content = yaml.safe_load(PROFILE.read_text())
    content |= {"slurm-status-command": "squeue", "slurm-keep-successful-logs": True}
    content |= {"slurm-init-seconds-before-status-checks": 5}
    if pool:
        del content["resources"]
        content["set-resources"]["pool"] |= pool
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(content))
    return directory


def _project(directory: Path, models: Path) -> Project:
    project = Project(directory, models)
    rows: list[tuple[str, ...]] = []
    for number, name in enumerate(SAMPLES):
        if number < CONTIGS:
            project.write(f"data/{name}.fa", fasta({"c": stop_free_sequence(300, number)}))
            rows.append((name, f"data/{name}.fa"))
        else:
            project.write(f"data/{name}.fa", fasta(proteins(1 + number % 7, 60, seed=number)))
            rows.append((name, f"data/{name}.fa", "proteins"))
    project.write_sheet(*rows)
    return project


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, models: Path, classifiers: Path) -> Iterator[Story]:
    """Run it all once."""
    directory = tmp_path_factory.mktemp("slurm")
    slow = Injection(directory / "faults", Fault("embed", "slow", words="0.4"))
    story = Story(_project(directory / "project", models))
    runs = []

    def start(profile: Path, replicas: int, *arguments: str, environment: Mapping[str, str]) -> RunningSnakemake:
        pool = {"replicas": replicas, "device": "cpu", "threads": 2, "tokens_per_batch": 256}
        story.project.configure(classifier=str(classifiers / "500_model.safetensors"), pool=pool)
        options = ["--workflow-profile", str(profile), "--keep-going", *arguments]
        runs.append(RunningSnakemake(story.project, *options, environment=environment))
        return runs[-1]

    with cluster.running():
        try:
            gpus = f"gpu={REPLICAS}"
            profile = _profile(directory / "gpus")
            _first(story, start(profile, REPLICAS, "--resources", gpus, environment=slow.environment))
            story.between = {
                path.name.rpartition("-")[0] for path in story.project.path(".holdfast/spool/done").iterdir()
            }
            earlier = {job["JobId"] for job in _known()}
            story.returncodes.append(
                start(_profile(directory / "gres", gres="gpu:1"), cluster.GPUS, environment={}).wait(LONG_S)
            )
            story.last = [job for job in _known() if job["JobId"] not in earlier]
            story.calls = [job for job in _known() if job["Comment"].startswith("rule_calls")]
            story.keep_logs()
            yield story
        finally:
            for job in _known():
                cluster.ask("scancel", "--signal=KILL", "--full", job["JobId"])
            for run in runs:
                if run.process.poll() is None:
                    run.process.kill()
                    run.process.wait()


def _let_go(pool: psutil.Process) -> None:
    """Let the worker of a pool that is held go on."""
    with suppress(psutil.NoSuchProcess):
        for worker in processes_of(pool, with_torch=True):
            worker.resume()


def _first(story: Story, run: RunningSnakemake) -> None:
    """The run in which things happen to replicas."""
    node = f"NodeName={socket.gethostname().partition('.')[0]}"

    held: set[int] = set()

    def two_are_held() -> bool:
        """Hold the worker of a replica once it has done a sample: it might do all of them before another begins."""
        story.look()
        for replica in {replica for replica in story.jobs if story.done(replica)} - held:
            for worker in processes_of(story.jobs[replica].pool, with_torch=True):
                worker.suspend()
                held.add(replica)
        return len(held) == 2

    eventually(two_are_held)
    story.plan = json.loads(next(story.project.path(".holdfast/runs").glob("*/plan.json")).read_text())["plan"]
    cancelled, late = story.jobs.values()
    story.cancelled, story.late = cancelled.replica, late.replica
    cluster.ask("scontrol", "update", node, "State=DRAIN", "Reason=test")
    processes = [*cancelled.processes, *late.processes]
    eventually(lambda: len(story.claims) >= 10)  # more than workers hold
    cluster.ask("scancel", cancelled.asked["JobId"])
    eventually(lambda: "INFO ending: " in story.log(cancelled.replica))
    _let_go(cancelled.pool)
    limit = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 2))
    assert cluster.ask("scontrol", "update", f"JobId={late.asked['JobId']}", f"EndTime={limit}") == ""

    eventually(lambda: _states([cancelled, late]) == {"CANCELLED", "TIMEOUT"})
    story.left = psutil.wait_procs(processes, PROCESSES_END_S)[1]
    others = [job for job in _known() if job["JobId"] not in (cancelled.asked["JobId"], late.asked["JobId"])]
    story.waiting = {job["JobState"] for job in others}
    cluster.ask("scontrol", "update", node, "State=RESUME")

    def all_seen() -> bool:
        story.look()
        return len(story.jobs) == REPLICAS

    eventually(all_seen)
    story.returncodes.append(run.wait(LONG_S))
    story.keep_logs()


def a_replica_asks_for_its_share_and_sees_it_alone(story: Story) -> None:
    for job in story.jobs.values():
        assert job.asked["TresPerJob"] == "gres:gpu:1"
        assert job.asked["TRES"] == "cpu=2,mem=32000M,node=1,billing=2"
        assert job.asked["TimeLimit"] == "1-00:00:00"
        assert job.asked["GRES"] == f"gpu:1(IDX:{job.devices})"
    assert {story.jobs[replica].devices for replica in (story.cancelled, story.late)} == {"0", "1"}
    assert {job.devices for job in story.jobs.values()} == {"0", "1"}


def samples_are_shared_out_by_size_and_every_job_holds_to_the_plan(story: Story) -> None:
    shares = story.plan["consumers"]
    assert sorted(name for share in shares for name in share["samples"]) == sorted(SAMPLES)
    sizes = {name: os.path.getsize(story.project.path(f"data/{name}.fa")) for name in SAMPLES}
    loads: Counter[int] = Counter()
    for share in shares:
        loads[share["replica"]] += sum(sizes[name] for name in share["samples"])
    assert len(loads) == REPLICAS
    assert max(loads.values()) - min(loads.values()) <= max(sizes.values()) + 1000
    for replica, job in story.jobs.items():
        planned = {
            (f"embed_{number}", f"results/{name}/receipt.json")
            for number, share in enumerate(shares)
            if share["replica"] == replica
            for name in share["samples"]
        }
        outputs = re.findall(r"rule (embed_\d+):\n.*\n +output: (.+)\n", job.log)
        assert {(rule, path) for rule, paths in outputs for path in paths.split(", ")} == planned
        assert set(re.findall(r"output: \.holdfast/pool\.(\d+)\.json", job.log)) == {str(replica)}


def a_pool_that_is_stopped_hands_its_jobs_back(story: Story) -> None:
    endings = [story.logs[0][replica][-1000:] for replica in (story.cancelled, story.late)]
    assert all(re.search(r"INFO ending: .*SIGTERM", ending) for ending in endings), endings
    assert re.search(r"INFO [1-9]\d* unfinished jobs went back to the spool", "".join(endings)), endings
    assert story.left == []


def replicas_wait_while_the_node_is_drained(story: Story) -> None:
    assert story.waiting == {"PENDING"}
    for replica in set(story.jobs) - {story.cancelled, story.late}:
        names = {name for share in story.plan["consumers"] if share["replica"] == replica for name in share["samples"]}
        assert names <= story.between


def nothing_is_lost_and_nothing_done_twice(story: Story) -> None:
    assert story.returncodes == [1, 0]
    first = [name for log in story.logs[0].values() for name in DONE.findall(log)]
    second = [name for log in story.logs[1].values() for name in DONE.findall(log)]
    assert set(first) == story.between
    assert sorted(first + second) == sorted(SAMPLES)
    summary = story.project.table("summary.tsv")
    assert summary["sample"].tolist() == SAMPLES
    assert all(story.project.path(f"results/{name}/embeddings.h5").exists() for name in SAMPLES)
    assert story.project.processes_left() == []


def the_second_run_asks_by_gres_and_calls_share_a_job(story: Story) -> None:
    replicas = [job for job in story.last if "TresPerNode" in job]
    assert {job["TresPerNode"] for job in replicas} == {"gres:gpu:1"}
    (calls,) = story.calls
    assert len(replicas) == cluster.GPUS
    assert {job["TRES"] for job in replicas} == {"cpu=2,mem=32000M,node=1,billing=2"}
    assert calls["TRES"] == f"cpu={CONTIGS},mem={4000 * CONTIGS}M,node=1,billing={CONTIGS}"
    assert {job["JobState"] for job in [*story.last, calls]} == {"COMPLETED"}
    assert [story.project.table(f"{name}/contigs.tsv")["contig"].tolist() for name in SAMPLES[:CONTIGS]] == [["c"]] * 2


def test_replicas_on_a_real_slurm(story: Story, subtests: pytest.Subtests) -> None:
    """All of it is one test, so that one worker of pytest-xdist tells the story, once."""
    for holds in (
        a_replica_asks_for_its_share_and_sees_it_alone,
        samples_are_shared_out_by_size_and_every_job_holds_to_the_plan,
        a_pool_that_is_stopped_hands_its_jobs_back,
        replicas_wait_while_the_node_is_drained,
        nothing_is_lost_and_nothing_done_twice,
        the_second_run_asks_by_gres_and_calls_share_a_job,
    ):
        with subtests.test(holds.__name__):
            holds(story)
