"""Claims: a GPU has one pool at a time.

A pool claims a GPU by a lock (``flock``) on its device file, such as ``/dev/nvidia0``. The supervisor holds it, so that
a worker that is replaced loses its place to nobody; it needs no file of ours, and holds between users. The lock ends
with the process, however that ends. It is advisory: programs that know no claims are seen by the memory they take, and
by the compute mode of the GPU. Pools see each other's claims where they share the device file: on one host, and in
containers that bind it; Docker makes device files of its own.
"""

import fcntl
import logging
import os
import pwd
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ..errors import ResourceError
from ..models.registry import WEIGHTS_FILE
from ..models.safetensors_file import count_numbers
from ..spool.state import PoolState
from .hardware import Candidate, Card, host_gpus, read_card
from .settings import PoolSettings

LOOK_S = 0.5
"""Between two attempts passes this time, or up to twice of it: two pools that want the same do not meet for ever."""
LOCK_ATTEMPTS, LOCK_PAUSE_S = 4, 0.005
"""A lock that is held for longer than this is a claim; :func:`find_holder` holds one for a moment only."""
NUMBER_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

log = logging.getLogger("holdfast.claims")


class Holder(NamedTuple):
    """Who has claimed a GPU; nothing is known of a process that cannot be seen from here.

    Attributes:
        pid: Process id; None where it is of another container.
        user: Name of its user; empty where that cannot be read.
        since: When the process began, ISO 8601 in local time; empty where that cannot be read.
    """

    pid: int | None = None
    user: str = ""
    since: str = ""

    def __str__(self) -> str:
        """In words."""
        if self.pid is None:
            return "a process that cannot be seen from here, of another container perhaps"
        return (
            f"process {self.pid}"
            + (f" of {self.user}" if self.user else "")
            + (f", running since {self.since}" if self.since else "")
        )


def find_holder(node: Path) -> Holder | None:
    """Who has claimed the GPU of a device file; None for nobody.

    Raises:
        OSError: the file cannot be opened.
    """
    file = os.open(node, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        found = os.fstat(file)
    finally:
        os.close(file)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():  # proc_locks(5)
            _, *words = line.split()
            if words[0] == "FLOCK" and words[4] == place:
                return _describe(int(words[3]))
    return Holder()


def _describe(pid: int) -> Holder:
    """What ``/proc`` tells everybody of a process; it may have ended meanwhile."""
    user = since = ""
    with suppress(OSError, ValueError, IndexError, StopIteration):
        number = os.stat(f"/proc/{pid}").st_uid
        user = str(number)
        with suppress(KeyError):
            user = pwd.getpwuid(number).pw_name
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])  # proc_pid_stat(5), 22
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        began = int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
        since = datetime.fromtimestamp(began).isoformat(sep=" ", timespec="minutes")
    return Holder(pid, user, since)


def obstacle(card: Card, needed_bytes: int) -> str:
    """Why a GPU that nobody has claimed cannot be used now; nothing if it can.

    Args:
        card: What others make of it.
        needed_bytes: Memory that the models need, without room for a batch.
    """
    others = " and ".join(map(str, map(_describe, card.processes))) or "somebody"
    unclaimed = f"{others}, without a claim"
    if card.mode == "EXCLUSIVE_PROCESS" and card.processes:
        return f"is in compute mode EXCLUSIVE_PROCESS and used by {unclaimed}"
    if card.free_bytes < needed_bytes:
        free, whole, needed = (f"{size / 2**30:.1f}" for size in (card.free_bytes, card.memory_bytes, needed_bytes))
        return f"has {free} of {whole} GiB free, the models need {needed}; the rest is taken by {unclaimed}"
    return ""


def needed_memory(directories: Mapping[str, Path], precision: str) -> int:
    """Bytes of the weights of prepared models, by model, in a precision.

    Raises:
        WeightsError: weights that cannot be read.
    """
    return sum(count_numbers(path / WEIGHTS_FILE) for path in directories.values()) * NUMBER_BYTES[precision]


class Claim:
    """The devices that a pool asks for: none of them is its own until all are."""

    def __init__(self, settings: PoolSettings, candidates: Sequence[Candidate], needed_bytes: int) -> None:
        """Ask for devices.

        Args:
            settings: How many, whether others may have them, too, and for how long to wait.
            candidates: Among which.
            needed_bytes: Memory that the models need on a GPU.

        Raises:
            ResourceError: fewer than that can ever be used.
        """
        self._limit_s = settings.gpu_wait_s
        self._needed_bytes = needed_bytes
        self._locks: dict[Candidate, int] = {}
        usable, never = [], []
        for candidate in candidates:
            card = read_card(candidate.uuid) if candidate.node else None
            if card and card.mode == "PROHIBITED":
                never.append(f"{candidate} is in compute mode PROHIBITED, in which nobody computes")
            elif card and card.memory_bytes * settings.memory_fraction < needed_bytes:
                sizes = card.memory_bytes / 2**30, needed_bytes / 2**30
                never.append(f"{candidate} has {sizes[0]:.1f} GiB of memory, the models need {sizes[1]:.1f} and some")
            else:
                usable.append(candidate._replace(node=None) if settings.share_gpu else candidate)
        asked = settings.gpu if candidates[0].uuid else len(candidates)
        self._least, self._most = asked or 1, asked or len(candidates)
        self._candidates = usable
        if self._least > len(usable):
            raise ResourceError(f"{self._least} device(s) asked for, {len(usable)} can be used: {'; '.join(never)}")

    def wait(self, state: PoolState, ended: Callable[[], bool], beat: Callable[[], None]) -> list[str]:
        """Claim the devices as soon as they are free, and keep them until the process ends.

        Args:
            state: Of the pool; says for whom it waits.
            ended: Whether the pool has been asked to end, and need not wait any more.
            beat: Lets others see the state.

        Returns:
            Names of the devices; none if the pool ends before.

        Raises:
            ResourceError: they were not free within ``pool.gpu_wait_s``.
        """
        until = time.monotonic() + self._limit_s
        while not (taken := self._take()):
            reason = f"waiting for {self._least} GPU(s): {self._obstacles()}"
            if time.monotonic() > until:
                raise ResourceError(
                    f"{reason}; none came free within pool.gpu_wait_s, {self._limit_s:g} s: run again later, ask for "
                    "fewer, or set pool.share_gpu: true to use a GPU together"
                )
            if reason != state.reason:
                log.info("%s", reason)
                state.reason = reason
            beat()
            if ended():
                return []
            time.sleep(random.uniform(LOOK_S, 2 * LOOK_S))
        state.reason = ""
        for candidate in taken:
            if candidate.uuid:
                log.info("%s: %s", "claimed" if candidate in self._locks else "taken without a claim", candidate)
        return [candidate.name for candidate in taken]

    def _take(self) -> list[Candidate]:
        """Claim the first that are free; none where they are too few, so that pools that want two each end well."""
        taken: list[Candidate] = []
        for number, candidate in enumerate(self._candidates):
            if len(taken) == self._most or len(taken) + len(self._candidates) - number < self._least:
                break
            if self._try(candidate):
                taken.append(candidate)
        if len(taken) >= self._least:
            return taken
        for candidate in taken:
            self._release(candidate)
        return []

    def _try(self, candidate: Candidate) -> bool:
        """Claim one device, unless somebody has it."""
        if candidate.node is None:
            return True
        try:
            file = os.open(candidate.node, os.O_RDONLY)
        except OSError:  # nobody can claim it, from here at least
            return True
        self._locks[candidate] = file
        if not _lock(file):
            self._release(candidate)
            return False
        card = read_card(candidate.uuid)
        if card and obstacle(card, self._needed_bytes):
            self._release(candidate)
            return False
        return True

    def _release(self, candidate: Candidate) -> None:
        if candidate in self._locks:
            os.close(self._locks.pop(candidate))

    def _obstacles(self) -> str:
        """What keeps each candidate from this pool now."""
        found = []
        for candidate in self._candidates:
            with suppress(OSError):
                if candidate.node and (holder := find_holder(candidate.node)):
                    found.append(f"{candidate} is held by {holder}")
                elif card := read_card(candidate.uuid):
                    found += [f"{candidate} {reason}" for reason in [obstacle(card, self._needed_bytes)] if reason]
        return "; ".join(found) or "they were held a moment ago"


def _lock(file: int) -> bool:
    """Lock an open device file, unless somebody keeps it locked."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
    return False


class HostGpu(NamedTuple):
    """A GPU of this host, or a part of one, with what others make of it and who has claimed it; None is unknown."""

    gpu: Candidate
    card: Card | None
    holder: Holder | None


def survey_host() -> list[HostGpu]:
    """The GPUs of this host, and who has claimed each."""
    found = []
    for gpu in host_gpus():
        holder = None
        with suppress(OSError):
            holder = find_holder(gpu.node) if gpu.node else None
        found.append(HostGpu(gpu, read_card(gpu.uuid), holder))
    return found
