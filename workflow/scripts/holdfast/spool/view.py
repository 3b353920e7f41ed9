"""A spool as others see it at one time: what waits, its pools, their devices and jobs.

All of it is taken from what lies on the shared file system, the states that pools publish and the manifests that wait;
so it is the same wherever the pools are. A file that cannot be read just now counts as it did the last time.

A :class:`SpoolView` is shown as tables by :mod:`holdfast.run.screen`; as JSON, whose keys are those of the dataclasses
here and in :mod:`.progress` (``schemas/pool_status.schema.yaml`` says what they mean); and by :mod:`.metrics`.
"""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..documents import DocumentError, read_text
from ..errors import ConfigError, HoldfastError
from .job import MANIFEST_LIMIT_BYTES, parse_manifest
from .progress import Progress, WorkLeft, work_left
from .state import Observer, PoolState, published_states


@dataclass(frozen=True)
class Waiting:
    """What waits to be taken by a pool: jobs, the bytes of their files, seconds since the oldest was handed in."""

    jobs: int
    size_bytes: int
    oldest_s: float


@dataclass(frozen=True)
class PoolView:
    """A pool: its name, process, state (as it says itself, or ``dead``) with the reason, its models, how far it is."""

    pool: str
    host: str
    pid: int
    state: str
    reason: str
    models: list[str]
    progress: Progress


@dataclass(frozen=True)
class SpoolView:
    """A spool at one time (ISO 8601 in UTC)."""

    spool: str
    time: str
    waiting: Waiting
    left: WorkLeft
    pools: list[PoolView]

    def json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=2)


class SpoolWatch:
    """Looks at a spool, again and again."""

    def __init__(self, spool: Path) -> None:
        """Watch a spool.

        Raises:
            ConfigError: it is none.
        """
        if not (spool / "pools").is_dir():
            raise ConfigError(f"{spool}: not a spool; the workflow's is .holdfast/spool in its working directory")
        self._spool = spool
        self._observer = Observer()
        self._known: dict[str, tuple[str, int]] = {}

    def look(self) -> SpoolView:
        """The spool as it is now."""
        states = published_states(self._spool)
        living = [state for state in states if self._observer.lives(state)]
        waiting, files = self._waiting()
        jobs = (job for state in living for job in state.progress.jobs)
        unread = [(job.kind, job.size_bytes) for job in jobs if job.state == "reading"]
        return SpoolView(
            spool=str(self._spool.absolute()),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            waiting=waiting,
            left=work_left((state.progress for state in living), [*unread, *files]),
            pools=[_pool_view(state, state in living) for state in states],
        )

    def _waiting(self) -> tuple[Waiting, list[tuple[str, int]]]:
        """What waits, and kind and size of each file; a manifest is read once."""
        ages = {}
        for path in (self._spool / "incoming").glob("*.json"):
            with suppress(OSError):  # taken meanwhile
                ages[path.name] = path.stat().st_mtime
        known = self._known
        self._known = {name: known.get(name) or _kind_and_size(self._spool / "incoming" / name) for name in ages}
        files = [file for file in self._known.values() if file[0]]
        oldest_s = max(0.0, time.time() - min(ages.values())) if ages else 0.0
        return Waiting(len(ages), sum(max(0, size) for _, size in files), round(oldest_s, 1)), files


def _pool_view(state: PoolState, lives: bool) -> PoolView:
    who = state.identity
    known = "dead" if state.state in ("starting", "ready") and not lives else state.state
    return PoolView(who.pool, who.host, who.pid, known, state.reason, sorted(state.models), state.progress)


def _kind_and_size(path: Path) -> tuple[str, int]:
    """Kind and bytes of a job that waits; no kind where the manifest cannot be read, which a pool will refuse."""
    try:
        job = parse_manifest(read_text(path, MANIFEST_LIMIT_BYTES), path.name)
    except (OSError, DocumentError, HoldfastError):
        return "", 0
    return job.kind, job.size_bytes
