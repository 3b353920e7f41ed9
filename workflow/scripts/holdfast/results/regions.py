"""Regions: where in a contig the virus is, as ``regions.tsv`` and ``regions.bed``.

A region is a run of viral chunks of one called contig: those whose margin is at least the confident one. Two that
follow each other belong to one region when at most ``region_gap_bp`` lie between them, whatever the chunks in between
say; a region has at least ``region_min_chunks`` of them. No vote of a chunk is changed. A region is the *whole* contig
when no evidence lies outside of it and no more than ``region_gap_bp`` at either end; any other is *provirus-like*.

:func:`find_regions` works on arrays with a value a chunk, for some records at a time; :func:`region_lines` makes lines
of what it found, and :func:`read_regions` reads them one by one. In the table the first base is 1 and the last is
included, in BED the first is 0 and the last is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .contigs import line, number
from .decisions import TIERS, rate
from .embeddings import Records
from .presets import CallRules
from .votes import Votes, score_groups

REGION_COLUMNS = (
    *("contig", "start_1based", "end_1based", "length", "chunks", "evidence", "viral_chunks", "mean_margin"),
    *("score", "tier", "extent", "genetic_code"),
)
EXTENTS = ("provirus-like", "whole")


@dataclass(frozen=True)
class Regions:
    """Regions of consecutive records, by contig and then by place; R regions.

    Attributes:
        contig: Index of the contig, int64 [R].
        start_bp: Where it starts, 0-based, int64 [R].
        end_bp: Where it ends, not included, int64 [R].
        chunks: Chunks from its first to its last, int64 [R].
        evidence: Those with a stop-free frame, int64 [R].
        viral_chunks: Those of a confident viral margin, int64 [R].
        mean_margin: Of the evidence, float64 [R], -1 to 1.
        score: As a contig's, of the region's chunks alone, float64 [R].
        tier: Index into :data:`.decisions.TIERS`, uint8 [R].
        is_whole: Whether it is all of its contig, bool [R].
    """

    contig: np.ndarray
    start_bp: np.ndarray
    end_bp: np.ndarray
    chunks: np.ndarray
    evidence: np.ndarray
    viral_chunks: np.ndarray
    mean_margin: np.ndarray
    score: np.ndarray
    tier: np.ndarray
    is_whole: np.ndarray


@dataclass(frozen=True, slots=True)
class Region:
    """A line of ``regions.tsv``, as far as sequences are cut by it.

    Attributes:
        contig: Id of the contig.
        start_bp: 0-based.
        end_bp: Not included.
        score: Of the region.
        tier: One of :data:`.decisions.TIERS`.
    """

    contig: str
    start_bp: int
    end_bp: int
    score: float
    tier: str

    @property
    def id(self) -> str:
        """Its name in FASTA and BED, with 1-based coordinates."""
        return f"{self.contig}|region_{self.start_bp + 1}_{self.end_bp}"


def find_regions(
    contig: np.ndarray,
    start_bp: np.ndarray,
    end_bp: np.ndarray,
    votes: Votes,
    called: np.ndarray,
    length_bp: np.ndarray,
    rules: CallRules,
) -> Regions:
    """Find the regions of consecutive records.

    Args:
        contig: Index of each chunk's contig, ascending, int64 [C].
        start_bp: Of each chunk in its contig, 0-based, int64 [C].
        end_bp: Not included, int64 [C].
        votes: Of the chunks.
        called: Of each contig, whether it is called, bool [M].
        length_bp: Of each contig, int64 [M].
        rules: The numbers.
    """
    margin = votes.margin
    with_frames = votes.frames > 0
    viral = np.flatnonzero(with_frames & (margin >= rules.margin) & called[contig])
    apart = (np.diff(contig[viral]) > 0) | (start_bp[viral[1:]] - end_bp[viral[:-1]] > rules.region_gap_bp)
    bounds = np.concatenate([[0], np.flatnonzero(apart) + 1, [len(viral)]]) if len(viral) else np.zeros(1, np.int64)
    count = np.diff(bounds)
    kept = count >= rules.region_min_chunks
    first, last = viral[bounds[:-1][kept]], viral[bounds[1:][kept] - 1]
    chunks = last - first + 1
    regions = len(first)
    inside = np.repeat(first - np.cumsum(chunks) + chunks, chunks) + np.arange(chunks.sum())
    part = Votes(votes.frames[inside], votes.max_p_non_viral[inside], votes.max_p_virus[inside])
    region = np.repeat(np.arange(regions), chunks)
    evidence, score = score_groups(region, regions, part, rules.margin)
    summed = np.bincount(region, weights=part.margin, minlength=regions)
    owner = contig[first]
    all_evidence = np.bincount(contig[with_frames], minlength=len(length_bp))
    start, end = start_bp[first], end_bp[last]
    at_ends = (start <= rules.region_gap_bp) & (length_bp[owner] - end <= rules.region_gap_bp)
    return Regions(
        contig=owner,
        start_bp=start,
        end_bp=end,
        chunks=chunks,
        evidence=evidence,
        viral_chunks=count[kept],
        mean_margin=summed / np.maximum(evidence, 1),
        score=score,
        tier=rate(score, evidence, rules)[0],
        is_whole=at_ends & (evidence == all_evidence[owner]),
    )


def region_lines(records: Records, regions: Regions, genetic_code: int) -> Iterator[tuple[str, str]]:
    """Lines of the table, and of BED with six columns: its name is that in ``virus.fna``, its score 1000 times ours.

    Args:
        records: Whose regions they are.
        regions: Of them.
        genetic_code: By which frames were read.
    """
    columns = [getattr(regions, name).tolist() for name in Regions.__dataclass_fields__]
    for contig, start, end, *counts, mean_margin, score, tier, is_whole in zip(*columns, strict=True):
        region = Region(records.ids[contig], start, end, score, TIERS[tier])
        places = (str(start + 1), str(end), str(end - start), *map(str, counts))
        numbers = (number(mean_margin), number(score))
        text = line(region.contig, *places, *numbers, region.tier, EXTENTS[is_whole], str(genetic_code))
        yield text, line(region.contig, str(start), str(end), region.id, f"{1000 * score:.0f}", ".")


def read_regions(path: str | Path) -> Iterator[Region]:
    """Read ``regions.tsv``, line by line.

    Raises:
        InputError: no such file, or a line that is none of such a table.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as table:
            if table.readline() != line(*REGION_COLUMNS):
                raise InputError("not a table of regions; classify the contigs again", path, 1)
            for place, text in enumerate(table, 2):
                try:
                    cells = dict(zip(REGION_COLUMNS, text.removesuffix("\n").split("\t"), strict=True))
                    start_bp, end_bp = int(cells["start_1based"]) - 1, int(cells["end_1based"])
                    if not 0 <= start_bp < end_bp < 2**63 or cells["tier"] not in TIERS:
                        raise ValueError
                    yield Region(cells["contig"], start_bp, end_bp, float(cells["score"]), cells["tier"])
                except ValueError:
                    problem = "not a line of a table of regions; classify the contigs again"
                    raise InputError(problem, path, place) from None
    except FileNotFoundError:
        raise InputError("no such file", path) from None
