"""A spool on a screen: tables of its pools, their devices and jobs, once or over and over."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import HoldfastError, ResourceError
from ..pool.claims import HostGpu
from ..spool.progress import DeviceProgress, JobProgress, in_words
from ..spool.view import PoolView, SpoolView, SpoolWatch

try:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Table
    from rich.text import Text
except ImportError:
    raise ResourceError("the tables need the Python package rich; install it, or use --json") from None

REFRESH_S = 1.0
JOBS_SHOWN = 15
COLOURS = {"starting": "yellow", "ready": "green", "ended": "dim", "failed": "red", "dead": "red"}


def watch_spool(watch: SpoolWatch) -> None:
    """Show what goes on until interrupted."""
    with Live(spool_tables(watch.look()), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(REFRESH_S)
            live.update(spool_tables(watch.look()), refresh=True)


@contextmanager
def show_job(watch: SpoolWatch) -> Iterator[None]:
    """Show on stderr how far the only job of a spool is, as long as the block lasts."""
    ended = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())

    def follow(bar: Bar, task: TaskID) -> None:
        while not ended.wait(REFRESH_S / 4):
            with suppress(HoldfastError):
                for pool in watch.look().pools:
                    if pool.reason:
                        bar.update(task, description=pool.reason)
                    for job in pool.progress.jobs:
                        done = job.sequences - job.sequences_left if job.sequences else 0
                        bar.update(task, description=job.state, total=job.sequences or None, completed=done)

    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        thread = threading.Thread(target=follow, args=(bar, bar.add_task("starting", total=None)), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def print_spool(view: SpoolView) -> None:
    """Print it once."""
    Console().print(spool_tables(view))


def spool_tables(view: SpoolView) -> RenderableType:
    """A spool as tables."""
    waiting, rest = view.waiting, view.left
    parts: list[RenderableType] = [Text(f"{view.spool}  {view.time}", style="bold")]
    for pool in view.pools:
        parts += ["", *_show_pool(pool)]
    if not view.pools:
        parts += ["", "no pool has been here"]
    oldest = f", the oldest for {in_words(waiting.oldest_s)}" if waiting.jobs else ""
    parts += ["", f"{waiting.jobs:,} jobs wait for a pool ({_megabytes(waiting.size_bytes)}{oldest})"]
    if rest.tokens is None or rest.seconds is None:
        parts.append("left: not known yet")
    elif rest.tokens:
        parts.append(f"left: {'about ' if rest.about else ''}{rest.tokens:,} tokens, {in_words(rest.seconds)}")
    return Group(*parts)


def _show_pool(pool: PoolView) -> Iterator[RenderableType]:
    progress = pool.progress
    head = Text.assemble((pool.pool, "bold"), "  ", (pool.state, COLOURS.get(pool.state, "")))
    head.append(f" ({pool.reason})" if pool.reason else "")
    yield head
    if pool.state not in ("starting", "ready") or not progress.devices:
        return
    budgets = ", ".join(f"{model} {tokens:,}" for model, tokens in progress.budgets.items())
    models = ", ".join(pool.models)
    loaded = f"{models} in {progress.precision}, loaded in {progress.load_s:.1f} s; tokens in a batch: {budgets}"
    yield Text(loaded if progress.load_s else f"loading {models}")
    yield Text(
        f"{progress.done:,} jobs done, {progress.failed:,} failed, {len(progress.jobs):,} open; "
        f"{progress.sequences:,} sequences, {progress.tokens_per_s:,.0f} tokens/s; "
        f"{progress.repeated_batches} batches repeated"
    )
    if progress.devices:
        yield _show_devices(progress.devices)
    if progress.jobs:
        yield _show_jobs(progress.jobs)
    for trouble in progress.errors:
        yield Text(f"{trouble.time} {trouble.message}", style="red")


def _show_devices(devices: list[DeviceProgress]) -> Table:
    table = Table("device", "state", "restarts", "busy", "use", "memory", "temperature", box=None, pad_edge=False)
    for device in devices:
        used, whole = device.memory_used_bytes, device.memory_bytes
        table.add_row(
            f"{device.name} {device.title}",
            device.state,
            str(device.restarts),
            f"{device.busy:.0%}",
            "-" if device.use is None else f"{device.use:.0%}",
            "-" if used is None or whole is None else f"{_gibibytes(used)} of {_gibibytes(whole)} GiB",
            "-" if device.temperature_c is None else f"{device.temperature_c} °C",
        )
    return table


def print_host(gpus: list[HostGpu]) -> None:
    """Print the GPUs of this host, and who has claimed each."""
    table = Table("GPU", "claimed by", "memory used", "mode", "processes", box=None, pad_edge=False)
    for gpu, card, holder in gpus:
        used = card and f"{_gibibytes(card.memory_bytes - card.free_bytes)} of {_gibibytes(card.memory_bytes)} GiB"
        processes = ", ".join(map(str, card.processes)) if card else ""
        name = f"{gpu.name} {gpu.title}\n{gpu.uuid}"
        table.add_row(name, str(holder or "nobody"), used or "-", card.mode if card else "-", processes or "-")
    Console().print(table if gpus else "this host has no GPU that NVML shows")


def _show_jobs(jobs: list[JobProgress]) -> Table:
    more = f"... and {len(jobs) - JOBS_SHOWN:,} more" if len(jobs) > JOBS_SHOWN else None
    table = Table("sample", "state", "for", "sequences", "tokens left", box=None, pad_edge=False, caption=more)
    for job in jobs[:JOBS_SHOWN]:
        table.add_row(
            Text(job.sample),
            job.state,
            in_words(job.age_s),
            f"{job.sequences - job.sequences_left:,} of {job.sequences:,}" if job.sequences else "-",
            f"{job.tokens_left:,}" if job.sequences else "-",
        )
    return table


def _gibibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f}"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
