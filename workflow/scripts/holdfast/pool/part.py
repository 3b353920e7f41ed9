"""One part of a sample as it is read: rows, the tokens of distinct sequences, and what is doubtful in its records.

A part is some hundred thousand records at most, so that nothing that a pool holds grows with a sample. A sample of
fewer is one part, in its job's work directory; the parts of a larger one lie below ``parts/JOB/`` of the spool, see
:mod:`.sample`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from ..models.registry import KINDS, Prepared, load_tokenizer
from ..results.writer import EmbeddingsWriter
from ..sequences import Alphabet
from ..sequences.fasta import Record
from ..sequences.frames import find_frames, frame_id
from ..spool.job import Manifest
from ..spool.spool import COUNTS_FILE
from .distinct import DistinctWriter
from .fates import judge, letters_for_all, seen_letters

PART_RECORDS = 100_000
PART_LETTERS = 32_000_000
"""A part ends with the block that reaches one of these: a sequence takes about 0.65 kB in the supervisor."""
ROWS_FILE = "rows.h5"
PROBLEMS_FILE = "problems.txt"
"""A line for each record with bad letters, in their order."""
BLOCK_ROWS = 4096
BLOCK_LETTERS = 16_000_000
NUCLEOTIDES = b"ACGTUNacgtun"

Models = dict[str, tuple[Prepared, Path]]
"""By a job's names, the prepared models that it asks for, and where they are."""
Item = TypeVar("Item")


class Row(NamedTuple):
    """One row of the embeddings file before it is embedded: its place, and its text in each alphabet."""

    id: str
    record: int
    chunk: int
    frame: int
    texts: dict[str, str]


class PartWriter:
    """Fills the directory of a part.

    Attributes:
        counts: ``records``, ``rows``, ``letters`` and ``nucleotides``; at the end also records of each status.
    """

    def __init__(self, manifest: Manifest, directory: Path, models: Models) -> None:
        """Begin a part in an empty directory."""
        self._manifest, self._directory, self._models = manifest, directory, models
        self._stack = ExitStack()
        self.counts = {"records": 0, "rows": 0, "letters": 0, "nucleotides": 0}

    def __enter__(self) -> Self:
        manifest, directory = self._manifest, self._directory
        enter = self._stack.enter_context
        self._writers = {
            name: enter(DistinctWriter(directory, name, load_tokenizer(prepared, place)))
            for name, (prepared, place) in self._models.items()
        }
        cutting = (manifest.chunk_length, manifest.genetic_code)
        described = (manifest.sample, manifest.kind, *cutting, manifest.whole)
        self._file = enter(EmbeddingsWriter.create(directory / ROWS_FILE, *described))
        self._file.name_input(manifest.input_sha256)
        self._problems = enter(open(directory / PROBLEMS_FILE, "w", encoding="utf-8"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all files; without an exception the part is whole, and its counts stand beside it."""
        if kind is None:
            if self._manifest.kind == "contigs":
                self._file.mark_empty("no_stop_free_frame")
            self.counts |= self._file.count_statuses()
        self._stack.__exit__(kind, error, traceback)
        if kind is None:
            (self._directory / COUNTS_FILE).write_text(json.dumps(self.counts))

    @property
    def is_full(self) -> bool:
        """Whether the next records belong to another part."""
        return is_full(self.counts["records"], self.counts["letters"])

    def add(self, records: Sequence[Record]) -> None:
        """Append records, of proteins without the stop at the end."""
        manifest, first = self._manifest, KINDS[self._manifest.kind][0]
        start = self.counts["records"]
        fates = [judge(manifest, len(record.sequence), record.problem) for record in records]
        self._problems.writelines(f"{record.problem}\n" for record in records if record.problem)
        lengths = [len(record.sequence) for record in records]
        used = [fate.used for fate in fates]
        self._file.append_records([record.id for record in records], lengths, used, [fate.status for fate in fates])
        self.counts["records"] += len(records)
        self.counts["letters"] += sum(lengths)
        if manifest.kind == "proteins":
            self.counts["nucleotides"] += sum(count_nucleotides(record.sequence) for record in records)
        numbered = zip(range(start, start + len(records)), records, used, strict=True)
        found = (row for number, record, letters in numbered if letters for row in _rows(manifest, number, record))
        for rows in in_blocks(found, lambda row: sum(map(len, row.texts.values()))):
            embedded = [row.texts[first.name][: letters_for_all(manifest)] for row in rows]
            self._file.append_rows(
                [row.id for row in rows],
                [len(text) for text in embedded],
                [hashlib.sha256(text.encode()).digest() for text in embedded],
                record=[row.record for row in rows],
                chunk=[row.chunk for row in rows],
                frame=[row.frame for row in rows],
            )
            for name, writer in self._writers.items():
                alphabet, limit = self._models[name][0].alphabet.upper(), seen_letters(manifest, name)
                writer.add([row.texts[alphabet][:limit] for row in rows])
            self.counts["rows"] += len(rows)


def is_full(records: int, letters: int) -> bool:
    """Whether so many are all that a part takes."""
    return records >= PART_RECORDS or letters >= PART_LETTERS


def read_counts(directory: Path) -> dict[str, int]:
    """The counts of a part that has been read."""
    counts: dict[str, int] = json.loads((directory / COUNTS_FILE).read_text())
    return counts


def count_nucleotides(sequence: str) -> int:
    """Letters of a sequence that may be nucleotides."""
    return len(sequence) - len(sequence.encode("ascii", "replace").translate(None, NUCLEOTIDES))


def in_blocks(items: Iterable[Item], letters: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Lists of up to ``BLOCK_ROWS`` items that hold, but for the last item, less than ``BLOCK_LETTERS`` letters."""
    block: list[Item] = []
    held = 0
    for item in items:
        block.append(item)
        held += letters(item)
        if len(block) >= BLOCK_ROWS or held >= BLOCK_LETTERS:
            yield block
            block, held = [], 0
    if block:
        yield block


def _rows(manifest: Manifest, number: int, record: Record) -> Iterator[Row]:
    if manifest.kind == "contigs":
        for found in find_frames(record.sequence, manifest.chunk_length, manifest.genetic_code):
            identifier = frame_id(record.id, found.chunk, found.frame)
            texts = {Alphabet.PROTEIN.name: found.protein, Alphabet.NUCLEOTIDE.name: found.nucleotides}
            yield Row(identifier, number, found.chunk, found.frame, texts)
    else:
        (alphabet,) = KINDS[manifest.kind]
        yield Row(record.id, number, 0, 0, {alphabet.name: record.sequence})
