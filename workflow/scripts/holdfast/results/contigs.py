"""The table ``contigs.tsv``: a line for every record of the input, in its order, whether it was called or not.

:func:`contig_lines` makes it of arrays, :func:`read_contigs` reads it line by line. Tab-separated UTF-8 without
quoting: an id is one word of a FASTA header, so it holds neither tab nor newline, and any quote in it is part of it.
``NA`` stands where there is nothing to say, ``uncalibrated`` where only a calibration could say it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..sequences import GENETIC_CODES
from .decisions import DECISIONS, NOT_CALLED, TIERS, Decisions, explain
from .embeddings import Records
from .presets import CallRules

CONTIG_COLUMNS = (
    *("contig", "length", "chunks", "evidence", "decision", "tier", "is_virus", "score", "p_virus", "fdr", "reason"),
    "genetic_code",
)
NOT_AVAILABLE = "NA"
UNCALIBRATED = "uncalibrated"


@dataclass(frozen=True, slots=True)
class ContigCall:
    """A line of the table.

    Attributes:
        contig: Id of the record.
        length_bp: Its length.
        chunks: Its chunks.
        evidence: Those with a stop-free frame.
        decision: One of :data:`.decisions.DECISIONS`.
        tier: One of :data:`.decisions.TIERS`; None where it is not called, as below.
        score: From 0, non-viral, to 1, virus.
        p_virus: Calibrated probability of a virus; None also without a calibration.
        fdr: Estimated false discovery rate of the sample's contigs down to this one, by score; likewise.
        reason: In words, why it is not called or ambiguous, or why its tier was lowered; otherwise empty.
    """

    contig: str
    length_bp: int
    chunks: int
    evidence: int
    decision: str
    tier: str | None
    score: float | None
    p_virus: float | None
    fdr: float | None
    reason: str

    @property
    def is_virus(self) -> bool:
        """Whether it is called a virus."""
        return self.decision == "virus"


def number(value: float) -> str:
    """A number in a table; nine digits give back the same float32."""
    return f"{value:.9g}"


def line(*cells: str) -> str:
    """A line of a table."""
    return "\t".join(cells) + "\n"


def contig_lines(
    records: Records,
    chunks: np.ndarray,
    evidence: np.ndarray,
    score: np.ndarray,
    decisions: Decisions,
    rules: CallRules,
    genetic_code: int,
) -> Iterator[str]:
    """Lines of the table, of consecutive records.

    Args:
        records: M of them.
        chunks: Of each, int64 [M].
        evidence: Those with a stop-free frame, int [M].
        score: float64 [M], NaN where it is not called.
        decisions: Of each.
        rules: That they were decided by.
        genetic_code: By which frames were read.
    """
    said = (decisions.decision, decisions.tier, decisions.reason, decisions.p_virus, decisions.fdr)
    values = (column.tolist() for column in (records.length, chunks, evidence, score, *said))
    for name, length_bp, count, with_frames, mean, decision, tier, reason, p_virus, fdr in zip(
        records.ids, *values, strict=True
    ):
        if decision == NOT_CALLED:
            verdict = (NOT_AVAILABLE, "False", *[NOT_AVAILABLE] * 3)
        else:
            calibrated = [number(p_virus), number(fdr)] if p_virus == p_virus else [UNCALIBRATED] * 2
            verdict = (TIERS[tier], str(DECISIONS[decision] == "virus"), number(mean), *calibrated)
        place_of = (name, str(length_bp), str(count), str(with_frames), DECISIONS[decision])
        why = explain(reason, with_frames, rules) or NOT_AVAILABLE
        yield line(*place_of, *verdict, why, str(genetic_code))


def read_contigs(path: str | Path) -> Iterator[ContigCall]:
    """Read the table, line by line.

    Raises:
        InputError: no such file, or a line that is none of such a table.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as table:
            if table.readline() != line(*CONTIG_COLUMNS):
                raise InputError("not a table of contigs; classify the contigs again", path, 1)
            for place, text in enumerate(table, 2):
                try:
                    yield _parse(*text.removesuffix("\n").split("\t"))
                except (TypeError, ValueError):
                    problem = "not a line of a table of contigs; classify the contigs again"
                    raise InputError(problem, path, place) from None
    except FileNotFoundError:
        raise InputError("no such file", path) from None


def _parse(
    contig: str,
    length: str,
    chunks: str,
    evidence: str,
    decision: str,
    tier: str,
    is_virus: str,
    score: str,
    p_virus: str,
    fdr: str,
    reason: str,
    genetic_code: str,
) -> ContigCall:
    counts = int(length), int(chunks), int(evidence)
    why = "" if reason == NOT_AVAILABLE else reason
    if int(genetic_code) not in GENETIC_CODES:
        raise ValueError
    if decision not in DECISIONS or is_virus != str(decision == "virus") or not 0 <= min(counts) <= max(counts) < 2**63:
        raise ValueError
    if decision == DECISIONS[NOT_CALLED]:
        if {tier, score, p_virus, fdr} != {NOT_AVAILABLE}:
            raise ValueError
        return ContigCall(contig, *counts, decision, None, None, None, None, why)
    if tier not in TIERS or score == UNCALIBRATED or (p_virus == UNCALIBRATED) != (fdr == UNCALIBRATED):
        raise ValueError
    return ContigCall(contig, *counts, decision, tier, _share(score), _share(p_virus), _share(fdr), why)


def _share(text: str) -> float | None:
    """A number from 0 to 1; None where it is uncalibrated."""
    if text == UNCALIBRATED:
        return None
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value
