"""Records of FASTA and FASTQ files, streamed from disk and checked on the way.

Owns what an input file may hold. Bytes are decompressed (plain, gzip, bzip2, xz, lzma or zstd; the content decides, not
the name), cut block by block into records, and leave as :class:`Record`: upper case, without white space, ids unique. A
record with letters of no alphabet leaves with what is wrong with it; whatever makes a file doubtful as a whole is an
error. Lines are counted on the way: a file is read once. Memory is about four times the longest record, whose size is
limited since compressed files may grow to anything, and what :mod:`.ids` takes to notice a repeated id.
"""

import bz2
import gzip
import lzma
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from hashlib import blake2b
from io import BufferedReader, FileIO
from itertools import chain
from os import PathLike
from string import whitespace
from typing import Any, BinaryIO, NamedTuple, NoReturn, Protocol

from ..documents import name_format
from ..errors import InputError
from . import Alphabet
from .ids import Ids, KnownIds

LONGEST_RECORD_BYTES = 2**30  # of text; the longest chromosome of wheat has 0.85 billion bases
LONGEST_ID = 4096  # letters; every frame of a record carries its id
GAPS = "-."  # in nucleotides
_BLOCK_BYTES = 128 * 1024
_ZSTANDARD_BYTES = 4096  # decompressed at once, which make 128 MiB at most: 4 bytes may stand for a block of 128 KiB
_COMMENT = re.compile(rb"\n#.*")
_WHITESPACE = whitespace.encode()


class Digest(Protocol):
    """What takes bytes in, such as ``hashlib.sha256()``."""

    def update(self, data: memoryview, /) -> None:
        """Take in some more."""


class Record(NamedTuple):
    """One entry of a file.

    Attributes:
        id: First word of the header; any unicode text, never empty, unique in its file.
        sequence: Upper-case letters of the file's alphabet, in nucleotides with T for U and N for gaps (``-`` and
            ``.``); may be empty. Every other letter is a ``?``.
        problem: Where the first other letter stands, in words; empty without one.
    """

    id: str
    sequence: str
    problem: str = ""


def read_records(
    path: str | PathLike[str], alphabet: Alphabet, digest: Digest | None = None, ids: KnownIds | None = None
) -> Iterator[Record]:
    """Yield the records of a FASTA or FASTQ file in their order; the content, not the name, says which it is.

    Dropped are white space inside a sequence, descriptions, qualities, and lines of FASTA that start with ``#``. In
    nucleotides U is read as T, and a gap as N. FASTQ has four lines a record, and may have blank lines between them.
    Names are UTF-8 and may be in any script. An empty file yields nothing.

    Args:
        path: The file, which is read once; a pipe will do.
        alphabet: The letters that its sequences should hold.
        digest: Takes in every byte of the file as it lies on disk, compressed or not; complete after the last record.
        ids: Notices ids that are there twice; None to keep them all in memory.

    Raises:
        InputError: the file is missing, unreadable, damaged or of another format, or an id is empty or repeated; it
            names file, line and record.
    """
    reader = _Reader(path, alphabet, ids or Ids())
    try:
        with _DigestedFile(path) as raw, BufferedReader(raw, _BLOCK_BYTES) as file:
            raw.digest = digest
            opener = next((opener for mark, opener in _DECOMPRESSORS.items() if file.peek(6).startswith(mark)), None)
            yield from reader.records(_text_blocks(opener(file) if opener else file), bool(opener))
            while digest is not None and file.read(_BLOCK_BYTES):  # what follows the end of a compressed stream
                pass
    except UnicodeDecodeError:
        reader.refuse("not FASTA or FASTQ in UTF-8 text; check the file, or convert its names: iconv -f latin1 -t utf8")
    except FileNotFoundError:
        raise InputError("no such file; check the path", path) from None
    except IsADirectoryError:
        raise InputError("is a directory; give a FASTA or FASTQ file", path) from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(f"the compressed file is damaged or cut short ({error}); copy it again", path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error}); check the file", path) from None


class _DigestedFile(FileIO):
    """A file whose bytes a digest takes in as they are read."""

    digest: Digest | None = None

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        if self.digest is not None:
            self.digest.update(memoryview(buffer)[:count])
        return count


class _ZstandardFile:
    """The content of a file that zstd compressed, in one frame or several; read from the beginning to the end."""

    def __init__(self, file: BinaryIO, new_frame: Callable[[], Any], error: type[Exception]) -> None:
        """Read a file; ``new_frame`` makes what decompresses a frame, which raises ``error`` where it is damaged."""
        self._file = file
        self._new_frame, self._frame = new_frame, new_frame()
        self._error = error
        self._content = bytearray()

    def read(self, size: int) -> bytes:
        """Return up to so many bytes, none at the end.

        Raises:
            EOFError: the file ends within a frame, or is damaged.
            OSError: it needs too much memory.
        """
        while len(self._content) < size:
            compressed = self._frame.unused_data if self._frame.eof else b""
            compressed = compressed or self._file.read(_ZSTANDARD_BYTES)
            if not compressed:
                if not self._frame.eof:
                    raise EOFError("it ends within a frame")
                break
            if self._frame.eof:
                self._frame = self._new_frame()
            try:
                self._content += self._frame.decompress(compressed)
            except self._error as error:
                if "memory" in str(error):
                    raise OSError("its window is above 128 MiB; compress it again without --long") from None
                raise EOFError(error) from None
        found = bytes(self._content[:size])
        del self._content[:size]
        return found


def _open_zstandard(file: BinaryIO) -> _ZstandardFile:
    """Open what zstd compressed; its package is imported here since no other file needs it."""
    from zstandard import ZstdDecompressor, ZstdError

    return _ZstandardFile(file, ZstdDecompressor().decompressobj, ZstdError)


_DECOMPRESSORS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x5d\x00\x00": lzma.open,  # the older .lzma
    b"\x28\xb5\x2f\xfd": _open_zstandard,
}


def _text_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the text of a file, each of its line ends one LF; a block ends before an LF, never after it."""
    held = b""
    while block := file.read(_BLOCK_BYTES):
        text = held + block
        held = next(end for end in (b"\r\n", b"\r", b"\n", b"") if text.endswith(end))
        text = text.removesuffix(held)
        yield text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text
    yield b"\n" if held else b""


class _Reader:
    """Cuts the text of one file into records and checks them; knows the line of the record that it reads."""

    def __init__(self, path: str | PathLike[str], alphabet: Alphabet, ids: KnownIds) -> None:
        self._path = path
        self._ids = ids
        self._alphabet = alphabet
        letters = alphabet.value.encode()  # what is none of them becomes a byte that is not ASCII
        self._allowed = alphabet.value + alphabet.value.lower() + whitespace
        table = bytes(letter if letter in letters else 0xFF for letter in bytes(range(256)).upper())
        if alphabet is Alphabet.NUCLEOTIDE:
            self._allowed += GAPS
            table = table.translate(bytes.maketrans(b"U", b"T"))
            table = bytes(ord("N") if letter in GAPS.encode() else to for letter, to in enumerate(table))
        self._table = table
        self._line = 0  # of the LF before the text; the first of the file is 1

    def records(self, blocks: Iterator[bytes], decompressed: bool) -> Iterator[Record]:
        """Return the records in what :func:`_text_blocks` yields, of a file that was compressed or not."""
        start = next(blocks)
        if named := name_format(start):
            raise InputError(f"{'its content, decompressed,' * decompressed} is {named}".lstrip(), self._path)
        first = b"\n" + start.removeprefix(BOM_UTF8)
        blocks = chain([first], blocks)
        if first.lstrip().startswith(b"@"):
            return self._fastq(chain.from_iterable(self._cut(blocks, b"\n")))
        self._check_start(first.partition(b"\n>")[0])  # now, since a file of another format may be of any size
        return self._fasta(chain.from_iterable(self._cut(blocks, b"\n>")))

    def _cut(self, blocks: Iterator[bytes], mark: bytes) -> Iterator[list[bytes]]:
        """Yield the pieces between the marks, as many at once as end in a block."""
        parts: list[bytes] = []
        size_bytes = 0
        for block in blocks:
            first, *others = block.split(mark)
            parts.append(first)
            size_bytes += len(first)
            if size_bytes > LONGEST_RECORD_BYTES:
                self.refuse(f"a record of more than {LONGEST_RECORD_BYTES} bytes; if this is text, cut the record")
            if others:
                last = others.pop()
                yield [b"".join(parts), *others]
                parts, size_bytes = [last], len(last)
        yield [b"".join(parts)]

    def _check_start(self, text: bytes) -> None:
        """Refuse what stands before the first record of FASTA, but for blank lines and comments."""
        for self._line, line in enumerate(_COMMENT.sub(b"\n", text).split(b"\n")):
            if line.strip():
                self._refuse_format(line, "expected '>'")

    def _fasta(self, entries: Iterator[bytes]) -> Iterator[Record]:
        """Yield the records of what lies between the marks of FASTA."""
        self._check_start(next(entries))
        self._line += 1
        for entry in entries:
            start = entry.find(b"\n") + 1 or len(entry) + 1
            text = entry if entry.find(b"#", start) < 0 else _COMMENT.sub(b"\n", entry)
            yield self._record(text[: start - 1], text, start)
            self._line += entry.count(b"\n") + 1

    def _fastq(self, lines: Iterator[bytes]) -> Iterator[Record]:
        """Yield the records of the lines of FASTQ."""
        for header in lines:
            if not header.strip():
                self._line += 1
                continue
            if header[:1] != b"@":
                self._refuse_format(header, "expected '@'")
            letters, separator, qualities = next(lines, b""), next(lines, b""), next(lines, None)
            record = self._record(header[1:], letters, 0)
            if qualities is None:
                self.refuse("the file ends within this record; copy it again, or remove the record", record.id)
            if separator != b"+" and separator.rstrip() != b"+" + header[1:].rstrip():
                self._refuse_format(separator, "expected '+', alone or with the name again", 2, record.id)
            if len(qualities) != len(letters):
                self._refuse_format(qualities, f"expected {len(letters)} qualities", 3, record.id)
            yield record
            self._line += 4

    def _record(self, header: bytes, text: bytes, start: int) -> Record:
        """Return the record of a header without its mark, and of a text whose letters begin at ``start``."""
        identifier, *_ = header.decode().split(None, 1) or [""]
        known_by = blake2b(identifier.encode(), digest_size=16).digest()
        first_line = self._ids.first_line(known_by, self._line)
        if first_line != self._line or not 0 < len(identifier) <= LONGEST_ID or "\0" in identifier:
            self._refuse_id(identifier, first_line)
        sequence = text[start:].translate(self._table, _WHITESPACE)
        problem = "" if sequence.isascii() else self._first_other_letter(text[start:])
        return Record(identifier, sequence.replace(b"\xff", b"?").decode("ascii"), problem)

    def refuse(self, problem: str, record: str | None = None) -> NoReturn:
        """Raise the InputError of the line that is read."""
        raise InputError(problem, self._path, self._line, record) from None

    def _refuse_format(self, line: bytes, reason: str, below: int = 0, record: str | None = None) -> NoReturn:
        self._line += below
        self.refuse(f"not FASTA or FASTQ: {reason}, found {line.decode()!r:.40}; mend or remove this line", record)

    def _refuse_id(self, identifier: str, first_line: int) -> NoReturn:
        if not identifier:
            self.refuse("the record has no id; write one behind the '>' or '@'")
        if "\0" in identifier:
            self.refuse("the id holds a NUL byte; is this a text file?")
        if len(identifier) > LONGEST_ID:
            self.refuse(f"the id has {len(identifier)} letters, {LONGEST_ID} are allowed; shorten it")
        self.refuse(f"the id is that of line {first_line} too; rename one of the records", identifier)

    def _first_other_letter(self, text: bytes) -> str:
        """Where the first letter stands that is not of the alphabet, in the lines below a header."""
        lines = enumerate(text.decode(errors="replace").split("\n"), self._line + 1)
        number, line, bad = next((number, line, bad) for number, line in lines if (bad := line.lstrip(self._allowed)))
        where = f"in column {len(line) - len(bad) + 1} of line {number}"
        return f"{bad[0]!r} {where} is no IUPAC {self._alphabet.name.lower()} letter"
