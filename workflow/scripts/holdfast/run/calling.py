"""Calling small samples where they are fetched, so that thousands of them do not take a Python each.

A consumer leaves the tables and the sequences of a sample in :data:`CALLED`, beside its receipt, and with them the
settings by which they were made. The rule ``classify_contigs`` moves them to their place if these are its own and
neither classifier nor calibration is newer; otherwise it makes them itself, and says what is wrong with the sample.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import HoldfastError

CALLED = ".called"
SETTINGS = ".settings"
SMALL_BYTES = 2**24
"""Of embeddings: about a second's work. A larger sample would keep its pool waiting, and is worth a process."""


@dataclass(frozen=True)
class Caller:
    """Calls samples with a classifier that was there before them.

    Attributes:
        classifier: The classifier, .safetensors.
        settings: As JSON: ``calls`` and ``method`` of the config, ``calibration``, the file or null, ``virnucpro``,
            whether VirNucPro's two files are written, and ``viruses``, the name of the file of sequences.
    """

    classifier: Path
    settings: str

    def call(self, sample: str, embeddings: Path, fasta: Path) -> None:
        """Leave what is to be moved to the side of a sample's embeddings, or nothing; this fails because of no sample.

        Args:
            sample: Its name.
            embeddings: Its embeddings, of kind ``contigs``, as they were fetched.
            fasta: Its sequence file.
        """
        if embeddings.stat().st_size > SMALL_BYTES:
            return
        from ..results.calls import classify_contigs  # numpy and h5py

        given = json.loads(self.settings)
        calibration = Path(given["calibration"]) if given["calibration"] else None
        made = embeddings.with_name(f"{CALLED}.partial")
        shutil.rmtree(made, ignore_errors=True)
        try:
            made.mkdir()
            (made / SETTINGS).write_text(self.settings)  # first: its time is from before the classifier was read
            classify_contigs(
                *(embeddings, fasta, self.classifier, given["calls"], made, made / given["viruses"]),
                *(given["method"], given["virnucpro"], calibration),
            )
            made.rename(embeddings.with_name(CALLED))
        except (HoldfastError, OSError, ValueError) as error:
            print(f"{sample}: left to classify_contigs: {error}", file=sys.stderr)
            shutil.rmtree(made, ignore_errors=True)


def drop(directory: Path) -> None:
    """Remove what was left for a sample of this directory, which is about to be embedded anew."""
    shutil.rmtree(directory / CALLED, ignore_errors=True)
