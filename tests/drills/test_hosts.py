"""Hosts and users that share a spool: what each may do, and what becomes of the pools of a host that stalls or dies.

A second host is a process in mount, host-name and process-id namespaces of its own, which sees the spool at another
path and cannot ask after the processes of the first.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from holdfast.models.registry import Output
from holdfast.results.embeddings import read_embeddings
from holdfast.run.client import submit_jobs
from holdfast.spool.job import Manifest, Request
from holdfast.spool.spool import Spool
from holdfast.spool.state import read_state

from tests.drills.conftest import RunningPool, Serve, check_equal, claims, proteins
from tests.drills.faults import Fault, token_marker
from tests.drills.processes import LONG_S, blocks, eventually
from tests.workflow.conftest import SCRIPTS, fasta

LEASE_S = 20
NAMESPACES = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
NAMESPACES += [] if os.getuid() == 0 else ["--map-root-user"]
CAN_BE_ANOTHER_HOST = subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode == 0
needs_another_host = pytest.mark.skipif(not CAN_BE_ANOTHER_HOST, reason="unshare may not make namespaces here")


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

        settings = {"spool": spool, "command": command, "tokens_per_batch": 64, "lease_s": LEASE_S}
        return serve(Fault("embed", "hang", token_marker(models, last)), name=name, **settings)

    dying, stalling = elsewhere("dying", "b"), elsewhere("stalling", "c")
    # Both do a whole job for a consumer here, which finds the embeddings at its own path; files they lack are named.
    job, lacking = dying.job("a", tmp_path / "a.faa"), dying.job("h", hidden / "h.faa")
    outputs = [tmp_path / f"{sample}.json" for sample in "ah"]
    done, failed = submit_jobs([job, lacking], Spool(spool), None, outputs, patience_s=LONG_S)
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
import dataclasses, sys
from holdfast.spool.job import parse_manifest
from holdfast.spool.spool import Spool
first = parse_manifest(sys.stdin.read(), "first")
for number in range(int(sys.argv[3])):
    changed = {"sample": sys.argv[2], "size_bytes": number, "input_sha256": f"{ord(sys.argv[2][-1]):02x}{number:062x}"}
    Spool(sys.argv[1]).submit(dataclasses.replace(first, **changed))
"""


@needs_another_host
def test_hosts_whose_processes_have_the_same_ids_hand_in_whole_jobs(tmp_path: Path) -> None:
    count = 300
    first = Manifest(
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


ANOTHER_USER = """
import os, sys
from holdfast.errors import ResourceError
from holdfast.spool.spool import Spool
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
