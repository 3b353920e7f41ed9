"""Decisions: from the scores of contigs to virus, ambiguous, non-viral or not called, with a tier and a reason.

:func:`decide` takes arrays with a value a contig and gives arrays back, so that millions of contigs are small; the
numbers it goes by are :class:`.presets.CallRules`. In this order:

1. A contig is *not called* where there is no evidence, or the rules' gates are not passed.
2. It is a *virus* from ``virus_score`` upward; with ``max_fdr``, as long as the list from the highest score down to it
   has no larger estimated false discovery rate.
3. It is *non-viral* up to ``non_viral_score``, and otherwise *ambiguous*.
4. Its tier is ``high`` from ``high_score``, ``moderate`` from ``moderate_score``, else ``low``; of what is non-viral
   1 - score is compared. What is ambiguous is ``low``. Evidence of fewer than ``few_chunks`` chunks lowers it one step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .presets import CallRules

DECISIONS = ("virus", "ambiguous", "non-viral", "not called")
VIRUS, AMBIGUOUS, NON_VIRAL, NOT_CALLED = range(len(DECISIONS))
TIERS = ("low", "moderate", "high")
LOW, MODERATE, HIGH = range(len(TIERS))
REASONS = ("", "failed", "too_short", "bad_letters", "no_evidence", "length", "evidence", "between", "lowered")
"""What a reason is about, by its code; :func:`explain` says it in words."""
COUNTED_AT_ONCE = 100_000


@dataclass(frozen=True)
class Decisions:
    """What was decided; M contigs.

    Attributes:
        decision: Index into :data:`DECISIONS`, uint8 [M].
        tier: Index into :data:`TIERS`, uint8 [M]; without meaning where not called, as below.
        reason: Index into :data:`REASONS`, uint8 [M].
        p_virus: Calibrated probability, float64 [M]; NaN without a calibration.
        fdr: Estimated false discovery rate of the called contigs down to this one, by score, float64 [M]; likewise.
    """

    decision: np.ndarray
    tier: np.ndarray
    reason: np.ndarray
    p_virus: np.ndarray
    fdr: np.ndarray


def decide(
    length_bp: np.ndarray,
    status: np.ndarray,
    evidence: np.ndarray,
    score: np.ndarray,
    p_virus: np.ndarray | None,
    fdr: np.ndarray | None,
    rules: CallRules,
) -> Decisions:
    """Decide.

    Args:
        length_bp: int64 [M].
        status: ``failed``, ``too_short`` and ``bad_letters`` as they stand in :data:`REASONS`, otherwise 0; uint8 [M].
        evidence: Chunks with a stop-free frame, int64 [M].
        score: float64 [M], NaN without evidence.
        p_virus: Calibrated probability of each, float64 [M]; None without a calibration.
        fdr: Of the list down to each, float64 [M], see :class:`FalseDiscoveries`; likewise.
        rules: The numbers.

    Raises:
        ConfigError: the rules have ``max_fdr``, but there is no calibration.
    """
    reason = gate(length_bp, status, evidence, rules)
    called = reason == 0
    if fdr is None and rules.max_fdr is not None:
        raise ConfigError("calls.max_fdr: the classifier is not calibrated; label samples of both kinds, or remove it")
    probability, rate_down = (
        np.full(len(score), np.nan) if values is None else np.where(called, values, np.nan) for values in (p_virus, fdr)
    )
    virus = called & (score >= rules.virus_score if rules.max_fdr is None else rate_down <= rules.max_fdr)
    non_viral = called & ~virus & (score <= rules.non_viral_score)
    decision = np.where(virus, VIRUS, np.where(non_viral, NON_VIRAL, AMBIGUOUS)).astype(np.uint8)
    decision[~called] = NOT_CALLED
    tier, lowered = rate(np.where(non_viral, 1 - score, score), evidence, rules)
    ambiguous = decision == AMBIGUOUS
    tier[ambiguous] = LOW
    reason[ambiguous] = REASONS.index("between")
    reason[called & ~ambiguous & lowered] = REASONS.index("lowered")
    return Decisions(decision, tier, reason, probability, rate_down)


def gate(length_bp: np.ndarray, status: np.ndarray, evidence: np.ndarray, rules: CallRules) -> np.ndarray:
    """Why contigs are not called, uint8 [M], an index into :data:`REASONS`; 0 where they are.

    Args:
        length_bp: As for :func:`decide`, and so are the others.
        status: Of the record.
        evidence: Of its chunks.
        rules: The numbers.
    """
    reason = status.astype(np.uint8)
    for why, holds in (
        ("no_evidence", evidence == 0),
        ("length", length_bp < rules.min_length_bp),
        ("evidence", evidence < rules.min_chunks),
    ):
        reason[holds & (reason == 0)] = REASONS.index(why)
    return reason


def rate(score: np.ndarray, evidence: np.ndarray, rules: CallRules) -> tuple[np.ndarray, np.ndarray]:
    """Tiers, uint8 [M], and which of them few chunks have lowered, bool [M].

    Args:
        score: For the side that was chosen, float64 [M].
        evidence: Chunks with a stop-free frame, int64 [M].
        rules: The numbers.
    """
    tier = np.where(score >= rules.high_score, HIGH, np.where(score >= rules.moderate_score, MODERATE, LOW))
    lowered = (tier > LOW) & (evidence < rules.few_chunks)
    return (tier - lowered).astype(np.uint8), lowered


class FalseDiscoveries:
    """False discovery rates of the lists of called contigs, each from the highest score down to one.

    A rate is the mean of 1 - p_virus over the list, the expected share of it that is no virus. Equal scores are on the
    list together. It takes 16 bytes a contig.
    """

    def __init__(self, score: np.ndarray, calibrated: Callable[[np.ndarray], np.ndarray]) -> None:
        """Take the contigs.

        Args:
            score: float64 [M], NaN where a contig is not called.
            calibrated: Of scores, float64 [k], the probabilities of a virus, float64 [k].
        """
        self._falling = score[~np.isnan(score)]
        np.negative(self._falling, out=self._falling)
        self._falling.sort()
        self._rate = np.empty(len(self._falling))
        expected = 0.0
        for start in range(0, len(self._falling), COUNTED_AT_ONCE):
            place = slice(start, start + COUNTED_AT_ONCE)
            false = expected + np.cumsum(1 - calibrated(-self._falling[place]))
            self._rate[place] = false / np.arange(start + 1, start + len(false) + 1)
            expected = false[-1]

    def at(self, score: np.ndarray) -> np.ndarray:
        """The rates of the lists that end with these scores of called contigs; NaN for NaN; float64 [n]."""
        rate = np.full(len(score), np.nan)
        known = ~np.isnan(score)
        rate[known] = self._rate[np.searchsorted(self._falling, -score[known], side="right") - 1]
        return rate


def explain(reason: int, evidence: int, rules: CallRules) -> str:
    """A reason in words; empty where there is none.

    Args:
        reason: Index into :data:`REASONS`.
        evidence: Of the contig.
        rules: The numbers that were decided by.
    """
    chunks = "chunk" if evidence == 1 else "chunks"
    above = f"score above {rules.non_viral_score:g}"
    return {
        "": "",
        "failed": "a sequence of it was given up, see records.tsv",
        "too_short": "shorter than a codon",
        "bad_letters": "a letter of no nucleotide, see records.tsv",
        "no_evidence": "no chunk has a stop-free frame",
        "length": f"shorter than {rules.min_length_bp} bp",
        "evidence": f"{evidence} {chunks} with a stop-free frame, fewer than {rules.min_chunks}",
        "between": f"{above}, below {rules.virus_score:g}"
        if rules.max_fdr is None
        else f"{above}, beyond an FDR of {rules.max_fdr:g}",
        "lowered": f"tier lowered: {evidence} {chunks} with a stop-free frame, fewer than {rules.few_chunks}",
    }[REASONS[reason]]
