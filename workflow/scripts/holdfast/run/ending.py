"""The last words of a run, when Snakemake has said its own: what came out, what failed, what was interrupted.

They are said when the main process ends. Hooks of Snakemake would not do: those of a workflow that is used as a module
are not called. What failed is known from ``results/failures.tsv``, from the notes that consumers leave beside the plan
when they give up (:func:`note_trouble`), and from the states that pools publish. Jobs that no sample stands for, such
as the preparation of a model, leave the line of their error in their log.
"""

import atexit
import csv
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import ERROR, HoldfastError
from ..files import atomic_text
from ..spool.state import PoolState, published_states, state_path
from .failures import read_failures
from .pending import Place
from .plan import DEFAULT_SPOOL, Plan
from .provenance import finish_record

SHOWN = 20
LOGS = ("logs/convert_classifier.log", "logs/train.log", "logs/calibrate.log")
NOTHING_CALLED = (
    "nothing was called, for want of a classifier: set 'classifier' in the config, or label samples of the sheet as "
    "virus and as non-viral"
)
COUNTED = ("virus", "virus_high", "virus_moderate", "virus_low", "ambiguous", "non_viral", "not_called")


def note_trouble(plan: Path, consumer: int, error: HoldfastError) -> None:
    """Leave beside a plan what a consumer gives up with, for the end of the run; as well as that goes."""
    with suppress(OSError), atomic_text(_note(plan.parent, consumer)) as file:
        file.write(str(error))


def _note(directory: Path, consumer: int) -> Path:
    return directory / f"consumer.{consumer}.error"


def at_exit(plan: Plan, config: Mapping[str, Any], place: Place, ran: Callable[[], object]) -> None:
    """Have a run recorded and its last words said when this process, the main one, ends.

    Args:
        plan: What the run does.
        config: The checked config.
        place: Where a path of the workflow is.
        ran: Says at the end whether the run has executed jobs.
    """
    ending = Ending(plan, config, place)

    def end() -> None:
        if ran():
            ending.clean()
            finish_record(Path(plan.directory), ended=True)
            for line in ending.lines():
                print(line, file=sys.stderr)

    atexit.register(end)


class Ending:
    """What is said at the end of one run of one workflow, a module or not."""

    def __init__(self, plan: Plan, config: Mapping[str, Any], place: Place) -> None:
        """Begin to watch for an interrupt."""
        self._plan, self._place = plan, place
        replicas = {share.replica for share in plan.consumers}
        self._endpoints = [Path(place(f".holdfast/pool.{replica}.json")).absolute() for replica in replicas]
        self._spool = Path(config["pool"]["spool"] or place(DEFAULT_SPOOL)).absolute()
        self._service = config["pool"]["lifecycle"] == "service"
        self._results = Path(place("results/summary.tsv")).parent.absolute()
        logs = [*(f"logs/prepare_weights/{model}.log" for model in config["models"]), *LOGS]
        self._logs = [(place(log), Path(place(log)).absolute()) for log in logs]
        self._checked = Path(place(".holdfast/checked")).absolute()
        self._began_s = Path(plan.path).stat().st_mtime
        self._interrupted = False
        self._notice_interrupt()

    def _notice_interrupt(self) -> None:
        """Remember a Ctrl-C, which stays Snakemake's to handle."""
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):
            return  # whoever started this has it ignored

        def notice(number: int, frame: FrameType | None) -> None:
            self._interrupted = True
            handler(number, frame)

        with suppress(ValueError):  # not the main thread of a program that uses Snakemake's API
            signal.signal(signal.SIGINT, notice)

    def clean(self) -> None:
        """Take away the endpoint files of pools that Snakemake has left; a pool ends when its file goes."""
        for endpoint in self._endpoints if self._service else []:
            endpoint.unlink(missing_ok=True)

    def lines(self) -> Iterator[str]:
        """All that is to be said."""
        yield from self._troubles()
        yield from self._failures()
        yield from self._failed_jobs()
        yield from self._result()
        if self._was_interrupted():
            yield f"holdfast: interrupted; {self._vectors():,} vectors are kept; run the same command again"

    def _result(self) -> Iterator[str]:
        """What came out, if the run has come to its end and no sample failed."""
        if _changed_s(self._checked) >= self._began_s:
            page = self._place("results/report.html")
            yield f"holdfast: {say_result(self._results / 'summary.tsv')}; open {page}"

    def _vectors(self) -> int:
        """Vectors that the pools of this run have computed, as they said last."""
        return sum(state.progress.sequences for state in self._states())

    def _states(self) -> list[PoolState]:
        """What the pools of this run said last."""
        states = published_states(self._spool)
        return [state for state in states if _changed_s(state_path(self._spool, state.identity.pool)) >= self._began_s]

    def _was_interrupted(self) -> bool:
        """Whether Snakemake had a Ctrl-C, or a pool of its own, which may have one where Snakemake notices none."""
        return self._interrupted or (self._service and any(state.reason == "interrupted" for state in self._states()))

    def _troubles(self) -> Iterator[str]:
        """What consumers gave up with, each trouble once, and where the log of a pool is; nothing after a Ctrl-C."""
        if self._was_interrupted():
            return
        said: dict[str, int] = {}
        for number, share in enumerate(self._plan.consumers):
            with suppress(OSError):
                said.setdefault(_note(Path(self._plan.directory), number).read_text(), share.replica)
        for trouble, replica in said.items():
            yield f"{ERROR}{trouble}"
            if self._service:
                yield f"The pool's log: {self._place(f'logs/pool.{replica}.log')}"

    def _failed_jobs(self) -> Iterator[str]:
        """Why jobs failed in this run that no sample stands for; the line of the error, and the log that has it."""
        for name, log in self._logs:
            if _changed_s(log) >= self._began_s:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                yield from (f"{line} ({name})" for line in lines if line.startswith(ERROR))

    def _failures(self) -> Iterator[str]:
        """The samples that failed and the rows that were given up."""
        table = self._results / "failures.tsv"
        try:
            failures = read_failures(table) if _changed_s(table) else []
        except HoldfastError as error:
            yield f"{ERROR}{error}"
            return
        if not failures:
            return
        yield f"Failed ({self._place('results/failures.tsv')}); repair these and run again, the rest is kept:"
        if any(failure.row for failure in failures):
            yield "  (a sample of which only rows are named is done without them; remove its receipt.json to retry)"
        for failure in failures[:SHOWN]:
            yield f"  {failure.sample}{' ' if failure.row else ''}{failure.row}: {failure.reason}"
        if len(failures) > SHOWN:
            yield f"  ... and {len(failures) - SHOWN:,} more"


def say_result(summary: Path) -> str:
    """What came out of a run, in a sentence, from its table of samples."""
    totals: Counter[str] = Counter()
    samples, synthetic = 0, set()
    with open(summary, encoding="utf-8", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            samples += 1
            totals.update({name: int(row[name]) for name in (*COUNTED, "rows") if row[name]})
            totals["called"] += bool(row["virus"])
            totals["labelled"] += bool(row["label"])
            totals["to_call"] += row["kind"] == "contigs" and row["state"] == "done"
            synthetic |= set(filter(None, row["synthetic_weights"].split(",")))
    said = f"{samples:,} samples, {totals['rows']:,} sequences embedded"
    if totals["called"]:
        contigs = sum(totals[name] for name in ("virus", "ambiguous", "non_viral", "not_called"))
        tiers = ", ".join(f"{totals[f'virus_{tier}']:,} {tier}" for tier in ("high", "moderate", "low"))
        said = f"{totals['virus']:,} of {contigs:,} contigs called virus ({tiers}), {totals['ambiguous']:,} ambiguous, "
        said += f"{totals['not_called']:,} not called"
    elif totals["to_call"] and not totals["labelled"]:
        said += f"; {NOTHING_CALLED}"
    if synthetic:
        said += f"; synthetic weights ({', '.join(sorted(synthetic))}), so this says nothing about biology"
    return said


def _changed_s(path: Path) -> float:
    """When a file was changed last, s since the epoch; 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
