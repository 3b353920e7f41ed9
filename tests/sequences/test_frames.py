"""Chunks and frames against a hand-computed table, golden files, and a slow reading of the rules, base by base.

The files in ``tests/data/frames`` are described by their README.
"""

import gzip
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
from Bio.Data import CodonTable
from holdfast.errors import ConfigError
from holdfast.sequences import GENETIC_CODES, Alphabet, frames
from holdfast.sequences.fasta import read_records
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = Path(__file__).parents[1] / "data" / "frames"
ENTRY = Path(__file__).parents[2] / "workflow/scripts/entry.py"
LAMBDA = next(read_records(DATA / "NC_001416_1_20000.fna.gz", Alphabet.NUCLEOTIDE)).sequence

# The genetic code as a textbook prints it, by amino acid.
CODONS = {
    codon: amino_acid
    for amino_acid, codons in {
        "F": "TTT TTC", "L": "TTA TTG CTT CTC CTA CTG", "I": "ATT ATC ATA", "M": "ATG",
        "V": "GTT GTC GTA GTG", "S": "TCT TCC TCA TCG AGT AGC", "P": "CCT CCC CCA CCG",
        "T": "ACT ACC ACA ACG", "A": "GCT GCC GCA GCG", "Y": "TAT TAC", "*": "TAA TAG TGA",
        "H": "CAT CAC", "Q": "CAA CAG", "N": "AAT AAC", "K": "AAA AAG", "D": "GAT GAC",
        "E": "GAA GAG", "C": "TGT TGC", "W": "TGG", "R": "CGT CGC CGA CGG AGA AGG",
        "G": "GGT GGC GGA GGG",
    }.items()
    for codon in codons.split()
}  # fmt: skip


def slow_chunks(length_bp: int, chunk_length_bp: int) -> list[tuple[int, int]]:
    """Read the rule of the chunks border by border."""
    chunks = 0
    while chunks * chunk_length_bp < length_bp:
        chunks += 1
    excess_bp = chunks * chunk_length_bp - length_bp
    low_bp = excess_bp // chunks if chunks else 0
    larger_shifts = excess_bp - low_bp * (chunks - 1)
    bounds, shift_bp = [], 0
    for chunk in range(chunks):
        if chunk > 0:
            shift_bp += low_bp + 1 if chunk <= larger_shifts else low_bp
        start = chunk * chunk_length_bp - shift_bp
        bounds.append((start, min(start + chunk_length_bp, length_bp)))
    return bounds


def slow_reverse_complement(sequence: str) -> str:
    return "".join({"A": "T", "C": "G", "G": "C", "T": "A"}.get(letter, letter) for letter in reversed(sequence))


def slow_frames(sequence: str, chunk_length_bp: int) -> Iterator[tuple[int, int, str, str]]:
    """Read the rule of the frames codon by codon."""
    for chunk, (start, end) in enumerate(slow_chunks(len(sequence), chunk_length_bp), 1):
        forward = sequence[start:end].upper()
        for frame in range(6):
            strand = forward if frame < 3 else slow_reverse_complement(forward)
            offset, protein = frame % 3, ""
            for position in range(offset, len(strand) - 2, 3):
                protein += CODONS.get(strand[position : position + 3], "")
            if protein and "*" not in protein:
                yield chunk, frame, strand[offset : offset + 3 * len(protein) + 1], protein


def find(sequence: str, chunk_length_bp: int) -> list[tuple[int, str, str, str]]:
    return [
        (frame.chunk, frames.FRAMES[frame.frame], frame.nucleotides, frame.protein)
        for frame in frames.find_frames(sequence, chunk_length_bp)
    ]


# By hand: n chunks, r bases too many; r // n to every border, and one more to the first r // n + r % n of them.
BOUNDS = [
    (1, 300, [(0, 1)]),
    (2, 300, [(0, 2)]),
    (3, 300, [(0, 3)]),
    (299, 300, [(0, 299)]),
    (300, 300, [(0, 300)]),
    (301, 300, [(0, 300), (150, 301)]),  # n 2, r 299: 149, +1 once
    (601, 300, [(0, 300), (200, 500), (400, 601)]),  # n 3, r 299: 99, +1 101 times
    (1, 500, [(0, 1)]),
    (499, 500, [(0, 499)]),
    (500, 500, [(0, 500)]),
    (501, 500, [(0, 500), (250, 501)]),  # n 2, r 499: 249, +1 250 times
    (1000, 500, [(0, 500), (500, 1000)]),
    (1001, 500, [(0, 500), (333, 833), (666, 1001)]),  # n 3, r 499: 166, +1 167 times
    (1200, 500, [(0, 500), (399, 899), (798, 1200)]),  # n 3, r 300: 100, +1 100 times
    (47, 10, [(0, 10), (9, 19), (18, 28), (27, 37), (37, 47)]),  # n 5, r 3: 0, +1 three times
    (0, 500, []),
]


@pytest.mark.parametrize(("length_bp", "chunk_length_bp", "expected"), BOUNDS)
def test_chunks_lie_where_the_table_says(length_bp: int, chunk_length_bp: int, expected: list[tuple[int, int]]) -> None:
    starts, ends = frames.chunk_bounds(length_bp, chunk_length_bp)
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("sequence", "chunk_length_bp", "expected"),
    [
        (
            "ATGAAACCC",  # ATG AAA CCC, A TGA AAC CC, AT GAA ACC C; reverse GGGTTTCAT
            300,
            [
                (1, "F1", "ATGAAACCC", "MKP"),
                (1, "F3", "GAAACCC", "ET"),
                (1, "R1", "GGGTTTCAT", "GFH"),
                (1, "R2", "GGTTTCA", "GF"),
                (1, "R3", "GTTTCAT", "VS"),
            ],
        ),
        (
            "atgNaaccc",  # codons with N leave nothing, and the nucleotides are cut as if they were not there
            300,
            [
                (1, "F1", "ATGNAAC", "MP"),
                (1, "F2", "TGNA", "N"),
                (1, "F3", "GNAA", "T"),
                (1, "R1", "GGGTTNC", "GH"),
                (1, "R2", "GGTT", "G"),
                (1, "R3", "GTTN", "V"),
            ],
        ),
        (
            "AARTTTC",  # R stays R on the other strand: GAAARTT
            300,
            [
                (1, "F1", "AART", "F"),
                (1, "F2", "ARTT", "F"),
                (1, "R1", "GAAA", "E"),
                (1, "R2", "AAAR", "K"),
            ],
        ),
        (
            "ATGAAAC",  # chunks ATGAAA and AAAC
            6,
            [
                (1, "F1", "ATGAAA", "MK"),
                (1, "F3", "GAAA", "E"),
                (1, "R1", "TTTCAT", "FH"),
                (1, "R2", "TTCA", "F"),
                (1, "R3", "TCAT", "S"),
                (2, "F1", "AAAC", "K"),
                (2, "F2", "AAC", "N"),
                (2, "R1", "GTTT", "V"),
                (2, "R2", "TTT", "F"),
            ],
        ),
        ("", 300, []),
        ("A", 300, []),
        ("AC", 300, []),
        ("ACG", 300, [(1, "F1", "ACG", "T"), (1, "R1", "CGT", "R")]),
        ("NNNNNN", 300, []),
    ],
)
def test_frames_are_those_written_by_hand(
    sequence: str, chunk_length_bp: int, expected: list[tuple[int, str, str, str]]
) -> None:
    assert find(sequence, chunk_length_bp) == expected


@pytest.mark.parametrize("chunk_length_bp", [3, 9, 300, 500])
def test_a_real_genome_gives_the_frames_of_the_slow_reading(chunk_length_bp: int) -> None:
    expected = list(slow_frames(LAMBDA, chunk_length_bp))
    assert len(expected) > 20
    assert [tuple(frame) for frame in frames.find_frames(LAMBDA, chunk_length_bp)] == expected


letters = st.text(st.sampled_from("ACGTacgtNNRYKM"), max_size=300) | st.text(st.sampled_from("ACG"), max_size=300)
chunk_lengths_bp = st.integers(3, 60)


@given(letters, chunk_lengths_bp)
@settings(deadline=None, max_examples=300)
def test_any_sequence_gives_the_frames_of_the_slow_reading(sequence: str, chunk_length_bp: int) -> None:
    found = [tuple(frame) for frame in frames.find_frames(sequence, chunk_length_bp)]
    assert found == list(slow_frames(sequence, chunk_length_bp))


@given(st.integers(1, 10_000_000), st.integers(3, 5000))
@settings(deadline=None)
def test_chunks_cover_every_base_in_order(length_bp: int, chunk_length_bp: int) -> None:
    starts, ends = frames.chunk_bounds(length_bp, chunk_length_bp)
    assert len(starts) == -(-length_bp // chunk_length_bp)
    assert (starts[0], ends[-1]) == (0, length_bp)
    assert (starts[1:] <= ends[:-1]).all()
    assert (starts[1:] > starts[:-1]).all()
    assert (ends - starts)[:-1].tolist() == [chunk_length_bp] * (len(starts) - 1)
    assert 0 < ends[-1] - starts[-1] <= chunk_length_bp


@given(letters, chunk_lengths_bp)
@settings(deadline=None)
def test_a_frame_lies_in_its_chunk_and_holds_the_codons_of_its_protein(sequence: str, chunk_length_bp: int) -> None:
    bounds = slow_chunks(len(sequence), chunk_length_bp)
    found = list(frames.find_frames(sequence, chunk_length_bp))
    assert [frame[:2] for frame in found] == sorted({frame[:2] for frame in found})
    for frame in found:
        start, end = bounds[frame.chunk - 1]
        chunk = sequence[start:end].upper()
        strand = chunk if frame.frame < 3 else slow_reverse_complement(chunk)
        assert strand.startswith(frame.nucleotides, frame.frame % 3)
        assert 0 < 3 * len(frame.protein) <= len(frame.nucleotides) <= 3 * len(frame.protein) + 1


@given(letters)
@settings(deadline=None)
def test_the_reverse_complement_of_a_chunk_swaps_its_strands(sequence: str) -> None:
    here = {frame.frame: frame[2:] for frame in frames.find_frames(sequence, 300)}
    there = {frame.frame: frame[2:] for frame in frames.find_frames(slow_reverse_complement(sequence.upper()), 300)}
    assert here == {(frame + 3) % 6: texts for frame, texts in there.items()}


def test_frames_are_named_as_virnucpro_names_them() -> None:
    assert [frames.frame_id("c|1/x", 2, frame) for frame in range(6)] == [
        "c|1/x_chunk_2F1",
        "c|1/x_chunk_2F2",
        "c|1/x_chunk_2F3",
        "c|1/x_chunk_2R1",
        "c|1/x_chunk_2R2",
        "c|1/x_chunk_2R3",
    ]


def test_a_chunk_shorter_than_a_codon_is_refused() -> None:
    with pytest.raises(ConfigError, match="chunk length 2: must be at least 3 bases"):
        list(frames.find_frames("ACGT", 2))


def test_memory_of_a_long_record_is_that_of_a_slab() -> None:
    sequence = LAMBDA * 250
    tracemalloc.start()
    try:
        found = sum(1 for _ in frames.find_frames(sequence, 500))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found > 2000
    assert peak_bytes < len(sequence) / 4


def write_frames(fasta: Path, chunk_length_bp: int, directory: Path) -> subprocess.CompletedProcess[str]:
    outputs: list[str | Path] = ["--nucleotides", directory / "n.fna", "--proteins", directory / "p.faa"]
    command = [sys.executable, ENTRY, "frames", fasta, "--chunk-length", str(chunk_length_bp), *outputs]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("chunk_length_bp", "compress"), [(300, bytes), (500, gzip.compress)])
def test_the_command_writes_the_golden_files(
    tmp_path: Path, chunk_length_bp: int, compress: Callable[[bytes], bytes]
) -> None:
    source = tmp_path / "an input"
    source.write_bytes(compress((DATA / "edges.fna").read_bytes()))
    done = write_frames(source, chunk_length_bp, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "n.fna").read_bytes() == (DATA / f"edges_{chunk_length_bp}.fna").read_bytes()
    assert (tmp_path / "p.faa").read_bytes() == (DATA / f"edges_{chunk_length_bp}.faa").read_bytes()
    found = (DATA / f"edges_{chunk_length_bp}.faa").read_text().count(">")
    chunks = sum(len(slow_chunks(len(text), chunk_length_bp)) for text in edge_sequences().values())
    assert done.stdout == f"{len(edge_sequences())} records, {chunks} chunks, {found} stop-free frames\n"


def test_the_command_leaves_old_outputs_alone_when_the_input_is_broken(tmp_path: Path) -> None:
    source = tmp_path / "a.fna"
    source.write_text(">a\nATGAAA\n>a\nATG\n")
    (tmp_path / "n.fna").write_text("old")
    done = write_frames(source, 500, tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"holdfast: error: {source}, line 3, record 'a': the id is that of line 1 too; rename one of the records\n"
    )
    assert (tmp_path / "n.fna").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fna", "n.fna"]


def edge_sequences() -> dict[str, str]:
    """Return the records of ``edges.fna``: pieces of lambda of the lengths where chunks change, and odd letters."""
    lengths_bp = [0, 1, 2, 3, 299, 300, 301, 499, 500, 501, 601, 1001, 3000]
    sequences = {f"lambda_{length_bp}": LAMBDA[:length_bp] for length_bp in lengths_bp}
    gene = LAMBDA[2836:4436]
    sequences["n_run"] = gene[:400] + "N" * 250 + gene[650:]
    sequences["only_n"] = "N" * 600
    sequences["lower|case/1"] = gene.lower()
    sequences["iupac"] = "".join("RYSWKMBDHVN"[i % 11] if i % 97 == 5 else letter for i, letter in enumerate(gene))
    return sequences


def test_the_edges_are_cut_from_the_genome() -> None:
    records = {record.id: record.sequence for record in read_records(DATA / "edges.fna", Alphabet.NUCLEOTIDE)}
    assert records == {name: sequence.upper() for name, sequence in edge_sequences().items()}


def write_golden_files() -> None:
    """Write the golden files from the slow reading of the rules: ``python tests/sequences/test_frames.py``."""
    sequences = edge_sequences()
    (DATA / "edges.fna").write_text("".join(f">{name} of NC_001416.1\n{text}\n" for name, text in sequences.items()))
    for chunk_length_bp in (300, 500):
        nucleotides = proteins = ""
        for name, sequence in sequences.items():
            for chunk, frame, bases, protein in slow_frames(sequence, chunk_length_bp):
                header = f">{name}_chunk_{chunk}{'FR'[frame // 3]}{frame % 3 + 1}\n"
                nucleotides += f"{header}{bases}\n"
                proteins += f"{header}{protein}\n"
        (DATA / f"edges_{chunk_length_bp}.fna").write_text(nucleotides)
        (DATA / f"edges_{chunk_length_bp}.faa").write_text(proteins)


if __name__ == "__main__":
    write_golden_files()


@pytest.mark.parametrize("code", sorted(GENETIC_CODES))
def test_genetic_codes_are_biopythons(code: int) -> None:
    """Biopython has NCBI's own tables; every codon is read once in frame F1, behind it a stop-free rest."""
    table = CodonTable.unambiguous_dna_by_id[code]
    for codon in map("".join, product("TCAG", repeat=3)):
        found = {frame.frame: frame.protein for frame in frames.find_frames(codon, 300, code)}
        assert found.get(0, "*") == table.forward_table.get(codon, "*"), codon


def test_a_stop_of_one_code_is_an_amino_acid_of_another() -> None:
    read = {code: next(frames.find_frames("ATGTGACCC", 300, code)).protein for code in (4, 25)}
    assert read == {4: "MWP", 25: "MGP"}
    assert next(frames.find_frames("ATGTAGCCC", 300, 15)).protein == "MQP"


def test_the_command_reads_by_another_code(tmp_path: Path) -> None:
    (tmp_path / "a.fna").write_text(">a\nATGTGACCC\n")
    options = ["--chunk-length", "300", "--nucleotides", "n.fna", "--proteins", "p.faa", "--genetic-code"]
    for code, first in (("4", ">a_chunk_1F1\nMWP\n"), ("11", ">a_chunk_1F2\n")):
        command = [sys.executable, str(ENTRY), "frames", "a.fna", *options, code]
        subprocess.run(command, cwd=tmp_path, check=True)
        assert (tmp_path / "p.faa").read_text().startswith(first)
    ended = subprocess.run([*command[:-1], "2"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "choose from 1, 4, 11, 15, 25" in ended.stderr
