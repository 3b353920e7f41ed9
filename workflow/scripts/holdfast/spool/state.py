"""A pool's state as others see it: who it is, whether it lives, what it is doing.

The supervisor writes ``pools/POOL.json`` in the spool about once a second; clients, other pools and
``holdfast status`` read it. A pool of this machine is dead when its process is gone. A pool of another machine is dead
when its beat, a counter, has stood still for the lease that the pool itself names, by the clock of the reader and while
that could look, so neither clocks that differ between hosts nor a file system that stood still do harm.
"""

import json
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..documents import DocumentError, fill, parse_json, read_json
from ..errors import ResourceError
from ..files import atomic_text
from .progress import Progress

LEASE_S = 60.0
"""The default of the schema: more than an NFS client keeps attributes for (``acregmax``, 60 s by default)."""
LAUNCHER_VARIABLE = "HOLDFAST_LAUNCHER"


@dataclass(frozen=True)
class Identity:
    """One process on one machine, distinct from every other even when process ids are used again.

    Attributes:
        host: Host name.
        pid: Process id.
        started: Start time of the process in clock ticks since boot (``/proc/PID/stat``, field 22).
        machine: Boot id and process-id namespace; process ids compare only where it is equal.
    """

    host: str
    pid: int
    started: int
    machine: str

    @classmethod
    def own(cls) -> "Identity":
        """The identity of this process."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(
            socket.gethostname(), os.getpid(), _started(os.getpid()), f"{boot} {os.readlink('/proc/self/ns/pid')}"
        )

    @classmethod
    def launcher(cls) -> "Identity":
        """The identity of the Snakemake that this process is a job of, which the main process leaves to its jobs.

        Raises:
            ResourceError: the environment does not hold it.
        """
        try:
            return fill(cls, parse_json(os.environ[LAUNCHER_VARIABLE]))
        except (KeyError, DocumentError):
            raise ResourceError(
                f"{LAUNCHER_VARIABLE} is not in this job's environment; jobs must get the environment of the Snakemake "
                "that starts them (on Slurm, --export=ALL, the default)"
            ) from None

    @property
    def pool(self) -> str:
        """Name of the pool that this process supervises, unique among hosts and time."""
        host = "".join(letter if letter.isalnum() else "-" for letter in self.host)
        return f"{host}-{self.pid}-{self.started}"


@dataclass
class PoolState:
    """What a pool says of itself.

    Attributes:
        identity: Its supervisor's process.
        spool: The spool it serves.
        models: ``weights_sha256`` of each model it holds.
        precision: As it was configured: ``auto``, ``fp32``, ``fp16`` or ``bf16``.
        state: ``starting``, ``ready``, ``failed`` or ``ended``.
        reason: Why it failed or ended; while it starts, for whom it waits.
        beat: Counter that grows while the pool lives.
        lease_s: Seconds for which it may stand still before another host takes the pool for dead.
        progress: How far it is.
    """

    identity: Identity
    spool: str
    models: dict[str, str] = field(default_factory=dict)
    precision: str = ""
    state: str = "starting"
    reason: str = ""
    beat: int = 0
    lease_s: float = LEASE_S
    progress: Progress = field(default_factory=Progress)

    def write(self) -> None:
        """Publish in the spool."""
        with atomic_text(state_path(self.spool, self.identity.pool)) as file:
            json.dump(asdict(self), file)

    def now(self) -> "PoolState":
        """The state of the same pool as it is published now."""
        return read_state(state_path(self.spool, self.identity.pool)) or self

    def serves(self, weights: Iterable[str], precision: str) -> bool:
        """Whether the pool holds these weights (``weights_sha256``) and computes in this precision."""
        return set(weights) <= set(self.models.values()) and precision == self.precision

    def trouble(self, observer: "Observer") -> str:
        """Why no receipt will come from this pool any more, or nothing."""
        who = f"the pool (process {self.identity.pid} on {self.identity.host})"
        if self.state == "failed":
            return f"{who} failed: {self.reason}"
        if self.state == "ended":
            return f"{who} ended before this job was done: {self.reason}; run again, finished work is kept"
        if observer.is_dead(self):
            return f"{who} died without a word; see its log, then run again, finished work is kept"
        return ""

    def announce(self, endpoint: str | Path) -> None:
        """Write the endpoint file, by which consumers find the pool; the pool ends when it is taken away."""
        with atomic_text(endpoint) as file:
            json.dump(asdict(self), file)


def state_path(spool: str | Path, pool: str) -> Path:
    """Where a pool's state is published."""
    return Path(spool) / "pools" / f"{pool}.json"


def published_states(spool: str | Path) -> list[PoolState]:
    """The states that pools have published in a spool; without those that cannot be read."""
    found = [read_state(path) for path in sorted((Path(spool) / "pools").glob("*.json"))]
    return [state for state in found if state is not None]


def read_state(path: str | Path) -> PoolState | None:
    """Read a state or endpoint file; None where there is none or it is none."""
    try:
        return fill(PoolState, read_json(path))
    except (OSError, DocumentError):
        return None


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the third on; OSError or ValueError where there is no living process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ValueError(f"process {pid} has ended")
    return fields


def _started(pid: int) -> int:
    return int(_stat(pid)[19])


class Launcher:
    """The processes that started this one, from the parent up to the nearest Snakemake.

    Between a Snakemake and its pool there may be shells and wrappers (conda, containers); when any of them is gone,
    nobody will end the pool. A pool that no Snakemake started is nobody's child.
    """

    def __init__(self) -> None:
        """Look at the ancestors as they are now, and at the main process, which names itself to its jobs."""
        self._chain: list[tuple[int, int]] = []
        with suppress(ResourceError):
            main = Identity.launcher()
            if main.machine == Identity.own().machine:
                self._chain = [(main.pid, main.started)]
        chain, pid = [], os.getppid()
        while pid > 1:
            try:
                chain.append((pid, _started(pid)))
                program, *words = map(os.path.basename, Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:3])
                if program == b"snakemake" or (b"python" in program and b"snakemake" in words):
                    self._chain += chain
                    break
                pid = int(_stat(pid)[1])
            except (OSError, ValueError):
                break

    def is_gone(self) -> bool:
        """Whether one of them has ended."""
        return any(not _lives(pid, started) for pid, started in self._chain)


def _lives(pid: int, started: int) -> bool:
    try:
        return _started(pid) == started
    except (OSError, ValueError):
        return False


class Observer:
    """Watches pools and says which have died."""

    def __init__(self) -> None:
        self._own = Identity.own()
        self._seen: dict[str, tuple[int, float, float]] = {}

    def lives(self, state: PoolState) -> bool:
        """Whether the pool of this state, read just now, works or will."""
        return state.state in ("starting", "ready") and not self.is_dead(state)

    def is_dead(self, state: PoolState) -> bool:
        """Whether the pool of this state, read just now, is known to be dead."""
        who = state.identity
        if who.machine == self._own.machine:
            return not _lives(who.pid, who.started)
        beat, since, looked = self._seen.get(who.pool, (-1, 0.0, 0.0))
        now = time.monotonic()
        if state.beat != beat or now - looked > state.lease_s / 2:
            since = now  # it lives; or this process or the file system stood still, and the pool cannot be blamed
        self._seen[who.pool] = (state.beat, since, now)
        return now - since > state.lease_s
