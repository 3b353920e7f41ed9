"""Who a pool is, what it says of itself, and when it is known to be dead."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from holdfast.spool.progress import DeviceProgress, JobProgress, LoggedError, Progress
from holdfast.spool.spool import Spool
from holdfast.spool.state import Identity, Observer, PoolState, read_state, state_path

PROGRESS = Progress(
    precision="fp16",
    devices=[DeviceProgress("cuda:0", "NVIDIA H100", "ready", 1, 0.97, 5_000, 2**33, 2**36, 61, 0.99)],
    jobs=[JobProgress("a-0123", "a", "contigs", "embedding", 3.5, 900, 12, 5, 480, 200)],
    errors=[LoggedError("2026-11-24T09:00:00+00:00", "cuda:0: the worker died")],
    budgets={"esm2": 4096},
)


class Clock:
    """The monotonic clock, moved by hand."""

    now = 1000.0

    def steps(self, count: int, step_s: float) -> Iterator[int]:
        """Move on after each step."""
        for number in range(count):
            yield number
            self.now += step_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


def identity_of(process: subprocess.Popen[str]) -> Identity:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return dataclasses.replace(Identity.own(), pid=process.pid, started=int(fields[19]))


def test_the_endpoint_and_the_state_are_read_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    state = PoolState(
        Identity.own(), str(spool.root), {"esm2": "a" * 64}, "auto", "ready", "", 7, lease_s=30.5, progress=PROGRESS
    )
    state.announce(tmp_path / "endpoint.json")
    state.write()
    assert read_state(tmp_path / "endpoint.json") == state
    assert read_state(state_path(spool.root, state.identity.pool)) == state


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"identity": 1}', '{"identity": {"host": "a"}}', "\0"])
def test_what_is_no_state_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "endpoint.json").write_text(content)
    assert read_state(tmp_path / "endpoint.json") is None
    assert read_state(tmp_path / "missing.json") is None
    assert read_state(tmp_path) is None


def test_a_pool_has_the_name_of_a_file_and_every_process_another() -> None:
    own = Identity.own()
    assert own.pid == os.getpid()
    names = {dataclasses.replace(own, **change).pool for change in ({}, {"pid": 1}, {"started": 1}, {"host": "b"})}
    assert len(names) == 4
    assert dataclasses.replace(own, host="../a b.c/é").pool.startswith("---a-b-c-é-")


def test_a_pool_of_this_machine_lives_as_long_as_its_process() -> None:
    observer = Observer()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as process:
        state = PoolState(identity_of(process), "/spool")
        assert not observer.is_dead(state)
        reused = dataclasses.replace(state.identity, started=state.identity.started - 1)
        assert observer.is_dead(PoolState(reused, "/spool"))
        process.kill()
        until = time.monotonic() + 120
        while not observer.is_dead(state):  # not waited for, it is a zombie now
            assert time.monotonic() < until
            time.sleep(0.01)
        assert Path(f"/proc/{process.pid}").exists()
    assert observer.is_dead(state)


def test_a_pool_of_another_machine_is_dead_when_its_beat_stands_still(clock: Clock) -> None:
    observer = Observer()
    own = Identity.own()
    state = PoolState(dataclasses.replace(own, machine="elsewhere", pid=2**22 + 1), "/spool", beat=3, lease_s=20)
    assert not any(observer.is_dead(state) for _ in clock.steps(10, 2))
    state.beat = 4
    assert not any(observer.is_dead(state) for _ in clock.steps(11, 2))
    assert observer.is_dead(state)
    state.beat = 5
    assert not observer.is_dead(state)


def test_an_observer_that_stood_still_itself_blames_nobody(clock: Clock) -> None:
    """As when the file system that both need was away for longer than the lease."""
    observer = Observer()
    state = PoolState(dataclasses.replace(Identity.own(), machine="elsewhere"), "/spool", beat=3, lease_s=20)
    for _ in range(3):
        assert not any(observer.is_dead(state) for _ in clock.steps(9, 2))
        clock.now += 1000
    assert not any(observer.is_dead(state) for _ in clock.steps(11, 2))
    assert observer.is_dead(state)
