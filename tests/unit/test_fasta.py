"""Reading records: what survives, what is normalised, and what each broken file is told."""

import bz2
import gzip
import lzma
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from holdfast import fasta
from holdfast.errors import InputError
from holdfast.models import Alphabet

SCRIPTS = Path(fasta.__file__).parents[1]


def read(path: Path, content: bytes, alphabet: Alphabet = Alphabet.NUCLEOTIDE) -> list[tuple[str, str]]:
    path.write_bytes(content)
    return [(record.id, record.sequence) for record in fasta.read(path, alphabet)]


def refusal(path: Path, content: bytes, alphabet: Alphabet = Alphabet.NUCLEOTIDE) -> str:
    with pytest.raises(InputError) as caught:
        read(path, content, alphabet)
    return str(caught.value).removeprefix(str(path))


FASTA = b">one first record\nACGT\nacgu\n\n>two\n>three|x/y\nRYSW KMBD\tHVN\n"
FASTQ = b"@one first record\nACGTACGU\n+\nIIIIIIII\n@two\n\n+\n\n@three|x/y\nRYSWKMBDHVN\n+three|x/y\n@@@@@@@@@@@\n"
RECORDS = [("one", "ACGTACGT"), ("two", ""), ("three|x/y", "RYSWKMBDHVN")]


@pytest.mark.parametrize("content", [FASTA, FASTQ])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.fna", "a.fastq", "a.fa.gz", "no extension"])
def test_content_and_not_the_name_decides_how_a_file_is_read(
    tmp_path: Path, content: bytes, compress: Callable[[bytes], bytes], name: str
) -> None:
    assert read(tmp_path / name, compress(content)) == RECORDS


def test_windows_line_ends_a_byte_order_mark_comments_and_an_open_end_are_read(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf>one first record\r\nACGT\r\nACGU\r\n# comment\r\n>two\r\n\r\n>three|x/y\r\nRYSWKMBDHVN"
    assert read(tmp_path / "a.fna", content) == RECORDS
    assert read(tmp_path / "a.fastq", FASTQ.replace(b"\n", b"\r\n").removesuffix(b"\r\n")) == RECORDS


def test_two_gzip_members_are_one_file(tmp_path: Path) -> None:
    assert read(tmp_path / "a.gz", gzip.compress(FASTA[:30]) + gzip.compress(FASTA[30:])) == RECORDS


def test_selenocysteine_stays_in_a_protein_and_uracil_becomes_thymine(tmp_path: Path) -> None:
    content = b">p\nmkuX*-.\n"
    assert read(tmp_path / "a.faa", content, Alphabet.PROTEIN) == [("p", "MKUX*-.")]
    assert read(tmp_path / "a.fna", b">p\nacgu\n") == [("p", "ACGT")]


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_has_no_records(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path / "a.fna", content) == []


IDS = ["x" * 300, "gi|1|ref/a:b", 'it\'s_"quoted"', "Käfer-病毒-🦠", "=1+1", "a,b;c", "#1", ">>"]


def test_ids_survive_as_they_are(tmp_path: Path) -> None:
    content = "".join(f">{identifier} the rest\nAC\n" for identifier in IDS).encode()
    assert read(tmp_path / "a.fna", content) == [(identifier, "AC") for identifier in IDS]


def test_unicode_ids_do_not_depend_on_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "a.fna"
    path.write_bytes(">Käfer\nAC\n".encode())
    command = "import sys; from holdfast.fasta import *; print(ascii(list(read(sys.argv[1], Alphabet.NUCLEOTIDE))))"
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(SCRIPTS),
    }
    done = subprocess.run([sys.executable, "-c", command, path], env=environment, capture_output=True, text=True)
    assert done.stdout == "[Record(id='K\\xe4fer', sequence='AC')]\n", done.stderr


def test_missing_files_and_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.fna: no such file"):
        list(fasta.read(tmp_path / "none.fna", Alphabet.NUCLEOTIDE))
    with pytest.raises(InputError, match="is a directory"):
        list(fasta.read(tmp_path, Alphabet.NUCLEOTIDE))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n>a\nAC\n>\nAC\n", ", line 4: the record has no id"),
        (b"@ \nAC\n+\nII\n", ", line 1: the record has no id"),
        (b">a\nAC\n>b\n>a x\nA!\n", ", line 4, record 'a': the id is that of line 1 too"),
        (b"@b\nAC\n+\nII\n@a\nAC\n+\n@a\n@a\nG\n+\nI\n", ", line 9, record 'a': the id is that of line 5 too"),
        (b">a\nACGT\nAC GX\n", ", line 3, record 'a': 'X' in column 5 is no IUPAC nucleotide letter"),
        (b">a\nACGT\n>b\nAC-T\n", ", line 4, record 'b': '-' in column 3 is no IUPAC nucleotide letter"),
        (b">a\n1 ACGT\n", ", line 2, record 'a': '1' in column 1 is"),
        (b">a\nAC?T\n", ", line 2, record 'a': '?' in column 3 is"),
        (b">a\n#x\nACE\n", ", line 3, record 'a': 'E' in column 3 is"),
        (">a\nACé\n".encode(), ", line 2, record 'a': 'é' in column 3 is"),
        (b"@a\nAC\n+\nEE\n@b\nAE\n+\nII\n", ", line 6, record 'b': 'E' in column 2 is"),
        (b"ACGT\n>a\nACGT\n", ", line 1: not FASTA or FASTQ: Expected '>'"),
        (b"\n\nid\tsequence\n", ", line 3: not FASTA or FASTQ: Expected '>'"),
        (b">a\nAC\n>b \xe9\nAC\n", ", line 3: not FASTA or FASTQ in UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\0\0", ", line 1: not FASTA or FASTQ in UTF-8 text"),
        (">a\nAC\n".encode("utf-16"), ", line 1: not FASTA or FASTQ in UTF-8 text"),
        (b">a\0b\nAC\n", ", line 1: the id holds a NUL byte"),
        ("@a\nAC\n+\nII\n@é\nAC\n+\nII\n".encode(), ", line 5: FASTQ must be ASCII"),
        (b"@a\nACGT\n+\nIII\n", ", line 4: not FASTA or FASTQ: Length of sequence and qualities differ"),
        (b"@a\nACGT\n+\nIIII\n@b\nAC\n", ", line 7: not FASTA or FASTQ: Premature end of file"),
        (b"@a\nAC\nGT\n+\nII\nII\n", ", line 3: not FASTA or FASTQ: Line expected to start with '+'"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_broken_record_is_refused_with_file_line_and_record(
    tmp_path: Path, content: bytes, message: str, compress: Callable[[bytes], bytes]
) -> None:
    assert refusal(tmp_path / "a.fna", compress(content)).startswith(message)


def test_letters_of_proteins_are_checked_too(tmp_path: Path) -> None:
    message = refusal(tmp_path / "a.faa", b">a\nMK1\n", Alphabet.PROTEIN)
    assert message == ", line 2, record 'a': '1' in column 3 is no IUPAC protein letter; correct or remove it"


def test_records_before_the_broken_one_are_delivered(tmp_path: Path) -> None:
    path = tmp_path / "a.fna"
    path.write_bytes(b">a\nAC\n>b\nX\n")
    records = fasta.read(path, Alphabet.NUCLEOTIDE)
    assert next(records) == ("a", "AC")
    with pytest.raises(InputError, match="record 'b'"):
        next(records)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_cut_anywhere_is_refused(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    content = compress("".join(random.Random(1).choices("ACGT", k=400)).join([">a\n", "\n"]).encode())
    for length_bytes in range(6, len(content)):
        message = refusal(tmp_path / "a.fna.gz", content[:length_bytes])
        assert message.startswith(": the compressed file is damaged or cut short")


def test_a_flipped_byte_in_a_gzip_file_is_an_error_or_harmless(tmp_path: Path) -> None:
    content = gzip.compress(FASTA)
    refused = 0
    for position in range(2, len(content)):
        broken = bytearray(content)
        broken[position] ^= 0x55
        try:
            assert read(tmp_path / "a.fna.gz", bytes(broken)) == RECORDS
        except InputError:
            refused += 1
    assert refused >= len(content) - 10  # the fixed header has that many bytes, time and system among them


def test_a_gzip_file_that_is_cut_in_a_line_of_binary_is_refused(tmp_path: Path) -> None:
    content = gzip.compress(b">a\n" + random.Random(1).randbytes(1_000_000).translate(None, b"\r\n"))
    assert refusal(tmp_path / "a.gz", content[:500_000]).startswith(": the compressed file is damaged or cut short")


def test_memory_is_bounded_by_the_longest_record_and_not_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.fna.gz"
    line = b"ACGTACGTAC" * 8 + b"\n"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(60):
            file.write(b">record%d\n" % number + line * 2500)
    tracemalloc.start()
    try:
        lengths_bp = [len(record.sequence) for record in fasta.read(path, Alphabet.NUCLEOTIDE)]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lengths_bp == [200_000] * 60
    assert peak_bytes < 10 * 200_000  # the file holds 60 times 200,000


def test_a_pipe_can_be_read_once_and_its_errors_name_the_record(tmp_path: Path) -> None:
    source, sink = os.pipe()
    os.write(sink, b">a\nAC\n>b\nAX\n")
    os.close(sink)
    with pytest.raises(InputError, match="record 'b': the sequence holds letters that are not IUPAC nucleotide"):
        list(fasta.read(f"/dev/fd/{source}", Alphabet.NUCLEOTIDE))
    os.close(source)
