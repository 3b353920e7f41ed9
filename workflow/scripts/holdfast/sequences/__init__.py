"""Sequence files and what is read from them: records, chunks and stop-free frames, tokens. No torch, no pool.

Here stand the alphabets and the genetic codes, which everybody needs; the modules have the rest.
"""

from enum import Enum
from string import ascii_uppercase


class Alphabet(Enum):
    """The letters a sequence may hold, in either case: IUPAC nucleotides, or amino acids with stop and gaps."""

    NUCLEOTIDE = "ACGTURYSWKMBDHVN"
    PROTEIN = ascii_uppercase + "*-."


STANDARD_CODE = 1
_STANDARD = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
GENETIC_CODES = {
    STANDARD_CODE: _STANDARD,
    4: "FFLLSSSSYY**CCWWLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    11: _STANDARD,
    15: "FFLLSSSSYY*QCC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
    25: "FFLLSSSSYY**CCGWLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
}
"""By NCBI's number (ncbi.nlm.nih.gov/Taxonomy/Utils/wprintgc.cgi), the amino acids of the codons in the order TTT, TTC,
TTA, TTG, TCT, ... GGG. Code 11 differs from 1 only in where proteins start, which no rule here asks for; 4 reads TGA as
W, 15 TAG as Q, 25 TGA as G."""
