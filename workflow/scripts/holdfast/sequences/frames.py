"""Chunks of a record and the stop-free frames in them, exactly as VirNucPro cuts them.

Owns the rules between a record's sequence and the pairs of nucleotides and protein that the models see. A record is
cut into chunks of equal length that overlap a little, and each chunk is read in six frames. A frame is stop-free, and
kept, when its translation is not empty and holds no stop.

A slab of many chunks is translated at once, every position of both strands as if a codon began there; a frame is then
every third letter of that. So memory is that of one slab, however long the record.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError
from ..files import atomic_text
from . import GENETIC_CODES, STANDARD_CODE, Alphabet
from .fasta import read_records

FRAMES = ("F1", "F2", "F3", "R1", "R2", "R3")
_CODON_BP = 3
_SLAB_CHUNKS = 128

_BASES = b"TCAG"
_STOP = b"*"
_DROPPED = b"-"
_RADIX = len(_BASES) + 1
_DIGITS = bytes(_BASES.index(letter) if letter in _BASES else len(_BASES) for letter in range(256))
_COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")


class Frame(NamedTuple):
    """One stop-free frame of a chunk.

    Attributes:
        chunk: Number of the chunk in its record, from 1.
        frame: Index into ``FRAMES``.
        nucleotides: Upper-case bases of the frame's strand: three for each amino acid and one more, if there.
        protein: Amino acids, without stop; a codon with a letter other than ACGT leaves none.
    """

    chunk: int
    frame: int
    nucleotides: str
    protein: str


class FrameCounts(NamedTuple):
    """How much :func:`write_frames_fasta` read and wrote."""

    records: int
    chunks: int
    frames: int


def chunk_bounds(length_bp: int, chunk_length_bp: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and ends of a record's chunks, two int64 arrays [chunks]; none for an empty record.

    Raises:
        ConfigError: a chunk shorter than a codon.
    """
    _, starts, ends = bounds_of_records(np.array([length_bp]), chunk_length_bp)
    return starts, ends


def bounds_of_records(lengths_bp: np.ndarray, chunk_length_bp: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the record, start and end of every chunk of many records, in their order, three int64 arrays [chunks].

    n chunks of full length exceed the record by r bases. VirNucPro divides r by n, although only n - 1
    borders can take a share, and gives what is left over to the first borders, one base each. So the last
    chunk is often short: 501 bases in chunks of 500 become 0-500 and 250-501.

    Args:
        lengths_bp: Of the records, int64 [M].
        chunk_length_bp: Length of a chunk.

    Raises:
        ConfigError: a chunk shorter than a codon.
    """
    if chunk_length_bp < _CODON_BP:
        raise ConfigError(f"chunk length {chunk_length_bp}: must be at least {_CODON_BP} bases, one codon")
    chunks = -(-lengths_bp // chunk_length_bp)
    record = np.repeat(np.arange(len(lengths_bp)), chunks)
    index = np.arange(len(record)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    share_bp, rest_bp = np.divmod(chunks * chunk_length_bp - lengths_bp, np.maximum(chunks, 1))
    starts = index * (chunk_length_bp - share_bp[record]) - np.minimum(index, (share_bp + rest_bp)[record])
    return record, starts, np.minimum(starts + chunk_length_bp, lengths_bp[record])


def find_frames(sequence: str, chunk_length_bp: int, genetic_code: int = STANDARD_CODE) -> Iterator[Frame]:
    """Yield the stop-free frames of a record, by chunk and then in the order of ``FRAMES``.

    Args:
        sequence: ASCII letters in either case; of any length.
        chunk_length_bp: Length of a chunk; the published models know 300 and 500.
        genetic_code: One of :data:`.GENETIC_CODES`; VirNucPro's is 1.

    Raises:
        ConfigError: a chunk shorter than a codon.
    """
    starts, ends = chunk_bounds(len(sequence), chunk_length_bp)
    for first in range(0, len(starts), _SLAB_CHUNKS):
        slab_starts, slab_ends = (bounds[first : first + _SLAB_CHUNKS].tolist() for bounds in (starts, ends))
        begin, end = slab_starts[0], slab_ends[-1]
        forward = sequence[begin:end].encode("ascii").upper()
        reverse = forward.translate(_COMPLEMENT)[::-1]
        forward_amino_acids, reverse_amino_acids = (_translate(strand, genetic_code) for strand in (forward, reverse))
        for chunk, (chunk_start, chunk_end) in enumerate(zip(slab_starts, slab_ends, strict=True), first + 1):
            length_bp = chunk_end - chunk_start
            yield from _stop_free_frames(chunk, 0, forward, forward_amino_acids, chunk_start - begin, length_bp)
            yield from _stop_free_frames(chunk, 3, reverse, reverse_amino_acids, end - chunk_end, length_bp)


def frame_id(record_id: str, chunk: int, frame: int) -> str:
    """Return VirNucPro's name of a frame: ``c1_chunk_2R3`` for record c1, chunk 2, frame index 5."""
    return f"{record_id}_chunk_{chunk}{FRAMES[frame]}"


def write_frames_fasta(
    path: str | Path,
    chunk_length_bp: int,
    nucleotides_path: str | Path,
    proteins_path: str | Path,
    genetic_code: int = STANDARD_CODE,
) -> FrameCounts:
    """Write the stop-free frames of a file as two FASTA files, nucleotides and proteins, one line a sequence.

    With the standard code both files are byte-equal to VirNucPro's. They appear when they are complete, or not at all.

    Raises:
        InputError: the file cannot be used, see :func:`.fasta.read_records`.
        ConfigError: a chunk shorter than a codon.
    """
    records = chunks = frames = 0
    with atomic_text(nucleotides_path) as nucleotides, atomic_text(proteins_path) as proteins:
        for record in read_records(path, Alphabet.NUCLEOTIDE):
            records += 1
            chunks += len(chunk_bounds(len(record.sequence), chunk_length_bp)[0])
            for frame in find_frames(record.sequence, chunk_length_bp, genetic_code):
                frames += 1
                name = frame_id(record.id, frame.chunk, frame.frame)
                nucleotides.write(f">{name}\n{frame.nucleotides}\n")
                proteins.write(f">{name}\n{frame.protein}\n")
    return FrameCounts(records, chunks, frames)


def _codon_table(amino_acids: str) -> bytes:
    """Return the 256-byte table from a codon's three digits, as one number in base five, to its amino acid."""
    table = bytearray(_DROPPED * 256)
    codons = product(range(len(_BASES)), repeat=3)
    for amino_acid, (first, second, third) in zip(amino_acids.encode(), codons, strict=True):
        table[(first * _RADIX + second) * _RADIX + third] = amino_acid
    return bytes(table)


_CODONS = {code: _codon_table(amino_acids) for code, amino_acids in GENETIC_CODES.items()}


def _translate(strand: bytes, genetic_code: int) -> bytes:
    """Return, for every position but the last two of a strand, the amino acid of the codon that begins there."""
    digits = np.frombuffer(strand.translate(_DIGITS), dtype=np.uint8)
    codons = (digits[:-2] * np.uint8(_RADIX) + digits[1:-1]) * np.uint8(_RADIX) + digits[2:]
    return codons.tobytes().translate(_CODONS[genetic_code])


def _stop_free_frames(
    chunk: int, first_frame: int, strand: bytes, amino_acids: bytes, start: int, length_bp: int
) -> Iterator[Frame]:
    """Yield the stop-free ones of the three frames of a chunk that begins at ``start`` of a strand of its slab."""
    end = start + length_bp
    for offset in range(_CODON_BP):
        protein = amino_acids[start + offset : end - 2 : _CODON_BP]
        if _STOP not in protein:
            protein = protein.replace(_DROPPED, b"")
            if protein:
                nucleotides = strand[start + offset : min(start + offset + _CODON_BP * len(protein) + 1, end)]
                yield Frame(chunk, first_frame + offset, nucleotides.decode("ascii"), protein.decode("ascii"))
