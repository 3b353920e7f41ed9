"""What goes on in a spool, for ``pool_status.py``: its pools, their devices and jobs, and what waits.

An :class:`Overview` is made of the states that pools publish and of the manifests that wait. It is shown as tables by
:mod:`screen`, or as JSON, whose keys are those of the dataclasses here and in :mod:`progress`;
``schemas/pool_status.schema.yaml`` says what they mean.
"""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from . import documents, manifest, status
from .errors import ConfigError, HoldfastError
from .progress import JobProgress, Left, Progress, left
from .status import Observer, PoolState

MANIFESTS_READ = 200
"""Manifests read for one look: each takes about 5 ms."""


@dataclass(frozen=True)
class Waiting:
    """What waits to be taken by a pool: jobs, the bytes of their files, seconds since the oldest was handed in."""

    jobs: int
    size_bytes: int
    oldest_s: float


@dataclass(frozen=True)
class Pool:
    """A pool: its name, process, state (as it says itself, or ``dead``) with the reason, its models, how far it is."""

    pool: str
    host: str
    pid: int
    state: str
    reason: str
    models: list[str]
    progress: Progress


@dataclass(frozen=True)
class Overview:
    """A spool at one time (ISO 8601 in UTC)."""

    spool: str
    time: str
    waiting: Waiting
    left: Left
    pools: list[Pool]

    def json(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=2)


class Spyglass:
    """Looks at a spool, again and again."""

    def __init__(self, spool: Path) -> None:
        """Point it.

        Raises:
            ConfigError: not a spool.
        """
        if not (spool / "pools").is_dir():
            raise ConfigError(f"{spool}: not a spool; the workflow's is .holdfast/spool in its working directory")
        self._spool = spool
        self._observer = Observer()
        self._known: dict[str, tuple[str, int]] = {}

    def look(self) -> Overview:
        """The spool as it is now."""
        states = status.published(self._spool)
        living = [state for state in states if self._observer.lives(state)]
        waiting, files = self._waiting()
        unread = [(job.kind, job.size_bytes) for job in _jobs(living) if job.state == "reading"]
        return Overview(
            spool=str(self._spool.absolute()),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            waiting=waiting,
            left=left((state.progress for state in living), [*unread, *files]),
            pools=[self._pool(state, state in living) for state in states],
        )

    def _pool(self, state: PoolState, lives: bool) -> Pool:
        who = state.identity
        known = "dead" if state.state in ("starting", "ready") and not lives else state.state
        return Pool(who.pool, who.host, who.pid, known, state.reason, sorted(state.models), state.progress)

    def _waiting(self) -> tuple[Waiting, list[tuple[str, int]]]:
        """What waits, and kind and size of each file; where many wait, of some of them as often as it takes."""
        ages = {}
        for path in (self._spool / "incoming").glob("*.yaml"):
            with suppress(OSError):  # taken meanwhile
                ages[path] = path.stat().st_mtime
        self._known = {name: known for name, known in self._known.items() if self._spool / "incoming" / name in ages}
        for path in [path for path in ages if path.name not in self._known][:MANIFESTS_READ]:
            self._known[path.name] = _kind_and_size(path)
        files = [known for known in self._known.values() if known[0]]
        if files and len(files) < len(ages):
            files = [files[number % len(files)] for number in range(len(ages))]
        size_bytes = sum(max(0, size) for _, size in files)
        oldest_s = max(0.0, time.time() - min(ages.values())) if ages else 0.0
        return Waiting(len(ages), size_bytes, round(oldest_s, 1)), files


def _kind_and_size(path: Path) -> tuple[str, int]:
    """Kind and bytes of a job that waits; no kind where the manifest cannot be read, which a pool will refuse."""
    try:
        job = manifest.parse(documents.read_text(path, manifest.MAX_BYTES), path.name)
    except (OSError, documents.DocumentError, HoldfastError):
        return "", 0
    return job.kind, job.size_bytes


def _jobs(states: list[PoolState]) -> Iterator[JobProgress]:
    return (job for state in states for job in state.progress.jobs)
