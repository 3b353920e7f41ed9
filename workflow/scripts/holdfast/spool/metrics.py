"""A spool in Prometheus' text format, for node_exporter's textfile collector: at once, or kept fresh by a pool."""

import logging
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from ..errors import ConfigError
from ..files import atomic_text, check_outputs
from .progress import Progress
from .view import SpoolView, SpoolWatch

METRICS_S = 10.0
"""Between two writings of a pool's metrics; node_exporter reads the file when it is scraped, mostly every 15 s."""
METRICS_SHARE = 20
"""Writing them takes no more than a twentieth of a pool's time, however many jobs wait."""
JOB_STATES = ("reading", "waiting", "embedding", "writing")
STATES = ("starting", "ready", "failed", "ended", "dead")
Labels = dict[str, str]
Values = list[tuple[Labels, float | None]]

log = logging.getLogger("holdfast.pool")


def prometheus_text(view: SpoolView) -> str:
    """A spool in Prometheus' text format, version 0.0.4; what nobody knows is left out.

    Counters begin at 0 with each pool. Every value has the label ``spool``, those of pools ``pool`` and ``host``, too.
    """
    lines: list[str] = []
    for name, kind, meaning, values in _metrics(view):
        known = [(labels, value) for labels, value in values if value is not None]
        if known:
            lines += [f"# HELP holdfast_{name} {meaning}", f"# TYPE holdfast_{name} {kind}"]
        for labels, value in known:
            words = ",".join(f'{key}="{_escaped(text)}"' for key, text in {"spool": view.spool, **labels}.items())
            lines.append(f"holdfast_{name}{{{words}}} {value}")
    return "".join(f"{line}\n" for line in lines)


def _metrics(view: SpoolView) -> Iterator[tuple[str, str, str, Values]]:
    """Name, type, meaning and values of each metric."""
    looked = datetime.fromisoformat(view.time).timestamp()
    yield "looked_timestamp_seconds", "gauge", "When the spool was looked at.", [({}, looked)]
    yield "waiting_jobs", "gauge", "Jobs that wait for a pool.", [({}, view.waiting.jobs)]
    yield "waiting_bytes", "gauge", "Size of the files of the jobs that wait.", [({}, view.waiting.size_bytes)]
    yield "waiting_oldest_seconds", "gauge", "Since the oldest of them was handed in.", [({}, view.waiting.oldest_s)]
    yield "left_tokens", "gauge", "Tokens of all that waits or is open, in part estimated.", [({}, view.left.tokens)]
    yield "left_seconds", "gauge", "Time that they will take the pools that live.", [({}, view.left.seconds)]
    pools = [({"pool": pool.pool, "host": pool.host}, pool) for pool in view.pools]
    states: Values = [({**who, "state": state}, float(pool.state == state)) for who, pool in pools for state in STATES]
    yield "pool_state", "gauge", "1 for the state that the pool is in, 0 for the others.", states
    living = [(who, pool.progress) for who, pool in pools if pool.state in ("starting", "ready")]
    opened: Values = [({**who, "state": state}, _in_state(pool, state)) for who, pool in living for state in JOB_STATES]
    yield "open_jobs", "gauge", "Open jobs of a pool.", opened
    speed: Values = [(who, pool.tokens_per_s) for who, pool in living]
    yield "tokens_per_second", "gauge", "Speed over the last minute or so.", speed
    ended: Values = [
        ({**who, "outcome": outcome}, getattr(pool.progress, outcome))
        for who, pool in pools
        for outcome in ("done", "failed")
    ]
    yield "jobs_total", "counter", "Jobs that a pool has ended.", ended
    for name, key, meaning in (
        ("tokens_total", "tokens", "Tokens embedded."),
        ("sequences_total", "sequences", "Sequences embedded."),
        ("batches_total", "batches", "Batches embedded."),
        ("repeated_batches_total", "repeated_batches", "Batches tried again since a worker died over them."),
        ("device_seconds_total", "device_s", "Time that devices worked, summed."),
        ("ready_seconds_total", "ready_s", "Time that devices were ready while a job was open, summed."),
        ("errors_total", "errors_logged", "Lines of the pool's log at level ERROR and above."),
    ):
        yield name, "counter", meaning, [(who, getattr(pool.progress, key)) for who, pool in pools]
    devices = [({**who, "device": device.name}, device) for who, pool in living for device in pool.devices]
    for name, kind, key, meaning in (
        ("device_busy_ratio", "gauge", "busy", "Share of the last minute or so with a batch in work."),
        ("device_use_ratio", "gauge", "use", "Share of the last second or less in which a kernel ran."),
        ("device_memory_used_bytes", "gauge", "memory_used_bytes", "Memory in use on the device, by anybody."),
        ("device_memory_bytes", "gauge", "memory_bytes", "Memory of the device."),
        ("device_temperature_celsius", "gauge", "temperature_c", "Temperature of the device."),
        ("device_tokens_total", "counter", "tokens", "Tokens embedded on the device."),
        ("device_restarts_total", "counter", "restarts", "Workers that have ended on the device."),
    ):
        yield name, kind, meaning, [(who, getattr(device, key)) for who, device in devices]
    ready: Values = [(who, float(device.state == "ready")) for who, device in devices]
    yield "device_ready", "gauge", "1 while the device has a worker that is ready, else 0.", ready


def _in_state(pool: Progress, state: str) -> float:
    return float(sum(job.state == state for job in pool.jobs))


def _escaped(text: str) -> str:
    """The value of a label; bytes of a path that are not UTF-8 become question marks."""
    plain = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return plain.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class MetricsFile:
    """Keeps a file for node_exporter's textfile collector, which a pool is asked to keep fresh."""

    def __init__(self, path: str | None, spool: str | Path) -> None:
        """Nothing is written before the first refresh, and without a path never.

        Raises:
            ConfigError: the path names something that cannot be such a file.
            OSError: its directory is missing or cannot be written.
        """
        self._path = Path(path) if path else None
        self._spool = Path(spool)
        self._watch: SpoolWatch | None = None
        self._due = 0.0
        self._failed = ""
        if self._path:
            check_outputs([self._path])

    def refresh(self, now: bool = False) -> None:
        """Write the file if it is due, or ``now``; what goes wrong is logged once, and the pool goes on."""
        began = time.monotonic()
        if self._path is None or (began < self._due and not now):
            return
        try:
            self._watch = self._watch or SpoolWatch(self._spool)
            write_prometheus(self._watch.look(), self._path)
            self._failed = ""
        except (OSError, ConfigError) as error:
            if not self._failed:
                log.warning("%s: the metrics could not be written (%s)", self._path, error)
            self._failed = str(error)
        took_s = time.monotonic() - began
        self._due = began + took_s + max(METRICS_S, METRICS_SHARE * took_s)


def write_prometheus(view: SpoolView, path: Path) -> None:
    """Write a spool in Prometheus' text format, whole or not at all."""
    with atomic_text(path) as file:
        file.write(prometheus_text(view))
