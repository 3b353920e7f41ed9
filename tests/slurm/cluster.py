"""A real Slurm of one node on this machine: munged, slurmctld and slurmd on loopback, with pretended GPUs.

The GPUs are device files that lead to nothing, so Slurm counts, binds and frees them as it would real ones. Everything
lies in one directory, except the links in /etc/slurm, without which commands that a plugin strips of SLURM_CONF would
not find the controller. One cluster at a time: the links are the lock. To look at one by hand::

    python tests/slurm/cluster.py snakemake --workflow-profile workflow/profiles/slurm ...
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

GPUS = 2
CPUS = 32
MEMORY_MB = 100_000
START_S = 60
CONFIGURATION = Path("/etc/slurm")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SrunPortRange=27000-28999
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthInfo=socket={root}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/controller
SlurmdSpoolDir={root}/node
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=2
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"


def missing() -> str:
    """Why no cluster can be started here, or nothing."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if lacking:
        return f"no {', '.join(lacking)} (Debian: munge slurmctld slurmd slurm-client)"
    if os.geteuid():
        return "only root can start a Slurm"
    if os.path.lexists(CONFIGURATION / "slurm.conf"):
        return f"{CONFIGURATION}/slurm.conf is there: this machine is part of a cluster, or a test is under way"
    return ""


@contextmanager
def running() -> Iterator[Path]:
    """Start a cluster, and stop it at the end; the directory with its logs."""
    root = Path(tempfile.mkdtemp(prefix="holdfast-slurm-"))
    links = [CONFIGURATION / f"{name}.conf" for name in ("slurm", "gres", "cgroup")]
    try:
        _configure(root, links)
        _start(root)
        yield root
    finally:
        _stop(root)
        for link in links:
            if link.is_symlink() and link.readlink().parent == root:
                link.unlink()
        shutil.rmtree(root)


def _configure(root: Path, links: list[Path]) -> None:
    root.chmod(0o755)  # munged insists
    for name in ("munge", "controller", "node"):
        (root / name).mkdir(mode=0o755)
    (root / "munge" / "key").touch(mode=0o600)
    (root / "munge" / "key").write_bytes(os.urandom(1024))
    host = socket.gethostname().partition(".")[0]
    for number in range(GPUS):
        os.mknod(root / f"gpu{number}", 0o20666, os.makedev(1, 3))  # as /dev/null
    values = {"root": root, "host": host, "cpus": CPUS, "memory_mb": MEMORY_MB, "gpus": GPUS}
    (root / "slurm.conf").write_text(SLURM_CONF.format(**values))
    (root / "gres.conf").write_text(f"NodeName={host} Name=gpu File={root}/gpu[0-{GPUS - 1}]\n")
    (root / "cgroup.conf").write_text(CGROUP_CONF)
    CONFIGURATION.mkdir(exist_ok=True)
    for link in links:
        link.symlink_to(root / link.name)


def _start(root: Path) -> None:
    munge = root / "munge"
    files = [f"--{name}={munge}/{name}" for name in ("socket", "log-file", "seed-file")]
    command = ["munged", "--force", f"--key-file={munge}/key", f"--pid-file={root}/munged.pid", *files]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["slurmctld", "-i"], check=True, capture_output=True)
    _wait_for(lambda: "is UP" in ask("scontrol", "ping"), root)
    subprocess.run(["slurmd"], check=True, capture_output=True)
    _wait_for(lambda: ask("sinfo", "-h", "-o", "%t").strip() == "idle", root)


def _wait_for(holds: Callable[[], bool], root: Path) -> None:
    deadline = time.monotonic() + START_S
    while not holds():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text() for path in root.glob("slurm*.log"))
            raise RuntimeError(f"Slurm does not start:\n{logs}")
        time.sleep(0.1)


def _stop(root: Path) -> None:
    for program in ("slurmd", "slurmctld", "munged"):
        try:
            pid = int((root / f"{program}.pid").read_text())
            os.kill(pid, signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError):
            continue
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def ask(*command: str) -> str:
    """What a command of Slurm prints; what it complains about, too."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60).stdout


def main() -> None:
    """Run a command with a cluster."""
    if problem := missing():
        raise SystemExit(problem)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with running():
        raise SystemExit(subprocess.run(sys.argv[1:]).returncode)


if __name__ == "__main__":
    main()
