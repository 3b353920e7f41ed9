"""The numbers by which contigs are called: two presets, and single keys of the config over them.

:data:`PRESETS` is the one table of thresholds; :func:`choose_rules` makes :class:`CallRules` of what the config says
under ``calls``. docs/method.md says what each number does; :mod:`.decisions` and :mod:`.regions` apply them. Nothing is
imported here that the Snakefile would have to wait for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError


@dataclass(frozen=True)
class CallRules:
    """How contigs are called.

    Attributes:
        margin: From which a chunk is confident of one side, above 0 and at most 1.
        virus_score: From which a contig is a virus, 0 to 1.
        non_viral_score: Up to which it is non-viral; between the two it is ambiguous.
        moderate_score: From which the tier is moderate; for what is non-viral, of 1 - score.
        high_score: From which it is high.
        few_chunks: With evidence of fewer chunks the tier is one step lower.
        min_length_bp: Shorter contigs are not called.
        min_chunks: Contigs with evidence of fewer chunks are not called.
        region_min_chunks: Viral chunks that a region has at least.
        region_gap_bp: Most bp between two viral chunks of one region.
        max_fdr: Largest estimated false discovery rate of the contigs called virus; replaces ``virus_score``.
        virus_share: Share of viral contigs that is expected in the samples; None for that of the calibration.
    """

    margin: float
    virus_score: float
    non_viral_score: float
    moderate_score: float
    high_score: float
    few_chunks: int
    min_length_bp: int
    min_chunks: int
    region_min_chunks: int
    region_gap_bp: int
    max_fdr: float | None = None
    virus_share: float | None = None


PRESETS = {
    "relaxed": CallRules(
        margin=0.2,
        virus_score=0.6,
        non_viral_score=0.4,
        moderate_score=0.75,
        high_score=0.9,
        few_chunks=5,
        min_length_bp=0,
        min_chunks=1,
        region_min_chunks=3,
        region_gap_bp=3000,
    ),
    "conservative": CallRules(
        margin=0.5,
        virus_score=0.8,
        non_viral_score=0.2,
        moderate_score=0.85,
        high_score=0.95,
        few_chunks=5,
        min_length_bp=1500,
        min_chunks=2,
        region_min_chunks=5,
        region_gap_bp=1500,
    ),
}
"""By name. ``few_chunks`` and its one step are the Broad Institute's contig caller's; the other numbers are ours."""


def choose_rules(calls: Mapping[str, Any]) -> CallRules:
    """The rules that a config asks for.

    Args:
        calls: ``preset`` and any field of :class:`CallRules`; None for the preset's. Checked by the config's schema.

    Raises:
        ConfigError: thresholds in the wrong order, or two that exclude each other.
    """
    preset = PRESETS[calls["preset"]]
    named = {key: value for key, value in calls.items() if key != "preset" and value is not None}
    if "max_fdr" in named and "virus_score" in named:
        raise ConfigError("calls.virus_score: calls.max_fdr takes its place; set one of the two")
    rules = CallRules(**{**vars(preset), **named})
    for low, high in (("non_viral_score", "virus_score"), ("moderate_score", "high_score")):
        if getattr(rules, low) > getattr(rules, high) and not (high == "virus_score" and rules.max_fdr is not None):
            raise ConfigError(
                f"calls.{low}: {getattr(rules, low):g} is above {high}, {getattr(rules, high):g} "
                f"(preset {calls['preset']} where a key is not set); set the two in order"
            )
    return rules
