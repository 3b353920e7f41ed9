"""Records of FASTA and FASTQ files, streamed from disk and checked on the way.

Owns what an input file may hold. Bytes are decompressed by the standard library (plain, gzip, bzip2 or xz;
the content decides, not the name), cut into entries by dnaio, and leave as :class:`Record`: upper case,
without white space, ids unique. Memory is a small multiple of the longest record, whose size is limited since
compressed files may grow to anything, plus about 100 bytes a record to notice a repeated id.

dnaio does not tell the line of an entry, so nothing is counted while all is well: an error reads the file a
second time to find its line.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from io import BufferedReader, FileIO, RawIOBase, TextIOWrapper
from os import PathLike
from pathlib import Path
from string import whitespace
from typing import Any, BinaryIO, NamedTuple, NoReturn, Protocol

from dnaio.exceptions import FileFormatError
from dnaio.readers import FastaReader, FastqReader

from .errors import InputError
from .models import Alphabet

LONGEST_RECORD_BYTES = 2**30  # of text; the longest chromosome of wheat has 0.85 thousand million bases
LONGEST_ID = 4096  # letters; every frame of a record carries its id
_UNKNOWN = b"?"
_BUFFER_BYTES = 128 * 1024
_DECOMPRESSORS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


class Digest(Protocol):
    """What takes bytes in, such as ``hashlib.sha256()``."""

    def update(self, data: memoryview, /) -> None:
        """Take in some more."""


class Record(NamedTuple):
    """One entry of a file.

    Attributes:
        id: First word of the header; any unicode text, never empty, unique in its file.
        sequence: Upper-case letters of the file's alphabet, in nucleotides with T for U; may be empty.
    """

    id: str
    sequence: str


class _Entry(NamedTuple):
    """What dnaio fills in; its own class admits ASCII names only."""

    name: str
    sequence: str
    qualities: str | None


class _Utf8FastaReader(FastaReader):
    """dnaio's reader, with names in UTF-8 whatever the locale says, after a byte order mark or not."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, sequence_class=_Entry)
        self._file.reconfigure(encoding="utf-8-sig")


def read(path: str | PathLike[str], alphabet: Alphabet, digest: Digest | None = None) -> Iterator[Record]:
    """Yield the records of a FASTA or FASTQ file in their order; the content, not the name, says which it is.

    White space inside a sequence is dropped, and so are descriptions, qualities, and lines of FASTA that
    start with ``#``. U is read as T in nucleotides. An empty file yields nothing. FASTQ has four lines a
    record and ASCII names, FASTA may have names in any script.

    Args:
        path: The file.
        alphabet: The letters that its sequences may hold.
        digest: Takes in every byte of the file as it lies on disk, compressed or not; complete after the last record.

    Raises:
        InputError: the file is missing, unreadable, damaged or of another format, an id is empty or
            repeated, or a letter is not of the alphabet; it names file, line and record.
    """
    try:
        yield from _records(path, alphabet, digest)
    except FileNotFoundError:
        raise InputError("no such file; check the path", path) from None
    except IsADirectoryError:
        raise InputError("is a directory; give a FASTA or FASTQ file", path) from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(f"the compressed file is damaged or cut short ({error}); copy it again", path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error}); check the file", path) from None


def _records(path: str | PathLike[str], alphabet: Alphabet, digest: Digest | None) -> Iterator[Record]:
    """Yield the records of :func:`read`, which speaks for the errors of the file as a whole."""
    table = _table(alphabet)
    seen: set[bytes] = set()
    try:
        with _open(path, digest) as file:
            is_fastq = file.peek(1).lstrip().startswith(b"@")
            entries = FastqReader(file, sequence_class=_Entry) if is_fastq else _Utf8FastaReader(file)
            for entry in entries:
                identifier = _identifier(entry.name)
                known_by = blake2b(identifier.encode(), digest_size=16).digest()
                if not 0 < len(identifier) <= LONGEST_ID or "\0" in identifier or known_by in seen:
                    _refuse_id(path, is_fastq, identifier)
                seen.add(known_by)
                sequence = entry.sequence.encode("ascii", "replace").translate(table, whitespace.encode())
                if _UNKNOWN in sequence:
                    _refuse_letter(path, is_fastq, identifier, alphabet)
                yield Record(identifier, sequence.decode("ascii"))
    except UnicodeDecodeError:
        line = next((number for number, text in _lines(path) if not _is_utf8(text)), None)
        raise InputError("not FASTA or FASTQ in UTF-8 text; check the file, or convert its names", path, line) from None
    except FileFormatError as error:
        if error.line is None:
            line = next((number for number, text in _lines(path) if not text.isascii()), None)
            raise InputError("FASTQ must be ASCII; rename the record or write FASTA", path, line) from None
        reason = " ".join(error.message.split()).rstrip(".")
        raise InputError(f"not FASTA or FASTQ: {reason}; mend or remove this line", path, error.line + 1) from None


@contextmanager
def _open(path: str | PathLike[str], digest: Digest | None = None) -> Iterator[BufferedReader]:
    """Open a file and, where its first bytes are those of a compressed one, decompress it on the way."""
    with open(path, "rb", buffering=0) as raw, BufferedReader(_Digested(raw, digest), _BUFFER_BYTES) as file:
        magic = file.peek(6)
        opener = next((opener for mark, opener in _DECOMPRESSORS.items() if magic.startswith(mark)), None)
        yield BufferedReader(_Text(opener(file) if opener else file, path), _BUFFER_BYTES)
        while digest is not None and file.read(_BUFFER_BYTES):  # what follows the end of a compressed stream
            pass


class _Digested(RawIOBase):
    """The bytes of a file, taken in by a digest as they are read."""

    def __init__(self, file: FileIO, digest: Digest | None) -> None:
        self._file = file
        self._digest = digest

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as a raw file does."""
        count = self._file.readinto(buffer)
        if self._digest is not None:
            self._digest.update(memoryview(buffer)[:count])
        return count


class _Text(RawIOBase):
    """The bytes of a file on their way to dnaio, stopped where a record is longer than ``LONGEST_RECORD_BYTES``."""

    def __init__(self, file: BinaryIO, path: str | PathLike[str]) -> None:
        self._file = file
        self._path = path
        self._marks: tuple[bytes, ...] = ()
        self._end = b""
        self._lines = 0
        self._record_bytes = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as a raw file does.

        Raises:
            InputError: a record that is too long.
        """
        block = self._file.read(len(buffer))
        self._marks = self._marks or ((b"\n@",) if block.lstrip().startswith(b"@") else (b"\n>", b"\r>"))
        seen = self._end + block
        place = max(map(seen.rfind, self._marks))
        self._record_bytes = self._record_bytes + len(block) if place < 0 else len(seen) - place
        self._lines += block.count(b"\n")
        self._end = block[-1:]
        if self._record_bytes > LONGEST_RECORD_BYTES:
            problem = f"a record of more than {LONGEST_RECORD_BYTES} bytes; if this is a text file, cut the record"
            raise InputError(problem, self._path, self._lines + 1)
        buffer[: len(block)] = block
        return len(block)


def _table(alphabet: Alphabet) -> bytes:
    """Return the 256-byte table from letters of either case to upper case, U to T, all else to ``?``."""
    letters = alphabet.value
    targets = letters.replace("U", "T") if alphabet is Alphabet.NUCLEOTIDE else letters
    table = bytearray(_UNKNOWN * 256)
    for letter, target in zip(letters, targets, strict=True):
        table[ord(letter)] = table[ord(letter.lower())] = ord(target)
    return bytes(table)


def _identifier(header: str) -> str:
    """Return the first word of a header without its mark, or an empty string."""
    return next(iter(header.split(maxsplit=1)), "")


def _lines(path: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line; nothing for a pipe, which cannot be read twice."""
    if Path(path).is_file():
        with _open(path) as file, TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape") as text:
            yield from enumerate(text, 1)


def _is_utf8(line: str) -> bool:
    """Tell whether a line of :func:`_lines` was UTF-8."""
    return not any("\udc80" <= letter <= "\udcff" for letter in line)


def _record_lines(path: str | PathLike[str], is_fastq: bool, identifier: str) -> Iterator[tuple[int, str, bool]]:
    """Yield number, text and whether it is a header, of header and sequence lines of the records with this id."""
    inside = False
    for number, line in _lines(path):
        is_header = number % 4 == 1 if is_fastq else line.lstrip().startswith(">")
        if is_header:
            inside = _identifier(line.strip()[1:]) == identifier
        if inside and not (is_fastq and number % 4 in (3, 0)):
            yield number, line, is_header


def _refuse_id(path: str | PathLike[str], is_fastq: bool, identifier: str) -> NoReturn:
    """Raise the InputError of an id that is empty, holds NUL, or was there before."""
    headers = (number for number, _, is_header in _record_lines(path, is_fastq, identifier) if is_header)
    first, second = next(headers, None), next(headers, None)
    if not identifier:
        raise InputError("the record has no id; write one behind the '>' or '@'", path, first)
    if "\0" in identifier:
        raise InputError("the id holds a NUL byte; is this a text file?", path, first)
    if len(identifier) > LONGEST_ID:
        raise InputError(f"the id has {len(identifier)} letters, {LONGEST_ID} are allowed; shorten it", path, first)
    raise InputError(f"the id is that of line {first} too; rename one of the records", path, second, identifier)


def _refuse_letter(path: str | PathLike[str], is_fastq: bool, identifier: str, alphabet: Alphabet) -> NoReturn:
    """Raise the InputError of the first letter of a record that is not in the alphabet."""
    allowed = set(alphabet.value + alphabet.value.lower() + whitespace)
    kind = alphabet.name.lower()
    for number, line, is_header in _record_lines(path, is_fastq, identifier):
        column = next((column for column, letter in enumerate(line, 1) if letter not in allowed), None)
        if column is not None and not is_header and not line.lstrip().startswith("#"):
            problem = f"{line[column - 1]!r} in column {column} is no IUPAC {kind} letter; correct or remove it"
            raise InputError(problem, path, number, identifier)
    raise InputError(f"the sequence holds letters that are not IUPAC {kind} letters", path, record=identifier)
