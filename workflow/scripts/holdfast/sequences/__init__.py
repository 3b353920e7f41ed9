"""Sequence files and what is read from them: records, chunks and stop-free frames, tokens. No torch, no pool.

Here stand the alphabets, which everybody needs; the modules have the rest.
"""

from enum import Enum
from string import ascii_uppercase


class Alphabet(Enum):
    """The letters a sequence may hold, in either case: IUPAC nucleotides, or amino acids with stop and gaps."""

    NUCLEOTIDE = "ACGTURYSWKMBDHVN"
    PROTEIN = ascii_uppercase + "*-."
