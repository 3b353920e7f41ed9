"""The language models by name, and the kinds of samples that they embed: what everybody but an encoder knows of them.

The tables of :mod:`.checkpoint` say how a model's published checkpoints are read.
"""

from enum import Enum
from importlib import import_module
from string import ascii_uppercase
from types import ModuleType
from typing import NamedTuple


class Alphabet(Enum):
    """The letters a sequence may hold, in either case: IUPAC nucleotides, or amino acids with stop and gaps."""

    NUCLEOTIDE = "ACGTURYSWKMBDHVN"
    PROTEIN = ascii_uppercase + "*-."


class Model(NamedTuple):
    """A language model: the letters of its sequences, and what an embedding is, in words."""

    alphabet: Alphabet
    pooling: str


class Kind(NamedTuple):
    """A kind of sample: the letters of its records, and the models that embed them."""

    alphabet: Alphabet
    models: tuple[str, ...]


MODELS = {
    "esm2": Model(Alphabet.PROTEIN, "mean of residues"),
    "dnabert_s": Model(Alphabet.NUCLEOTIDE, "mean of tokens"),
}
KINDS = {
    "contigs": Kind(Alphabet.NUCLEOTIDE, ("esm2", "dnabert_s")),  # both on every open frame, VirNucPro's method
    "proteins": Kind(Alphabet.PROTEIN, ("esm2",)),
    "dna": Kind(Alphabet.NUCLEOTIDE, ("dnabert_s",)),
}


def encoder(model: str) -> ModuleType:
    """The module of a model's encoder, which has its name, with ``tensor_shapes`` and ``load``; it imports torch."""
    return import_module(f".{model}", __package__)
