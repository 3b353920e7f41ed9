"""The pace of a pool: running totals of its work at moments of its life, for the report to draw.

The supervisor notes them about once a second, and ``pools/POOL.tsv`` in the spool holds them, never more than
:data:`MOMENTS`: when there are more, every other one goes, and the time between two doubles. A night has one a minute.
A batch counts when it is done, so between two moments work is taken to be even; while a device works and nothing has
been done yet, no moment is noted, which would look like idleness.
"""

from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from .errors import ResourceError
from .files import atomic_text

MOMENTS = 600
WRITTEN_S = 30.0
POOLS_KEPT = 100


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


class Pace:
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

    def note(self, moment: Moment, in_air: bool) -> None:
        """Note a moment, if it says anything.

        Args:
            moment: Now.
            in_air: Whether a device has a batch.
        """
        *_, before, last = None, None, *self.moments
        idle = last is not None and last.work == moment.work
        if idle and in_air:
            return
        was_idle = before is not None and last is not None and before.work == last.work
        close = before is not None and last is not None and last.time_s - before.time_s < self.interval_s
        if (was_idle and idle) or (close and not was_idle and not idle):
            self.moments.pop()
        self.moments.append(moment)
        if len(self.moments) > MOMENTS:
            self.moments = [*self.moments[:-1:2], moment]
            self.interval_s *= 2
        rested = not in_air and self._written.work != moment.work
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


def read(path: Path) -> list[Moment]:
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
