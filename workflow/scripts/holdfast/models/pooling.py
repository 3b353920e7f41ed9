"""What is made of the states of a batch: a vector a sequence, or the states of the residues themselves."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .packing import Packing


class Tokens(NamedTuple):
    """Which tokens of a sequence count.

    Attributes:
        residues: Those of residues, or of the model's own pieces of DNA: all but the special ones.
        averaged: Those that a mean or a maximum is taken over.
    """

    residues: slice
    averaged: slice


def pool(states: Tensor, packing: Packing, pooling: str, tokens: Tokens) -> Tensor:
    """Pool the states of a batch.

    Args:
        states: In the order of the packing, [T, width].
        packing: Where the sequences stand.
        pooling: ``mean`` (added up in fp32), ``max``, ``cls`` or ``residues``.
        tokens: Which of them count.

    Returns:
        In the order of the packing: float32 [sequences, width]; of ``residues`` [residues of all sequences, width], in
        the dtype of the states.
    """
    return torch.cat([_pool_group(group, pooling, tokens) for group in packing.split(states)])


def _pool_group(states: Tensor, pooling: str, tokens: Tokens) -> Tensor:
    """As :func:`pool`, of sequences of one length, [sequences, tokens, width]."""
    if pooling == "residues":
        return states[:, tokens.residues].flatten(0, 1)
    if pooling == "cls":
        return states[:, 0].float()
    averaged = states[:, tokens.averaged]
    return averaged.mean(1, dtype=torch.float32) if pooling == "mean" else averaged.amax(1).float()


def window_starts(residues: int, width: int) -> list[int]:
    """Where the windows over a sequence begin: every half a width, the last one flush with the end.

    Args:
        residues: Of the sequence, more than ``width``.
        width: Residues in a window, at least 2.
    """
    return [*range(0, residues - width, width // 2), residues - width]


def merge_windows(states: Sequence[Tensor], starts: Sequence[int], residues: int) -> Tensor:
    """The state of each residue as the mean over the windows that hold it.

    Args:
        states: Of the residues of each window, [width of the window, width] each.
        starts: Where each window begins.
        residues: Of the sequence.

    Returns:
        float32 [residues, width].
    """
    total = torch.zeros((residues, states[0].shape[1]), dtype=torch.float32, device=states[0].device)
    count = torch.zeros((residues, 1), dtype=torch.float32, device=states[0].device)
    for start, window in zip(starts, states, strict=True):
        total[start : start + len(window)] += window
        count[start : start + len(window)] += 1
    return total / count


def batches(lengths: Sequence[int], limit: int) -> Iterator[slice]:
    """Consecutive parts of at most ``limit`` in all, or of one that is longer."""
    first, held = 0, 0
    for number, length in enumerate(lengths):
        if held and held + length > limit:
            yield slice(first, number)
            first, held = number, 0
        held += length
    yield slice(first, len(lengths))
