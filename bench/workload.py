"""Sequences to embed: token ids and lengths, seeded, and the arithmetic they cost."""

import random

import numpy as np
from holdfast.pool.batches import Batch, Queue, Recipe

LONGEST_TOKENS = 1024
UNIFORM_TOKENS = 168


def uniform(total_tokens: int, tokens: int = UNIFORM_TOKENS) -> list[int]:
    """Lengths of VirNucPro's proteins: a chunk of 500 bp has 166 residues in a frame, and two special tokens."""
    return [tokens] * (total_tokens // tokens)


def mixed(total_tokens: int, low: int = 32, high: int = LONGEST_TOKENS) -> list[int]:
    """Lengths of other users' proteins, evenly from 30 to 1022 residues, in no order."""
    generator = random.Random(7)
    lengths: list[int] = []
    while sum(lengths) < total_tokens:
        lengths.append(generator.randint(low, high))
    return lengths


def tokens(lengths: list[int], low: int, high: int, first: int, last: int) -> np.ndarray:
    """Token ids int16 [T], drawn from low to high, with the special tokens at either end of every sequence."""
    ids = np.random.default_rng(5).integers(low, high, sum(lengths)).astype(np.int16)
    ends = np.cumsum(lengths)
    ids[ends - 1] = last
    ids[np.concatenate(([0], ends[:-1]))] = first
    return ids


def proteins(lengths: list[int]) -> np.ndarray:
    """Token ids of ESM-2."""
    return tokens(lengths, 4, 24, 0, 2)


def dna(lengths: list[int]) -> np.ndarray:
    """Token ids of DNABERT-S."""
    return tokens(lengths, 5, 4096, 1, 2)


def batches(ids: np.ndarray, lengths: list[int], budget_tokens: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and lengths of each batch, filled as the pool fills them."""
    queue = Queue(Recipe("", (), None, ""), budget_tokens)
    queue.add(0, np.arange(len(lengths)), np.array(lengths, np.int32))
    begins = np.concatenate(([0], np.cumsum(lengths)))
    found: list[Batch] = []
    while batch := queue.next(partial=True):
        found.append(batch)
    return [
        (np.concatenate([ids[begins[i] : begins[i + 1]] for i in batch.sequences.tolist()]), batch.lengths)
        for batch in found
    ]


def ordered(ids: np.ndarray, lengths: list[int], order: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The same sequences in another order."""
    begins = np.concatenate(([0], np.cumsum(lengths)))
    return np.concatenate([ids[begins[i] : begins[i + 1]] for i in order]), [lengths[i] for i in order]


def flops(lengths: list[int], layers: int, width: int) -> float:
    """Operations of an ESM-2: 24 D^2 L a token in the weights, 4 T D L a token in attention of T tokens."""
    return float(sum(24 * width**2 * layers * count + 4 * count**2 * width * layers for count in lengths))
