"""The ticker: while pools work and Snakemake stands still, a line of its terminal that moves.

A thread of Snakemake's main process looks at its :mod:`standing` once a second. On a terminal it draws one line over
and over, below what Snakemake has said; elsewhere the line goes through Snakemake's logger, now and then and only
when it has changed. It is told when the Snakefile is read, begins only if Snakemake then executes jobs, says nothing
where ``--quiet`` silences progress, and ends with the run.
"""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from snakemake.logging import ColorizingTextHandler, logger
from snakemake.settings.enums import Quietness

from .standing import Standing

TICK_S = 1.0
FIRST_PAUSE_S = 2.0
LAST_PAUSE_S = 30.0
WIPE = "\r\x1b[J"


class Workflow(Protocol):
    """What is asked of a ``snakemake.workflow.Workflow``."""

    executor_plugin: Any
    output_settings: Any
    dryrun: bool
    touch: bool


class Terminal:
    """A terminal with last lines that move, one for each ticker: whatever else is written first wipes them away.

    The cursor rests at the start of the first of them, so that what others write to the terminal begins a line.
    """

    def __init__(self, stream: TextIO) -> None:
        """Wrap ``stream``, a terminal."""
        self._stream = stream
        self._lock = threading.RLock()
        self._lines: dict[str, str] = {}

    def draw(self, name: str, line: str) -> None:
        """Draw the line of a ticker anew, cut to the width of the terminal; none if it is empty."""
        with self._lock:
            self._lines[name] = line
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
            lines = [f"{name}: {line}"[: columns - 1] for name, line in self._lines.items() if line]
            up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
            self._stream.write(WIPE + "\n".join(lines) + up + "\r")
            self._stream.flush()

    def write(self, text: str) -> int:
        """Write something else."""
        with self._lock:
            if any(self._lines.values()):
                self._lines = dict.fromkeys(self._lines, "")
                self._stream.write(WIPE)
            return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's."""
        return getattr(self._stream, name)


def start(workflow: Workflow, name: str, standing: Callable[[], Standing]) -> None:
    """Start the ticker's thread.

    Args:
        workflow: The workflow whose Snakefile is being read.
        name: What its lines begin with.
        standing: Gives the standing of the run; called if it executes jobs.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_run, args=(workflow, name, standing, ended), daemon=True)

    def end() -> None:
        ended.set()
        thread.join(2 * TICK_S)

    atexit.register(end)
    thread.start()


def _run(workflow: Workflow, name: str, standing: Callable[[], Standing], ended: threading.Event) -> None:
    """Wait until Snakemake executes jobs, which may be never, then tell how far they are."""
    while workflow.executor_plugin is None:
        if ended.wait(TICK_S / 5):
            return
    quiet = set(workflow.output_settings.quiet or ())
    if workflow.dryrun or workflow.touch or quiet & {Quietness.PROGRESS, Quietness.ALL}:
        return
    taken, terminal = standing(), _terminal()
    if terminal is None:
        _log(taken, name, ended)
    else:
        _draw(taken, name, terminal, ended)
    if taken.complete:
        _tell(name, taken.line())


def _terminal() -> Terminal | None:
    """The terminal that Snakemake writes to; None if it is none, or has no lines that move."""
    handler = next((each for each in logger.handlers if isinstance(each, ColorizingTextHandler)), None)
    if handler is None or not handler.is_tty or os.environ.get("TERM") == "dumb":
        return None
    handler.acquire()
    try:
        if not hasattr(handler.stream, "draw"):  # otherwise it is that of another use of Holdfast in this workflow
            terminal = Terminal(handler.stream)
            if sys.stderr is handler.stream:
                sys.stderr = terminal
            handler.setStream(terminal)
        return handler.stream
    finally:
        handler.release()


def _draw(standing: Standing, name: str, terminal: Terminal, ended: threading.Event) -> None:
    """Draw on a terminal."""
    while not standing.complete and not ended.wait(TICK_S):
        standing.update()
        terminal.draw(name, "" if standing.complete else standing.line())
    terminal.draw(name, "")


def _log(standing: Standing, name: str, ended: threading.Event) -> None:
    """Tell the log, at growing intervals, so that short runs are seen to move and long ones do not fill it."""
    last, told_at, pause_s = "", -LAST_PAUSE_S, FIRST_PAUSE_S
    while not standing.complete and not ended.wait(TICK_S):
        standing.update()
        line, now = standing.line(), time.monotonic()
        if line not in ("", last) and now - told_at >= pause_s and not standing.complete:
            _tell(name, line)
            pause_s = min(LAST_PAUSE_S, pause_s * 1.5) if last else pause_s
            last, told_at = line, now


def _tell(name: str, line: str) -> None:
    logger.info(f"{name}: {line}", extra={"quietness": Quietness.PROGRESS})
