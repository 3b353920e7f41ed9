"""What failed in a run, said once at its end: on the terminal and in ``results/failures.tsv``."""

import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import HoldfastError
from ..files import atomic_text
from ..spool.job import read_receipt
from .pending import Place
from .plan import Plan

SHOWN = 20


def report_failures(plan: Plan, samples: Iterable[str], place: Place = str) -> None:
    """Say at the end of a run what failed, and write ``results/failures.tsv``.

    The table has a row for every failed sample and every row given up; with nothing to report there is no such file.
    What other rules gave up with comes first.
    """
    for trouble in _troubles(Path(plan.path).stat().st_mtime, Path(place("logs/pool.0.log")).parent):
        print(trouble, file=sys.stderr)
    rows = []
    for sample in samples:
        try:
            outcome = read_receipt(place(f"results/{sample}/receipt.json"))
        except HoldfastError as error:
            rows.append((sample, "", str(error)))
            continue
        if outcome is not None and outcome.state == "failed":
            rows.append((sample, "", outcome.error))
        elif outcome is not None:
            rows += [(sample, row, reason) for row, reason in outcome.failures.items()]
    table = Path(place("results/failures.tsv"))
    if not rows:
        table.unlink(missing_ok=True)
        return
    try:
        with atomic_text(table) as file:
            file.write("sample\trow\treason\n")
            file.writelines("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)
    except OSError as error:
        print(f"holdfast: error: {table} cannot be written: {error.strerror}", file=sys.stderr)
    print(f"Failed ({table}); repair these and run again, the rest is kept:", file=sys.stderr)
    if any(row for _, row, _ in rows):
        print(
            "  (a sample of which only rows are named is done without them; remove its receipt.json to retry)",
            file=sys.stderr,
        )
    for sample, row, reason in rows[:SHOWN]:
        print(f"  {sample}{' ' if row else ''}{row}: {reason}", file=sys.stderr)
    if len(rows) > SHOWN:
        print(f"  ... and {len(rows) - SHOWN} more", file=sys.stderr)


def _troubles(began: float, logs: Path) -> list[str]:
    """What rules gave up with since ``began`` (s), by their logs, and where the log of a pool is.

    What ``collect`` says is in the receipts, and consumers say what was wrong with a pool.
    """
    pools = [log for log in sorted(logs.glob("pool.*.log")) if log.stat().st_mtime >= began]
    others = [log for log in sorted(logs.rglob("*.log")) if log.stat().st_mtime >= began]
    found = _errors(log for log in others if log not in pools and log.parent.name != "collect")
    found = found or _errors(pools)
    if len(found) > SHOWN:
        found = [*found[:SHOWN], f"... and {len(found) - SHOWN} more, see {logs}"]
    if any("the pool (process " in line for line in found):
        found.append(f"The pool's log: {', '.join(map(str, pools))}")
    return found


def _errors(logs: Iterable[Path]) -> list[str]:
    """Lines that entry points ended with, each once."""
    found: dict[str, None] = {}
    for log in logs:
        for line in log.read_text(errors="replace").splitlines():
            _, mark, message = line.partition("holdfast: error: ")
            found |= {f"{mark}{message}": None} if mark else {}
    return [*found]
