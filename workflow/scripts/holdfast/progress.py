"""How far a pool is: what its supervisor publishes of devices and jobs, and how long the rest will take.

Time left is tokens left by tokens a second. The tokens of a sample are known once it is read; before that they are
estimated from the size of its file by what files of its kind have held so far, and the estimate says so.
"""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

WINDOW_S = 60.0
WINDOW_BATCHES = 4


@dataclass(frozen=True)
class DeviceProgress:
    """A device of a pool.

    Attributes:
        name: ``cpu:N``, or ``cuda:N`` as the pool counts the devices that it sees.
        title: What it is; empty until its worker is ready for the first time.
        state: ``loading``, ``ready`` or ``retired``.
        restarts: Workers that have ended on it.
        busy: Share of the last minute or so in which a batch was in work, 0..1.
        tokens: Tokens that have been embedded on it.
        memory_used_bytes: Memory in use on the device, by anybody; None where no sensor tells.
        memory_bytes: Its memory; None as above.
        temperature_c: Its temperature; None as above.
        use: Share of the last second or less in which a kernel ran, 0..1; None as above.
    """

    name: str
    title: str
    state: str
    restarts: int
    busy: float
    tokens: int
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    temperature_c: int | None = None
    use: float | None = None


@dataclass(frozen=True)
class JobProgress:
    """An open job of a pool.

    Attributes:
        job: Its name.
        sample: Name of the sample.
        kind: Kind of the sample.
        state: ``reading``, ``waiting`` (for the models), ``embedding`` or ``writing``.
        age_s: Seconds since the pool took it.
        size_bytes: Size of its file.
        sequences: Its distinct sequences over all models; 0 until it is read.
        sequences_left: Those without a vector.
        tokens: Tokens of its distinct sequences; 0 until it is read.
        tokens_left: Tokens of those without a vector, also where another job waits for the same.
    """

    job: str
    sample: str
    kind: str
    state: str
    age_s: float
    size_bytes: int
    sequences: int = 0
    sequences_left: int = 0
    tokens: int = 0
    tokens_left: int = 0


@dataclass(frozen=True)
class Trouble:
    """A line of the pool's log at level error: when, ISO 8601 in UTC, and what."""

    time: str
    message: str


@dataclass(frozen=True)
class Progress:
    """What a pool says of its work.

    Attributes:
        precision: What it computes in; empty until a worker is ready.
        load_s: Seconds that the first worker took to load the models.
        devices: Its devices.
        jobs: Its open jobs, oldest first.
        errors: The last errors of its log, oldest first.
        budgets: By model, tokens in a batch; empty until a worker is ready.
        done: Jobs done.
        failed: Jobs failed.
        batches: Batches embedded.
        sequences: Sequences in them.
        tokens: Tokens in them.
        device_s: Seconds that devices worked on them.
        ready_s: Seconds that devices were ready while a job was open.
        repeated_batches: Batches that had to be tried again since a worker died over them.
        tokens_per_s: Of the last minute or so.
        tokens_left: Distinct tokens that the jobs read so far still wait for.
        read_bytes: By kind, bytes in the files read so far.
        read_tokens: By kind, tokens found in them.
    """

    precision: str = ""
    load_s: float = 0.0
    devices: list[DeviceProgress] = field(default_factory=list)
    jobs: list[JobProgress] = field(default_factory=list)
    errors: list[Trouble] = field(default_factory=list)
    budgets: dict[str, int] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    batches: int = 0
    sequences: int = 0
    tokens: int = 0
    device_s: float = 0.0
    ready_s: float = 0.0
    repeated_batches: int = 0
    tokens_per_s: float = 0.0
    tokens_left: int = 0
    read_bytes: dict[str, int] = field(default_factory=dict)
    read_tokens: dict[str, int] = field(default_factory=dict)


class Speed:
    """How fast batches came back over the last :data:`WINDOW_S`, and over :data:`WINDOW_BATCHES` at least."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was: the pool had nothing to do, and begins now."""
        self._since = time.monotonic()
        self._landed: deque[tuple[float, str, int, float]] = deque()

    def add(self, device: str, tokens: int, seconds: float) -> None:
        """Note a batch that a device has brought back after so many seconds of work."""
        now = time.monotonic()
        self._landed.append((now, device, tokens, seconds))
        while len(self._landed) > WINDOW_BATCHES and self._landed[0][0] < now - WINDOW_S:
            self._since = self._landed.popleft()[0]

    def tokens_per_s(self) -> float:
        """Tokens a second, all devices together."""
        return sum(tokens for _, _, tokens, _ in self._landed) / self._window_s

    def busy(self, device: str) -> float:
        """Share of the time in which a device had a batch in work, 0..1."""
        return min(1.0, sum(s for _, name, _, s in self._landed if name == device) / self._window_s)

    @property
    def _window_s(self) -> float:
        """Seconds up to the last batch; the time since then counts when the next one is late."""
        if not self._landed:
            return 1.0
        window_s = self._landed[-1][0] - self._since
        late_s = time.monotonic() - self._landed[-1][0] - window_s / len(self._landed)
        return max(1e-3, window_s + max(0.0, late_s))


@dataclass(frozen=True)
class Left:
    """What is left: tokens and seconds, None where nobody knows, and whether part of it is guessed from file sizes."""

    tokens: int | None
    seconds: float | None
    about: bool


def left(pools: Iterable[Progress], unread: Iterable[tuple[str, int]]) -> Left:
    """How much is left for some pools, and how long it will take them.

    Args:
        pools: What the living pools that share the work publish.
        unread: Kind and size in bytes of each file that is still to be read; -1 where the size is not known.
    """
    pools, unread = list(pools), list(unread)
    tokens, speed = sum(pool.tokens_left for pool in pools), sum(pool.tokens_per_s for pool in pools)
    for kind, size_bytes in unread:
        read_bytes = sum(pool.read_bytes.get(kind, 0) for pool in pools)
        if size_bytes < 0 or not read_bytes:
            return Left(None, None, True)
        tokens += round(size_bytes * sum(pool.read_tokens.get(kind, 0) for pool in pools) / read_bytes)
    seconds = round(tokens / speed, 1) if speed else None if tokens else 0.0
    return Left(tokens, seconds, bool(unread))


def in_words(seconds: float) -> str:
    """A length of time in one or two units, such as ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
