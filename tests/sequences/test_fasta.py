"""Reading records: what survives, what is normalised, and the message for each broken file."""

import bz2
import gzip
import hashlib
import lzma
import os
import random
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from holdfast.errors import InputError
from holdfast.sequences import Alphabet, fasta
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"


def compress_alone(content: bytes) -> bytes:
    """As ``xz --format=lzma`` does."""
    return lzma.compress(content, lzma.FORMAT_ALONE)


def compress_stream(content: bytes) -> bytes:
    """As ``zstd -`` does, which does not know the size."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return compressor.compress(content) + compressor.flush()


COMPRESS = [bytes, gzip.compress, bz2.compress, lzma.compress, compress_alone, zstandard.compress, compress_stream]


def read(path: Path, content: bytes, alphabet: Alphabet = Alphabet.NUCLEOTIDE) -> list[tuple[str, str]]:
    path.write_bytes(content)
    return [(record.id, record.sequence) for record in fasta.read_records(path, alphabet)]


def refusal(path: Path, content: bytes, alphabet: Alphabet = Alphabet.NUCLEOTIDE) -> str:
    with pytest.raises(InputError) as caught:
        read(path, content, alphabet)
    return str(caught.value).removeprefix(str(path))


FASTA = b">one first record\nACGT\nacgu\n\n>two\n>three|x/y\nRYSW KMBD\tHVN\n"
FASTQ = b"@one first record\nACGTACGU\n+\nIIIIIIII\n@two\n\n+\n\n@three|x/y\nRYSWKMBDHVN\n+three|x/y\n@@@@@@@@@@@\n"
RECORDS = [("one", "ACGTACGT"), ("two", ""), ("three|x/y", "RYSWKMBDHVN")]


@pytest.mark.parametrize("content", [FASTA, FASTQ])
@pytest.mark.parametrize("compress", COMPRESS)
def test_content_and_not_the_name_decides_how_a_file_is_read(
    tmp_path: Path, content: bytes, compress: Callable[[bytes], bytes]
) -> None:
    for name in ("a.fna", "a.fastq", "a.fa.gz", "no extension"):
        assert read(tmp_path / name, compress(content)) == RECORDS


@pytest.mark.parametrize(
    "content",
    [
        b"# comment\n\n>one\nACGT\n#>two\nACGU\n>two\n#\n>three|x/y # 1\nRYSWKMBDHVN",
        b" \n\n@one\nACGTACGU\n+one\n!!!!!!!!\n\n@two\n\n+\n\n\t\n\n@three|x/y\nRYSWKMBDHVN\n+\n@@@@@@@@@@@\n\n \n",
        b"@one 1\nACGTACGU\n+one 1\n@@@@@@@@\n@two\n\n+two\n\n\n@three|x/y\nRYSWKMBDHVN\n+\n+++++++++++",
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_comments_blank_lines_any_line_ends_a_byte_order_mark_and_an_open_end_are_read(
    tmp_path: Path, content: bytes, mark: bytes, line_end: bytes
) -> None:
    assert read(tmp_path / "a.fna", mark + content.replace(b"\n", line_end)) == RECORDS


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    ("start", "content"),
    [
        (b">pad ", b"\n# >\nACGU\n\n>a>\nAC\n\n\nGT\n>b\n>c\nA\n"),
        (b"@pad ", b"\nACGU\n+\nIIII\n\n@a>\nACGT\n+\n@@@@\n@b\n\n+\n\n@c\nA\n+\n+\n\n"),
    ],
)
def test_a_file_is_read_alike_wherever_its_blocks_end(
    tmp_path: Path, start: bytes, content: bytes, line_end: bytes
) -> None:
    content = content.replace(b"\n", line_end)
    for before in range(len(content) + 1):
        text = start.ljust(fasta._BLOCK_BYTES - before, b"x") + content
        assert read(tmp_path / "a", text) == [("pad", "ACGT"), ("a>", "ACGT"), ("b", ""), ("c", "A")]
        lines = text.count(line_end)
        assert refusal(tmp_path / "a", text + start[:1]).startswith(f", line {lines + 1}: the record has no id")


Reading = tuple[list[tuple[str, str]], int | None]


def slow_reading(text: str) -> Reading:
    """The records of FASTA line by line, as far as they are whole, and the line of the first error."""
    records: dict[str, str] = {}
    whole = 0
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.startswith(">"):
            whole = len(records)
            words = line[1:].split()
            if not words or words[0] in records:
                return list(records.items())[:whole], number
            records[words[0]] = ""
        elif line.strip() and not line.startswith("#"):
            letters = "".join(line.upper().split()).translate(str.maketrans("U-.", "TNN"))
            known = [letter if letter in "ACGTN" else "?" * len(letter.encode()) for letter in letters]
            records[list(records)[-1]] += "".join(known)
    return list(records.items()), None


PIECES = [
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    " ",
    ">",
    "\n>",
    "\n>a",
    "\n>b",
    "\r>c",
    "#",
    "\n#",
    "A",
    "cgu",
    "N",
    "-",
    "é",
    "病",
]


@given(st.lists(st.sampled_from(PIECES), max_size=20))
@settings(deadline=None, max_examples=500)
def test_any_text_gives_the_records_and_the_line_of_an_error_of_the_slow_reading(pieces: list[str]) -> None:
    text = "".join([">first", *pieces])
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        found: list[tuple[str, str]] = []
        line = None
        try:
            found.extend((record.id, record.sequence) for record in fasta.read_records(file.name, Alphabet.NUCLEOTIDE))
        except InputError as error:
            line = int(str(error).removeprefix(f"{file.name}, line ").partition(",")[0].partition(":")[0])
    assert (found, line) == slow_reading(text)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress, compress_stream])
def test_two_members_of_one_file_are_one_text(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    assert read(tmp_path / "a", compress(FASTA[:30]) + compress(b"") + compress(FASTA[30:])) == RECORDS


def test_what_zstd_compressed_is_read_in_little_memory_and_not_with_an_endless_window(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(zstandard.compress(b">a\n" + b"ACGT" * 10_000_000))
    tracemalloc.start()
    try:
        with open(path, "rb") as file:
            opened = fasta._open_zstandard(file)
            sizes = [len(opened.read(100_000)) for _ in range(401)]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) == 40_000_003
    assert peak_bytes < 2 * fasta._ZSTANDARD_BYTES / 4 * 2**17
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=0)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    message = refusal(path, compressor.compress(b">a\nACGT\n" * 10) + compressor.flush())
    assert message.startswith(": cannot be read (its window is above 128 MiB; compress it again without --long)")


def test_selenocysteine_stays_in_a_protein_and_uracil_becomes_thymine(tmp_path: Path) -> None:
    content = b">p\nmkuX*-.\n"
    assert read(tmp_path / "a.faa", content, Alphabet.PROTEIN) == [("p", "MKUX*-.")]
    assert read(tmp_path / "a.fna", b">p\nacgu\n") == [("p", "ACGT")]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\r\n# comment", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
def test_an_empty_file_has_no_records(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path / "a.fna", content) == []


IDS = ["x" * 300, "gi|1|ref/a:b", 'it\'s_"quoted"', "Käfer-病毒-🦠", "=1+1", "a,b;c", "#1", ">>"]


def test_ids_survive_as_they_are(tmp_path: Path) -> None:
    for record in (">{} the rest\nAC\n", "@{} the rest\nAC\n+\nII\n"):
        content = "".join(record.format(identifier) for identifier in IDS).encode()
        assert read(tmp_path / "a.fna", content) == [(identifier, "AC") for identifier in IDS]


def test_unicode_ids_do_not_depend_on_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "a.fna"
    path.write_bytes(">Käfer\nAC\n".encode())
    command = (
        "import sys; from holdfast.sequences.fasta import *;"
        "print(ascii(list(read_records(sys.argv[1], Alphabet.NUCLEOTIDE))))"
    )
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(SCRIPTS),
    }
    done = subprocess.run([sys.executable, "-c", command, path], env=environment, capture_output=True, text=True)
    assert done.stdout == "[Record(id='K\\xe4fer', sequence='AC', problem='')]\n", done.stderr


def test_missing_files_and_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.fna: no such file"):
        list(fasta.read_records(tmp_path / "none.fna", Alphabet.NUCLEOTIDE))
    with pytest.raises(InputError, match="is a directory"):
        list(fasta.read_records(tmp_path, Alphabet.NUCLEOTIDE))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n>a\nAC\n>\nAC\n", ", line 4: the record has no id"),
        (b"@ \nAC\n+\nII\n", ", line 1: the record has no id"),
        (b">a\nAC\n>b\n>a x\nA!\n", ", line 4, record 'a': the id is that of line 1 too"),
        (b"@b\nAC\n+\nII\n@a\nAC\n+\n@a\n@a\nG\n+\nI\n", ", line 9, record 'a': the id is that of line 5 too"),
        (b"ACGT\n>a\nACGT\n", ", line 1: not FASTA or FASTQ: expected '>', found 'ACGT'; mend or remove this line"),
        (b"\n#\nid\tsequence\n", ", line 3: not FASTA or FASTQ: expected '>', found 'id\\tsequence'"),
        (b" \n >a\nAC\n", ", line 2: not FASTA or FASTQ: expected '>', found ' >a'"),
        (b">a\nAC\n>b \xe9\nAC\n", ", line 3: not FASTA or FASTQ in UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\0\0", ", line 1: not FASTA or FASTQ in UTF-8 text"),
        (">a\nAC\n".encode("utf-16"), ": is UTF-16 text; save it as UTF-8: iconv -f utf-16 -t utf-8"),
        (">a\nAC\n".encode("utf-16-le"), ": is UTF-16 text; save it"),
        (b"PK\3\4" + bytes(26) + b"a.fna", ": is a zip archive or an Excel workbook; unpack it"),
        (b"a.fna".ljust(257, b"\0") + b"ustar\0" + bytes(249), ": is a tar archive; unpack it"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            ": is a pointer of Git LFS; fetch the file itself: git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html>", ": is a web page; download the file itself"),
        (b"BAM\1" + bytes(9), ": is a BAM file; convert it: samtools fasta"),
        (b"@HD\tVN:1.6\n@SQ\tSN:chr\tLN:4\n", ": is a SAM file; convert it: samtools fasta"),
        (b">a\0b\nAC\n", ", line 1: the id holds a NUL byte"),
        ("@a\nAC\n+\nII\n@é\nAC\n+\nII\n".encode("latin-1"), ", line 5: not FASTA or FASTQ in UTF-8 text"),
        (b"@a\nACGT\n+\nIII\n", ", line 4, record 'a': not FASTA or FASTQ: expected 4 qualities, found 'III'"),
        (b"@a\nAC\n+\nI\xff\xff\n", ", line 4: not FASTA or FASTQ in UTF-8 text"),
        (b"@a\nACGT\n+\nIIII\n\n\n@b\nAC\n", ", line 7, record 'b': the file ends within this record"),
        (b"@a\nACGT\n+\nIIII\n@b", ", line 5, record 'b': the file ends within this record"),
        (b"@a\nAC\nGT\n+\nII\nII\n", ", line 3, record 'a': not FASTA or FASTQ: expected '+', alone or with the name"),
        (b"@a\nAC\n+b\nII\n", ", line 3, record 'a': not FASTA or FASTQ: expected '+', alone or with the name again"),
        (b"@a\nAC\n+\nII\n>b\nAC\n", ", line 5: not FASTA or FASTQ: expected '@', found '>b'"),
        (b">a\nAC\n>" + b"b" * 4097 + b"\nAC\n", ", line 3: the id has 4097 letters, 4096 are allowed; shorten it"),
    ],
)
def test_a_broken_record_is_refused_with_file_line_and_record(tmp_path: Path, content: bytes, message: str) -> None:
    assert refusal(tmp_path / "a.fna", content).startswith(message)
    inside = message.replace(": is ", ": its content, decompressed, is ") if message.startswith(": is ") else message
    assert refusal(tmp_path / "a.fna", gzip.compress(content)).startswith(inside)


@pytest.mark.parametrize("compress", COMPRESS[1:])
def test_a_file_that_was_compressed_twice_is_told(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    message = ": its content, decompressed, is compressed data; decompress it once"
    assert refusal(tmp_path / "a.fna.gz.gz", gzip.compress(compress(FASTA))) == message


@pytest.mark.parametrize(
    ("content", "sequence", "problem"),
    [
        (b">a\nACGT\nAC GX\n", "ACGTACG?", "'X' in column 5 of line 3"),
        (b">a\n1 ACGT\n", "?ACGT", "'1' in column 1 of line 2"),
        (b">a\nAC*\n", "AC?", "'*' in column 3 of line 2"),
        (b">a\n#x\nACE\n", "AC?", "'E' in column 3 of line 3"),
        (">a\nACé\n".encode(), "AC??", "'é' in column 3 of line 2"),
        (">a\nAC\nCé\n".encode("latin-1"), "ACC?", "'\ufffd' in column 2 of line 3"),
        (b"@a\nA-E\n+\nIII\n", "AN?", "'E' in column 3 of line 2"),
    ],
)
def test_other_letters_are_the_problem_of_their_record(
    tmp_path: Path, content: bytes, sequence: str, problem: str
) -> None:
    (tmp_path / "a.fna").write_bytes(content)
    (found,) = fasta.read_records(tmp_path / "a.fna", Alphabet.NUCLEOTIDE)
    assert found == ("a", sequence, f"{problem} is no IUPAC nucleotide letter")


def test_gaps_in_nucleotides_are_n_and_the_records_around_a_bad_one_are_delivered(tmp_path: Path) -> None:
    (tmp_path / "a.fna").write_bytes(b">a\nA-C..\n>b\nAX\n>c\nGG\n")
    first, bad, last = fasta.read_records(tmp_path / "a.fna", Alphabet.NUCLEOTIDE)
    assert (first, bad[:2], last) == (("a", "ANCNN", ""), ("b", "A?"), ("c", "GG", ""))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b">a\nAC\n>b\n" + b"ACGT" * 50_000, 3),
        (b"@a\nAC\n+\nII\n@b\n" + b"ACGT" * 50_000 + b"\n+\n" + b"I" * 200_000, 5),
    ],
)
def test_a_record_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, line: int
) -> None:
    assert read(tmp_path / "a", content) == [("a", "AC"), ("b", "ACGT" * 50_000)]
    monkeypatch.setattr(fasta, "LONGEST_RECORD_BYTES", 190_000)
    assert refusal(tmp_path / "a", content).startswith(f", line {line}: a record of more than 190000 bytes")


@pytest.mark.parametrize("compress", COMPRESS)
def test_the_digest_is_that_of_the_file_on_disk(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a"
    path.write_bytes(compress(FASTA) + b"\n" * 200_000 * (compress in (bytes, bz2.compress)))
    digest = hashlib.sha256()
    assert [record[:2] for record in fasta.read_records(path, Alphabet.NUCLEOTIDE, digest)] == RECORDS
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()


def test_letters_of_proteins_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "a.faa").write_bytes(b">a\nMK1\n")
    assert [*fasta.read_records(tmp_path / "a.faa", Alphabet.PROTEIN)] == [
        ("a", "MK?", "'1' in column 3 of line 2 is no IUPAC protein letter")
    ]


def test_records_before_the_broken_one_are_delivered(tmp_path: Path) -> None:
    path = tmp_path / "a.fna"
    path.write_bytes(b">a\nAC\n>a\nX\n")
    records = fasta.read_records(path, Alphabet.NUCLEOTIDE)
    assert next(records) == ("a", "AC", "")
    with pytest.raises(InputError, match="record 'a'"):
        next(records)


@pytest.mark.parametrize("compress", COMPRESS[1:])
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
        lengths_bp = [len(record.sequence) for record in fasta.read_records(path, Alphabet.NUCLEOTIDE)]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lengths_bp == [200_000] * 60
    assert peak_bytes < 10 * 200_000  # the file holds 60 times 200,000


def test_a_pipe_is_read_once_and_its_errors_name_line_and_record() -> None:
    source, sink = os.pipe()
    os.write(sink, b">a\nAC\n>a\nAC\n")
    os.close(sink)
    with pytest.raises(InputError, match="line 3, record 'a': the id is that of line 1 too"):
        list(fasta.read_records(f"/dev/fd/{source}", Alphabet.NUCLEOTIDE))
    os.close(source)
