"""What failed among the samples of a run: the table ``results/failures.tsv``, made from their receipts.

It has a row for every sample that failed and, of samples that were done, one for every row that was given up. Rule
``list_failures`` writes it when the last receipt is there. What runs after that is made of the samples that did not
fail, and rule ``check_samples``, the last job, fails if there are others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import HoldfastError, InputError, ResourceError
from ..files import atomic_text
from ..spool.job import read_receipt

COLUMNS = ("sample", "row", "reason")
NAMED = 20


@dataclass(frozen=True)
class Failure:
    """A line of the table; without ``row`` the whole sample failed."""

    sample: str
    row: str
    reason: str


def write_failures(samples: Iterable[str], results: Path, output: Path) -> None:
    """Write the table of failures, the heading alone where there are none.

    Raises:
        ResourceError: a receipt is missing.
    """
    with atomic_text(output) as file:
        file.write("\t".join(COLUMNS) + "\n")
        for sample in samples:
            for failure in _failures_of(sample, results / sample / "receipt.json"):
                cells = (failure.sample, failure.row, failure.reason)
                file.write("\t".join(" ".join(cell.split()) for cell in cells) + "\n")


def _failures_of(sample: str, path: Path) -> list[Failure]:
    try:
        receipt = read_receipt(path)
    except HoldfastError as error:
        return [Failure(sample, "", str(error))]
    if receipt is None:
        raise ResourceError(f"{path}: is missing; run again")
    if receipt.state == "failed":
        return [Failure(sample, "", receipt.error)]
    return [Failure(sample, row, reason) for row, reason in receipt.failures.items()]


def read_failures(path: str | Path) -> list[Failure]:
    """Read the table.

    Raises:
        InputError: a line that is none of such a table.
    """
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        found = []
        for number, line in enumerate(file, 1):
            cells = line.removesuffix("\n").split("\t")
            if len(cells) != len(COLUMNS) or (number == 1 and tuple(cells) != COLUMNS):
                raise InputError("not a line of a table of failures; remove the file and run again", path, number)
            found.append(Failure(*cells))
        return found[1:]


def failed_samples(path: str | Path) -> dict[str, str]:
    """The samples of a table that failed, with the reason."""
    return {failure.sample: failure.reason for failure in read_failures(path) if not failure.row}


@dataclass(frozen=True)
class Outcome:
    """Names of the samples that did not fail, and of those among them whose contigs are called."""

    done: list[str]
    called: list[str]

    def targets(self, export: str | None) -> list[str]:
        """The files that a run makes, as the rules write their paths, but for :func:`called_targets`.

        Args:
            export: What else there is of each sample that did not fail, below its directory.
        """
        of_all = ["embeddings.h5", "records.tsv", *([export] if export else [])]
        wanted = [f"results/{name}/{file}" for name in self.done for file in of_all]
        return [*wanted, "results/summary.tsv", "results/report.html", ".holdfast/checked"]


def called_targets(called: Sequence[str], tables: Iterable[str], viruses: str) -> list[str]:
    """The files that a run makes of the samples that are called, as the rules write their paths.

    Args:
        called: Their names.
        tables: Names of the tables of each.
        viruses: Name of the file of its viruses' sequences.
    """
    wanted = [f"results/{name}/{file}" for name in called for file in (*tables, viruses)]
    return wanted + (["results/contigs.tsv", f"results/{viruses}"] if called else [])


def read_outcome(path: str | Path, samples: Iterable[str], called: Iterable[str], labelled: Iterable[str]) -> Outcome:
    """What can be made of the samples of a run.

    Args:
        path: The table of failures.
        samples: Names of all samples.
        called: Names of those whose contigs are to be called.
        labelled: Names of those that train the classifier or calibrate it: if one of them failed nothing is called.
    """
    failed = failed_samples(path)
    whole = not any(name in failed for name in labelled)
    return Outcome(
        [name for name in samples if name not in failed],
        [name for name in called if name not in failed] if whole else [],
    )


def check_samples(path: Path) -> None:
    """Say which samples failed, if any did.

    Raises:
        HoldfastError: names them.
    """
    failed = list(failed_samples(path))
    if failed:
        more = f" and {len(failed) - NAMED:,} more" if len(failed) > NAMED else ""
        what = "sample has" if len(failed) == 1 else "samples have"
        raise HoldfastError(
            f"{len(failed):,} {what} failed: {', '.join(failed[:NAMED])}{more}; {path} says why. Mend what is named "
            "there and run the same command again; all others are finished"
        )
