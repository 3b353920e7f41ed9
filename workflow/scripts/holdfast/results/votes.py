"""Votes: what the frames of each chunk say, and what the chunks of each contig say together.

A chunk is a virus when the largest ``p_virus`` of its frames is at least the largest ``p_non_viral``; that vote is
VirNucPro's. The rest is ours: a chunk's margin is the first less the second, from -1 to 1. Its weight grows with the
size of its margin, up to 1 where the chunk is confident. A contig's score is the weighted mean margin of its chunks,
brought from -1..1 to 0..1: 1 is virus, 0 non-viral, 0.5 neither.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Votes:
    """What the frames of each chunk say; C chunks.

    Attributes:
        frames: Stop-free frames, int64 [C]; a chunk with any is evidence.
        max_p_non_viral: Largest probability of being non-viral, float32 [C]; 0 without frames, as below.
        max_p_virus: Largest probability of a virus, float32 [C].
    """

    frames: np.ndarray
    max_p_non_viral: np.ndarray
    max_p_virus: np.ndarray

    @property
    def is_virus(self) -> np.ndarray:
        """The vote, bool [C]; without meaning where there are no frames."""
        return self.max_p_virus >= self.max_p_non_viral

    @property
    def margin(self) -> np.ndarray:
        """How far each chunk is on the side of the virus, float64 [C], -1 to 1; 0 without frames."""
        return self.max_p_virus.astype(np.float64) - self.max_p_non_viral


def vote(chunk: np.ndarray, chunks: int, probabilities: np.ndarray) -> Votes:
    """Let the frames of each chunk vote.

    Args:
        chunk: Index of each frame's chunk, int64 [N], in any order.
        chunks: C.
        probabilities: float32 [N, 2]: non-viral, virus.
    """
    largest = np.zeros((2, chunks), np.float32)
    for row, column in zip(largest, probabilities.T, strict=True):
        np.maximum.at(row, chunk, column)
    return Votes(np.bincount(chunk, minlength=chunks), *largest)


def score_groups(group: np.ndarray, groups: int, votes: Votes, confident: float) -> tuple[np.ndarray, np.ndarray]:
    """Score groups of chunks: contigs, or regions.

    Args:
        group: Index of each chunk's group, int64 [C]; a group without evidence has no score.
        groups: G.
        votes: Of the chunks.
        confident: Margin from which a chunk has its full weight of 1; below, the weight is in proportion.

    Returns:
        Evidence, the chunks with a stop-free frame, int64 [G], and score, float64 [G], NaN without evidence.
    """
    with_frames = votes.frames > 0
    evidence = np.bincount(group[with_frames], minlength=groups)
    margin = votes.margin
    weight = np.minimum(np.abs(margin) / confident, 1)
    total = np.bincount(group, weights=weight, minlength=groups)
    summed = np.bincount(group, weights=weight * margin, minlength=groups)
    mean = np.divide(summed, total, out=np.zeros(groups), where=total > 0)
    return evidence, np.where(evidence > 0, (1 + mean) / 2, np.nan)


def score_contigs(
    contig: np.ndarray, chunk: np.ndarray, probabilities: np.ndarray, confident: float
) -> tuple[np.ndarray, np.ndarray]:
    """Score the contigs of some frames.

    Args:
        contig: Index of each frame's contig, int64 [N], in any order.
        chunk: Number of its chunk there, int64 [N].
        probabilities: float32 [N, 2]: non-viral, virus.
        confident: As for :func:`score_groups`.

    Returns:
        Indices of the contigs that have a frame, ascending, int64 [k], and their scores, float64 [k].
    """
    (owner, _), place = np.unique(np.stack([contig, chunk]), axis=1, return_inverse=True)
    contigs, group = np.unique(owner, return_inverse=True)
    return contigs, score_groups(group, len(contigs), vote(place, len(owner), probabilities), confident)[1]
