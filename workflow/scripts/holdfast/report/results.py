"""The results that summary and report are made of: samples, their receipts, and what may be read of each.

A sample that failed has a receipt and nothing else that counts, whatever lies in its directory from before. The tables
of calls count for the samples that the run has called, and for no other.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import ResourceError
from ..run.config import Sample, read_samples
from ..run.failures import failed_samples
from ..spool.job import Receipt, read_receipt


@dataclass(frozen=True)
class Results:
    """What there is.

    Attributes:
        directory: Of the results.
        samples: The sheet, by name.
        receipts: Of the samples that did not fail, by name.
        failed: Reasons of the samples that failed, by name.
        called: Names of the samples whose contigs are called, in the order of the sheet.
        classifier: That they were called with; None where there is none.
        trained: Whether the labelled samples trained it.
    """

    directory: Path
    samples: dict[str, Sample]
    receipts: dict[str, Receipt]
    failed: dict[str, str]
    called: tuple[str, ...]
    classifier: Path | None
    trained: bool

    @property
    def done(self) -> list[str]:
        """Names of the samples that did not fail."""
        return [name for name in self.samples if name not in self.failed]

    def embeddings(self, name: str) -> Path:
        """The embeddings of a sample that is done."""
        return self.directory / name / "embeddings.h5"

    def contigs(self, name: str) -> Path:
        """The table of contigs of a sample that is called."""
        return self.directory / name / "contigs.tsv"


def read_results(sheet: Path, directory: Path, failures: Path, classifier: Path | None, trained: bool) -> Results:
    """Read sheet, receipts and failures.

    Args:
        sheet: The sample sheet.
        directory: Of the results.
        failures: Table of what failed.
        classifier: That contigs were called with, if any.
        trained: Whether the labelled samples trained it; they are not called then.

    Raises:
        HoldfastError: a file that is missing, or cannot be read.
    """
    samples = read_samples(sheet)
    failed = failed_samples(failures)
    receipts = {}
    for name in samples:
        path = directory / name / "receipt.json"
        receipt = None if name in failed else read_receipt(path)
        if receipt is not None:
            receipts[name] = receipt
        elif name not in failed:
            raise ResourceError(f"{path}: is missing; run again")
    left = [entry for entry in samples.values() if entry.kind == "contigs" and entry.sample not in failed]
    called = [entry.sample for entry in left if classifier and not (trained and entry.label)]
    return Results(directory, samples, receipts, failed, tuple(called), classifier, trained)
