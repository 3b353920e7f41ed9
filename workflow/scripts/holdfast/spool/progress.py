"""How far a pool is: what its supervisor publishes of devices and jobs, how fast it is, how long the rest will take.

Time left is tokens left by tokens a second. The tokens of a sample are known once it is read; before that they are
estimated from the size of its file by what files of its kind have held so far, and the estimate says so.

A :class:`History` holds running totals at moments of a pool's life, for the report to draw: the supervisor notes them
about once a second, and ``pools/POOL.tsv`` in the spool keeps them, never more than :data:`MOMENTS`: when there are
more, every other one goes, and the time between two doubles. A batch counts when it is done, so between two moments
work is taken to be even; while a device works and nothing has been done yet, no moment is noted, which would look like
idleness.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

from ..errors import ResourceError
from ..files import atomic_text

MOMENTS = 600
WRITTEN_S = 30.0
POOLS_KEPT = 100
ERRORS = 5
WINDOW_S = 60.0
SPEED_BATCHES = 4


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
        memory_used_bytes: Memory in use on the device, by anybody; None where no sensor says.
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
class LoggedError:
    """A line of the pool's log at level error: when, ISO 8601 in UTC, and what."""

    time: str
    message: str


@dataclass(frozen=True)
class Progress:
    """What a pool says of its work.

    Attributes:
        precision: What it computes in, ``fp32`` or ``fp16``.
        load_s: Seconds that the first worker took to load the models; 0 until then.
        devices: Its devices.
        jobs: Its open jobs, oldest first.
        errors: The last errors of its log, oldest first.
        errors_logged: How many there were.
        budgets: By model, tokens in a batch.
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
    errors: list[LoggedError] = field(default_factory=list)
    errors_logged: int = 0
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


class LastErrors(logging.Handler):
    """The last errors of the package's log, for others to see."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last: deque[LoggedError] = deque(maxlen=ERRORS)
        self.count = 0
        logging.getLogger(__name__.partition(".")[0]).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.count += 1
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds")
        self.last.append(LoggedError(when, record.getMessage()))


class Speed:
    """How fast batches came back over the last :data:`WINDOW_S`, and over :data:`WINDOW_BATCHES` at least."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was: the pool had nothing to do, and begins now."""
        self._since = time.monotonic()
        self._batches: deque[tuple[float, str, int, float]] = deque()

    def add(self, device: str, tokens: int, seconds: float) -> None:
        """Note a batch that a device has brought back after so many seconds of work."""
        now = time.monotonic()
        self._batches.append((now, device, tokens, seconds))
        while len(self._batches) > SPEED_BATCHES and self._batches[0][0] < now - WINDOW_S:
            self._since = self._batches.popleft()[0]

    def tokens_per_s(self) -> float:
        """Tokens a second, all devices together."""
        return sum(tokens for _, _, tokens, _ in self._batches) / self._window_s

    def busy(self, device: str) -> float:
        """Share of the time in which a device had a batch in work, 0..1."""
        return min(1.0, sum(s for _, name, _, s in self._batches if name == device) / self._window_s)

    @property
    def _window_s(self) -> float:
        """Seconds up to the last batch; the time since then counts when the next one is late."""
        if not self._batches:
            return 1.0
        window_s = self._batches[-1][0] - self._since
        late_s = time.monotonic() - self._batches[-1][0] - window_s / len(self._batches)
        return max(1e-3, window_s + max(0.0, late_s))


@dataclass(frozen=True)
class WorkLeft:
    """What is left: tokens and seconds, None where nobody knows, and whether part of it is guessed from file sizes."""

    tokens: int | None
    seconds: float | None
    about: bool


def work_left(pools: Iterable[Progress], unread: Iterable[tuple[str, int]]) -> WorkLeft:
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
            return WorkLeft(None, None, True)
        tokens += round(size_bytes * sum(pool.read_tokens.get(kind, 0) for pool in pools) / read_bytes)
    seconds = round(tokens / speed, 1) if speed else None if tokens else 0.0
    return WorkLeft(tokens, seconds, bool(unread))


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


@dataclass(frozen=True)
class Moment:
    """What a pool had done by a moment.

    Attributes:
        time_s: Seconds since 1970, by the clock of its host.
        devices: Devices with a worker that is ready.
        tokens: Tokens embedded so far.
        device_s: Seconds that devices have worked so far, all together.
    """

    time_s: float
    devices: int
    tokens: int
    device_s: float

    @property
    def work(self) -> tuple[int, float]:
        """Tokens and seconds."""
        return self.tokens, self.device_s


class History:
    """Notes the moments of one pool."""

    def __init__(self, path: Path) -> None:
        """Begin; of pools before this one, the records of the last :data:`POOLS_KEPT` stay."""
        self.path = path
        self.interval_s = 1.0
        self.moments: list[Moment] = []
        self._written = Moment(0.0, 0, 0, 0.0)
        with suppress(FileNotFoundError):  # another pool begins, too
            for other in sorted(path.parent.glob("*.tsv"), key=lambda other: other.stat().st_mtime)[:-POOLS_KEPT]:
                other.unlink()

    def note(self, moment: Moment, at_work: bool) -> None:
        """Note a moment, if it says anything.

        Args:
            moment: Now.
            at_work: Whether a device has a batch.
        """
        *_, before, last = None, None, *self.moments
        idle = last is not None and last.work == moment.work
        if idle and at_work:
            return
        was_idle = before is not None and last is not None and before.work == last.work
        close = before is not None and last is not None and last.time_s - before.time_s < self.interval_s
        if (was_idle and idle) or (close and not was_idle and not idle):
            self.moments.pop()
        self.moments.append(moment)
        if len(self.moments) > MOMENTS:
            self.moments = [*self.moments[:-1:2], moment]
            self.interval_s *= 2
        rested = not at_work and self._written.work != moment.work
        if rested or moment.time_s - self._written.time_s > WRITTEN_S:
            self.write()

    def write(self) -> None:
        """Write the file, as is also done while nothing is in work, and now and then."""
        if not self.moments:
            return
        with atomic_text(self.path) as file:
            file.write("\t".join(field.name for field in fields(Moment)) + "\n")
            file.writelines("\t".join(map(str, astuple(each))) + "\n" for each in self.moments)
        self._written = self.moments[-1]


def read_moments(path: Path) -> list[Moment]:
    """Read the moments of a pool; none where there is no such file.

    Raises:
        ResourceError: the file is not such a table.
    """
    try:
        _, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        return [
            Moment(float(time_s), int(count), int(tokens), float(device_s)) for time_s, count, tokens, device_s in rows
        ]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ResourceError(f"{path}: not the record of a pool ({error}); remove it") from None
