"""A GPU has one pool at a time: real locks of real processes on device files that are plain files."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from holdfast.pool import claims, hardware
from holdfast.pool.claims import Claim, Holder, find_holder, needed_memory, obstacle
from holdfast.pool.hardware import Candidate, Card, part_file
from holdfast.pool.settings import pool_settings
from holdfast.spool.state import Identity, PoolState
from safetensors import safe_open

from .conftest import DATA, LONG_S, SCRIPTS, ServedPool, compare, family, gone, job, proteins, submit

PRETENDED = Path(__file__).parent / "pretended_gpus.py"
GIB = 2**30
FREE = {"memory_bytes": 80 * GIB, "free_bytes": 79 * GIB, "mode": "DEFAULT", "processes": []}

CLAIMANT = """
import os, sys, time
from pathlib import Path
from holdfast.pool.claims import Claim
from holdfast.pool.hardware import Candidate
from holdfast.pool.settings import pool_settings
from holdfast.spool.state import Identity, PoolState

wanted, share, wait_s = int(sys.argv[1]) or None, sys.argv[2] == "share", float(sys.argv[3])
gpus = [Candidate(f"cuda:{number}", f"GPU-{number}", "", Path(node)) for number, node in enumerate(sys.argv[4:])]
settings = pool_settings({"models": {"m": "/m"}, "gpu": wanted, "share_gpu": share, "gpu_wait_s": wait_s}, "a test")
state = PoolState(Identity.own(), "/none")
def beat():
    print("waits", state.reason, flush=True)
names = Claim(settings, gpus, 0).wait(state, lambda: False, beat)
print(*names, flush=True)
sys.stdin.read()
"""


class Claimant:
    """A process that claims GPUs and keeps them until it ends."""

    def __init__(self, nodes: list[Path], wanted: int, share: bool = False, wait_s: float = LONG_S) -> None:
        """Start it; ``wanted`` 0 for all that are free."""
        words = [str(wanted), "share" if share else "", str(wait_s), *map(str, nodes)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLAIMANT, *words],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """What it says next: the names of its GPUs, or for whom it waits."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def names(self) -> list[str]:
        """The GPUs that it gets, after waiting for them."""
        while (line := self.line()).startswith("waits"):
            pass
        return line.split()

    def kill(self) -> None:
        """Take it away as a crash would."""
        self.process.kill()
        self.process.communicate(timeout=LONG_S)


@pytest.fixture
def nodes(tmp_path: Path) -> list[Path]:
    """Device files of two GPUs."""
    directory = tmp_path / "dev"
    directory.mkdir()
    paths = [directory / f"nvidia{number}" for number in range(2)]
    for path in paths:
        path.touch()
    return paths


@pytest.fixture
def claim() -> Iterator[Callable[..., Claimant]]:
    """Start claimants that are killed at the end of the test."""
    started: list[Claimant] = []

    def start(*arguments: Any, **options: Any) -> Claimant:
        started.append(Claimant(*arguments, **options))
        return started[-1]

    yield start
    for claimant in started:
        claimant.kill()


def test_claimants_spread_over_what_is_free_and_the_next_waits_for_a_holder_it_names(
    nodes: list[Path], claim: Callable[..., Claimant]
) -> None:
    assert find_holder(nodes[0]) is None
    first = claim(nodes, 1)
    assert first.names() == ["cuda:0"]
    second = claim(nodes, 0)  # all that are free, which is one
    assert second.names() == ["cuda:1"]
    holder = find_holder(nodes[1])
    assert holder is not None
    began = psutil.Process(second.process.pid).create_time()
    assert (holder.pid, holder.user) == (second.process.pid, psutil.Process().username())
    assert holder.since in {time.strftime("%Y-%m-%d %H:%M", time.localtime(began + s)) for s in (-1, 0, 1)}
    third = claim(nodes, 1)
    assert third.line() == (
        f"waits waiting for 1 GPU(s): cuda:0 (, GPU-0) is held by {find_holder(nodes[0])}; "
        f"cuda:1 (, GPU-1) is held by {holder}"
    )
    first.kill()
    assert third.names() == ["cuda:0"], "what a crashed process held is free at once"
    assert sorted(path.name for path in nodes[0].parent.iterdir()) == ["nvidia0", "nvidia1"], "and it leaves no file"


def test_who_wants_two_gets_both_or_none(nodes: list[Path], claim: Callable[..., Claimant]) -> None:
    first = claim(nodes[1:], 1)
    assert first.names() == ["cuda:0"]
    both = claim(nodes, 2)
    assert both.line().startswith("waits waiting for 2 GPU(s): cuda:1")
    small = claim(nodes, 1)
    assert small.names() == ["cuda:0"], "a pool that waits keeps nothing from others"
    first.kill()
    small.kill()
    assert both.names() == ["cuda:0", "cuda:1"]


def test_who_looks_keeps_nobody_from_claiming(nodes: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking takes a shared lock for a moment; here one that lasts until the claim pauses for the second time."""
    looking = os.open(nodes[0], os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            os.close(looking)

    monkeypatch.setattr(claims.time, "sleep", pause)
    settings = pool_settings({"models": {"m": "/m"}, "gpu": 1, "gpu_wait_s": 0}, "a test")
    asked = Claim(settings, [Candidate("cuda:0", "GPU-0", "", nodes[0])], 0)
    names = asked.wait(PoolState(Identity.own(), "/none"), lambda: False, lambda: None)
    assert (names, len(pauses)) == (["cuda:0"], 2)


def test_many_that_want_two_of_three_all_get_them_and_never_at_the_same_time(
    tmp_path: Path, claim: Callable[..., Claimant]
) -> None:
    nodes = [tmp_path / f"nvidia{number}" for number in range(3)]
    for path in nodes:
        path.touch()
    orders = [nodes, nodes[::-1], nodes[1:] + nodes[:1], nodes]
    claimants = {number: claim(order, 2) for number, order in enumerate(orders)}
    served = []
    while claimants:
        assert all(claimant.process.poll() is None for claimant in claimants.values())
        held = [find_holder(path) for path in nodes]
        owners = {holder.pid for holder in held if holder}
        for number, claimant in claimants.items():
            if sum(holder is not None and holder.pid == claimant.process.pid for holder in held) == 2:
                names = claimant.names()
                assert len(set(names)) == 2
                assert len(owners - {claimant.process.pid}) <= 1  # another may try the third just now
                claimant.kill()
                del claimants[number]
                served.append(number)
                break
        time.sleep(0.05)
    assert sorted(served) == [0, 1, 2, 3]


def test_sharing_and_masks_wait_for_nobody(nodes: list[Path], claim: Callable[..., Claimant]) -> None:
    assert claim(nodes, 2).names() == ["cuda:0", "cuda:1"]
    shared = claim(nodes, 1, share=True)
    assert shared.line() == "cuda:0"
    absent = claim([nodes[0].with_name("nvidia7")], 1)  # no device file is seen, so nobody can claim it
    assert absent.line() == "cuda:0"


def test_a_pool_on_the_cpu_has_all_its_workers_whatever_gpus_were_asked_for() -> None:
    settings = pool_settings({"models": {"m": "/m"}, "gpu": 3, "device": "cpu", "cpu_workers": 2}, "a test")
    claim = Claim(settings, [Candidate("cpu:0"), Candidate("cpu:1")], 0)
    assert claim.wait(PoolState(Identity.own(), "/none"), lambda: False, lambda: None) == ["cpu:0", "cpu:1"]


def test_a_wait_ends_with_what_to_do(nodes: list[Path], claim: Callable[..., Claimant]) -> None:
    holder = claim(nodes[:1], 1)
    assert holder.names() == ["cuda:0"]
    late = claim(nodes[:1], 1, wait_s=0)
    error = late.process.communicate(timeout=LONG_S)[1].splitlines()[-1]
    assert error.startswith(
        "holdfast.errors.ResourceError: waiting for 1 GPU(s): cuda:0 (, GPU-0) is held by process "
        f"{holder.process.pid} of "
    )
    assert error.endswith(
        "; none came free within pool.gpu_wait_s, 0 s: run again later, ask for fewer, or set pool.share_gpu: true to "
        "use a GPU together"
    )


def test_a_holder_of_another_process_namespace_is_not_named(tmp_path: Path) -> None:
    """As in a container: a lock that no process of /proc/locks accounts for."""
    node = tmp_path / "nvidia0"
    node.touch()
    with open(node) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        looked = "import sys, pathlib, holdfast.pool.claims as c; print(c.find_holder(pathlib.Path(sys.argv[1])))"
        command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", looked, str(node)]
        ended = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True, timeout=LONG_S
        )
        if "unshare" in ended.stderr:
            pytest.skip(f"needs a process namespace: {ended.stderr.strip()}")
    assert ended.stdout == f"{Holder()}\n"
    assert "cannot be seen from here" in ended.stdout


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"processes": (os.getpid(),)}, ""),  # somebody is there, and leaves room enough
        ({"mode": "EXCLUSIVE_PROCESS"}, ""),
        (
            {"mode": "EXCLUSIVE_PROCESS", "processes": (os.getpid(),)},
            "is in compute mode EXCLUSIVE_PROCESS and used by ME, running since ",
        ),
        (
            {"free_bytes": 5 * GIB, "processes": (os.getpid(),)},
            "has 5.0 of 80.0 GiB free, the models need 6.0; the rest is taken by ME, running since ",
        ),
        (
            {"free_bytes": 5 * GIB},
            "has 5.0 of 80.0 GiB free, the models need 6.0; the rest is taken by somebody, without a claim",
        ),
    ],
)
def test_exclusive_mode_and_memory_that_is_taken_are_told_apart(changed: dict[str, Any], said: str) -> None:
    found = obstacle(Card(**{**FREE, "processes": (), **changed}), 6 * GIB)
    assert found.startswith(said.replace("ME", f"process {os.getpid()} of {psutil.Process().username()}"))
    assert bool(found) == bool(said)
    assert not said or found.endswith(", without a claim")


def test_cards_on_which_the_models_never_fit_are_refused_at_once(
    nodes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = {"GPU-0": Card(16 * GIB, 16 * GIB, "DEFAULT", ()), "GPU-1": Card(80 * GIB, 80 * GIB, "PROHIBITED", ())}
    monkeypatch.setattr("holdfast.pool.claims.read_card", cards.get)
    gpus = [Candidate(f"cuda:{number}", f"GPU-{number}", "H100", node) for number, node in enumerate(nodes)]
    settings = pool_settings({"models": {"m": "/m"}}, "a test")
    with pytest.raises(Exception, match="1 device") as caught:
        Claim(settings, gpus, 22 * GIB)
    assert str(caught.value) == (
        "1 device(s) asked for, 0 can be used: cuda:0 (H100, GPU-0) has 16.0 GiB of memory, the models need 22.0 and "
        "some; cuda:1 (H100, GPU-1) is in compute mode PROHIBITED, in which nobody computes"
    )
    Claim(settings, gpus, 10 * GIB)


def test_the_memory_that_models_need_is_that_of_their_weights(models: dict[str, Path]) -> None:
    numbers = 0
    for directory in models.values():
        with safe_open(directory / "model.safetensors", framework="np") as file:
            numbers += sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118, not a mapping
    assert needed_memory(models, "fp32") == 4 * numbers
    assert needed_memory(models, "bf16") == 2 * numbers


def test_a_part_of_a_gpu_has_the_device_file_that_the_driver_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out as NVIDIA's guide to MIG shows it."""
    monkeypatch.setattr(hardware, "CAPABILITIES", tmp_path)
    access = tmp_path / "gpu0/mig/gi3/ci0/access"
    access.parent.mkdir(parents=True)
    access.write_text("DeviceFileMinor: 31\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    assert part_file(0, 3, 0) == Path("/dev/nvidia-caps/nvidia-cap31")
    assert part_file(0, 3, 1) is None


@pytest.fixture
def pretend(serve: Callable[..., ServedPool], nodes: list[Path]) -> Callable[..., ServedPool]:
    """Start pools on the two pretended GPUs."""

    def start(name: str, **changed: Any) -> ServedPool:
        environment = {"PRETENDED_GPUS": str(nodes[0].parent), **changed.pop("environment", {})}
        return serve(name, entry=PRETENDED, environment=environment, device="auto", **changed)

    return start


def held_by(node: Path) -> int | None:
    """Process id of the holder of a pretended GPU."""
    holder = find_holder(node)
    return holder.pid if holder else None


def status(nodes: list[Path]) -> str:
    """What ``holdfast status --host`` prints."""
    environment = {**os.environ, "PRETENDED_GPUS": str(nodes[0].parent), "COLUMNS": "200"}
    command = [sys.executable, PRETENDED, "status", "--host"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG_S, check=True).stdout


def test_pools_take_a_gpu_each_and_a_crash_leaves_nothing(
    pretend: Callable[..., ServedPool],
    nodes: list[Path],
    tmp_path: Path,
    models: dict[str, Path],
    encoders: dict[str, Any],
) -> None:
    (nodes[1].parent / "nvidia1.json").write_text(json.dumps({**FREE, "processes": [1]}))
    first, second = pretend("first", gpu=1), pretend("second", gpu=1)
    first.eventually(lambda: {held_by(node) for node in nodes} == {first.process.pid, second.process.pid})
    first.eventually(lambda: first.state.progress.load_s > 0)
    assert len(first.state.progress.devices) == 1
    third = pretend("third", gpu=1, idle_timeout_s=1)  # waiting is not idling
    third.eventually(lambda: third.state.reason != "")
    reason = third.state.reason
    assert (third.state.state, third.state.progress.devices) == ("starting", [])
    for pool in (first, second):
        assert f"is held by process {pool.process.pid} of {psutil.Process().username()}, running since" in reason
    assert reason in third.log.read_text()
    table = status(nodes)
    assert f"process {first.process.pid}" in table
    assert "1.0 of 80.0 GiB" in table
    for child in family(first.process.pid):
        if any("multiprocessing.spawn" in word for word in child.cmdline()):
            child.kill()
    small = job(models, "small", proteins(tmp_path / "small.faa", 3, 20), "proteins")
    assert submit(first, small)["small"].state == "done"
    first.eventually(lambda: first.state.progress.devices[0].restarts == 1)
    assert third.state.reason == reason, "a pool whose worker is replaced keeps its place"
    assert third.process.poll() is None, "its idle timeout has passed long ago"
    entry = job(models, "s", DATA / "phage_heldout.fna", "contigs")
    third.spool.submit(entry)
    children = family(first.process.pid)
    first.process.kill()
    first.ended()
    third.eventually(lambda: third.process.pid in {held_by(node) for node in nodes})
    gone(children)
    assert compare(submit(third, entry)["s"], entry, models, encoders) > 0
    third.endpoint.unlink(missing_ok=True)
    assert third.ended() == 0
    assert third.process.pid not in {held_by(node) for node in nodes}


def test_a_pool_that_waits_ends_when_nobody_wants_it_any_more(
    pretend: Callable[..., ServedPool], nodes: list[Path], claim: Callable[..., Claimant]
) -> None:
    assert claim(nodes, 2).names() == ["cuda:0", "cuda:1"]
    left, stopped, late = pretend("left", gpu=1), pretend("stopped"), pretend("late", gpu=2, gpu_wait_s=1)
    for pool in (left, stopped):
        pool.eventually(lambda pool=pool: pool.state.reason != "")  # type: ignore[misc]
    left.endpoint.unlink()
    stopped.process.send_signal(signal.SIGTERM)
    assert (left.ended(), stopped.ended(), late.ended()) == (0, 0, 1)
    assert "ending: the endpoint file is gone, nobody waits any more" in left.log.read_text()
    assert stopped.state.reason == "no job open at SIGTERM"
    assert late.state.state == "failed"
    assert "none came free within pool.gpu_wait_s, 1 s" in late.state.reason
    assert "Traceback" not in late.log.read_text()


def test_pools_that_a_scheduler_parts_wait_for_nothing(
    pretend: Callable[..., ServedPool], nodes: list[Path], claim: Callable[..., Claimant]
) -> None:
    """As under Slurm, which shows each job GPUs of its own; and a GPU that is full of others' work is passed over."""
    assert claim(nodes[:1], 1).names() == ["cuda:0"]
    masked = pretend("masked", gpu=1, environment={"CUDA_VISIBLE_DEVICES": "1"})
    masked.eventually(lambda: held_by(nodes[1]) == masked.process.pid)
    assert "waiting" not in masked.log.read_text()
    masked.endpoint.unlink()
    assert masked.ended() == 0
    (nodes[1].parent / "nvidia1.json").write_text(json.dumps({**FREE, "free_bytes": 0, "processes": [os.getpid()]}))
    pool = pretend("pool", gpu=1)
    pool.eventually(lambda: pool.state.reason != "")
    assert "has 0.0 of 80.0 GiB free, the models need 0.0; the rest is taken by process" in pool.state.reason
    (nodes[1].parent / "nvidia1.json").write_text(json.dumps(FREE))
    pool.eventually(lambda: held_by(nodes[1]) == pool.process.pid)


def test_the_host_without_gpus_says_so() -> None:
    command = [sys.executable, SCRIPTS / "entry.py", "status"]
    ended = subprocess.run([*command, "--host"], capture_output=True, text=True, timeout=LONG_S)
    assert ended.returncode == 0
    assert ended.stdout in ("this host has no GPU that NVML shows\n",) or "GPU-" in ended.stdout
    for words in ([], ["spool", "--host"]):
        ended = subprocess.run([*command, *words], capture_output=True, text=True, timeout=LONG_S)
        assert (ended.returncode, ended.stderr) == (
            2,
            "holdfast: error: holdfast status takes either a SPOOL or --host\n",
        )
