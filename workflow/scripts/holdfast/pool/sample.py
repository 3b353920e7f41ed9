"""One sample's way from its FASTA file to rows and tokens, and from vectors to its embeddings file.

Both are the work of a reader, a CPU process of the pool. :func:`read_sample` walks the file once: record, chunks,
stop-free frames, tokens. Rows go to the sample's embeddings file, which is not complete yet. The tokens of distinct
sequences go to files beside it: equal texts, and texts of equal tokens (two proteins that differ after the last residue
that the model sees), are one sequence. The supervisor maps these files and sends the tokens of a batch to a worker.
When the vectors are there, :func:`finish_sample` completes the embeddings file.
"""

import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np

from ..errors import InputError
from ..models.registry import KINDS, Prepared, load_tokenizer
from ..results.writer import EmbeddingsWriter
from ..sequences import Alphabet
from ..sequences.fasta import Record, read_records
from ..sequences.frames import find_frames, frame_id
from ..sequences.tokens import Tokenizer
from ..spool.job import Manifest
from .blocks import gather, write_array

EMBEDDINGS_FILE = "embeddings.h5"
BLOCK_ROWS = 4096
BLOCK_LETTERS = 16_000_000
MAX_DNA_BP = 100_000
"""Longest record of kind ``dna``, about 20,000 tokens: attention over it already takes minutes on a CPU."""

Item = TypeVar("Item")


class Contents(NamedTuple):
    """What was found in a file: counts (``records``, ``too_short``, ``too_long``, ``rows``), and its SHA-256 (hex)."""

    counts: dict[str, int]
    sha256: str


class Row(NamedTuple):
    """One row of the embeddings file before it is embedded: its place, and the text for each model."""

    id: str
    record: int
    chunk: int
    frame: int
    texts: dict[str, str]


def read_sample(manifest: Manifest, directory: Path, models: dict[str, Path]) -> Contents:
    """Read a sample into ``directory``.

    Args:
        manifest: The job.
        directory: Its work directory.
        models: Prepared model directories by model.

    Raises:
        InputError: the file cannot be read, or is not the one that was submitted.
    """
    _check_unchanged(manifest)
    alphabet, needed = KINDS[manifest.kind]
    digest = hashlib.sha256()
    counts = {"records": 0, "too_short": 0, "too_long": 0, "rows": 0}
    with ExitStack() as stack:
        writers = {
            model: stack.enter_context(DistinctWriter(directory, model, load_tokenizer(model, models[model])))
            for model in needed
        }
        path = directory / EMBEDDINGS_FILE
        created = EmbeddingsWriter.create(path, manifest.sample, manifest.kind, manifest.chunk_length, job=manifest.job)
        file = stack.enter_context(created)
        numbered = enumerate(read_records(manifest.fasta, alphabet, digest))
        for records in _blocks(numbered, lambda entry: len(entry[1].sequence)):
            lengths = [len(record.sequence) for _, record in records]
            statuses = [_status(manifest.kind, record.sequence) for _, record in records]
            file.append_records([record.id for _, record in records], lengths, statuses)
            counts["records"] += len(records)
            for status in ("too_short", "too_long"):
                counts[status] += statuses.count(status)
            usable = (entry for entry, status in zip(records, statuses, strict=True) if status == "ok")
            found = (row for number, record in usable for row in _rows(manifest, number, record))
            for rows in _blocks(found, lambda row: sum(map(len, row.texts.values()))):
                embedded = [row.texts[needed[0]] for row in rows]
                file.append_rows(
                    [row.id for row in rows],
                    [len(text) for text in embedded],
                    [hashlib.sha256(text.encode()).digest() for text in embedded],
                    record=[row.record for row in rows],
                    chunk=[row.chunk for row in rows],
                    frame=[row.frame for row in rows],
                )
                for model, writer in writers.items():
                    writer.add([row.texts[model] for row in rows])
                counts["rows"] += len(rows)
        file.name_input(digest.hexdigest())
    _check_unchanged(manifest)
    return Contents(counts, digest.hexdigest())


def _blocks(items: Iterable[Item], letters: Callable[[Item], int]) -> Iterator[list[Item]]:
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


def _check_unchanged(manifest: Manifest) -> None:
    """Refuse a file that is not the one the job was made for: its result would carry the wrong name."""
    try:  # opened, not looked at: NFS would answer from memory, which may be of the file before it was mended
        handle = os.open(manifest.fasta, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(handle)
        os.close(handle)
    except OSError as error:
        where = f"(by the pool on {socket.gethostname()})"
        raise InputError(f"cannot be read: {error.strerror} {where}", manifest.fasta) from None
    if (status.st_size, status.st_mtime_ns) != (manifest.size_bytes, manifest.mtime_ns):
        raise InputError("was changed after the job was submitted; run again", manifest.fasta)


def _status(kind: str, sequence: str) -> str:
    """Whether a record can give rows: a codon for ``contigs``, one residue that is no stop, one base."""
    if len(sequence.removesuffix("*")) < (3 if kind == "contigs" else 1):
        return "too_short"
    limited = kind != "contigs" and KINDS[kind].alphabet is Alphabet.NUCLEOTIDE
    return "too_long" if limited and len(sequence) > MAX_DNA_BP else "ok"


def _rows(manifest: Manifest, number: int, record: Record) -> Iterator[Row]:
    if manifest.kind == "contigs":
        for found in find_frames(record.sequence, manifest.chunk_length):
            identifier = frame_id(record.id, found.chunk, found.frame)
            texts = {"esm2": found.protein, "dnabert_s": found.nucleotides}
            yield Row(identifier, number, found.chunk, found.frame, texts)
    else:
        (model,) = KINDS[manifest.kind].models
        yield Row(record.id, number, 0, 0, {model: record.sequence})


def finish_sample(
    manifest: Manifest,
    directory: Path,
    models: dict[str, Prepared],
    places: dict[str, tuple[list[Path], np.ndarray]],
    failures: dict[str, dict[int, str]],
    precision: str,
    software: dict[str, str],
) -> dict[str, str]:
    """Complete the embeddings file of a sample whose vectors are all in blocks.

    Args:
        manifest: The job.
        directory: Its work directory, as :func:`read_sample` left it.
        models: Descriptions of the prepared models.
        places: For each model what :meth:`blocks.BlockStore.locate` gave for its distinct sequences.
        failures: For each model the distinct sequences that were given up, with the reason.
        precision: What the models computed in, for the file's attributes.
        software: Names and versions, for the file's attributes.

    Returns:
        The ids of the rows that were given up, with the reason; their records are marked ``failed``.
    """
    rows = {model: np.load(directory / f"{model}.rows.npy") for model in places}
    lost: dict[int, str] = {}
    for model, reasons in failures.items():
        for row in np.flatnonzero(np.isin(rows[model], list(reasons))).tolist():
            lost[row] = f"{model}: {reasons[int(rows[model][row])]}"
    failed = np.zeros(len(next(iter(rows.values()))), bool)
    failed[list(lost)] = True
    given_up: dict[str, str] = {}
    with EmbeddingsWriter.reopen(directory / EMBEDDINGS_FILE, software) as file:
        if lost:
            given_up = dict(zip(file.fail_rows(failed), [lost[row] for row in sorted(lost)], strict=True))
        for model, (paths, where) in places.items():
            vectors = gather(paths, where, rows[model][~failed])
            file.write_matrix(models[model], vectors, manifest.store_dtype, precision)
    for path in directory.iterdir():
        if path.name != EMBEDDINGS_FILE:
            path.unlink()
    return given_up


class DistinctWriter:
    """Collects the sequences of one model, row by row."""

    def __init__(self, directory: Path, model: str, tokenizer: Tokenizer) -> None:
        """Write to ``directory/MODEL.*``."""
        self._stem = directory / model
        self._tokenizer = tokenizer
        self._file = open(f"{self._stem}.tokens", "wb")  # noqa: SIM115 - closed in __exit__
        self._index: dict[bytes, int] = {}
        self._lengths: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []

    def add(self, texts: list[str]) -> None:
        """Append the sequences of some rows."""
        tokens, lengths = self._tokenizer(texts)
        ends = np.cumsum(lengths, dtype=np.int64)
        numbers = np.empty(len(texts), np.int64)
        fresh = np.zeros(len(texts), bool)
        for row, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
            known = len(self._index)
            digest = hashlib.sha256(tokens[end - length : end].tobytes()).digest()
            numbers[row] = self._index.setdefault(digest, known)
            fresh[row] = len(self._index) > known
        self._file.write(tokens[np.repeat(fresh, lengths)].tobytes())
        self._lengths.append(lengths[fresh])
        self._rows.append(numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is left; after an exception only close."""
        self._file.close()
        if kind is not None:
            return
        contents = {
            "lengths": np.concatenate([np.empty(0, np.int32), *self._lengths]),
            "rows": np.concatenate([np.empty(0, np.int64), *self._rows]),
            "digests": np.frombuffer(b"".join(self._index), np.uint8).reshape(-1, 32),
        }
        for name, array in contents.items():
            with open(f"{self._stem}.{name}.npy", "wb") as file:
                write_array(file, array)


class DistinctSequences:
    """The sequences that a :class:`SequenceWriter` left.

    Attributes:
        lengths: Tokens of each distinct sequence, int32 [n].
        digests: SHA-256 of the tokens of each, n times 32 bytes.
        rows: Distinct sequence of each row of the sample, int64 [N].
    """

    def __init__(self, directory: Path, model: str) -> None:
        """Map the files of ``directory/MODEL.*``."""
        stem = directory / model
        self.lengths: np.ndarray = np.load(f"{stem}.lengths.npy")
        self.rows: np.ndarray = np.load(f"{stem}.rows.npy", mmap_mode="r")
        self.digests = [digest.tobytes() for digest in np.load(f"{stem}.digests.npy")]
        self._ends = np.cumsum(self.lengths, dtype=np.int64)
        self._tokens = np.memmap(f"{stem}.tokens", np.int16, "r") if len(self.lengths) else np.empty(0, np.int16)

    def tokens(self, number: int) -> np.ndarray:
        """Tokens of one distinct sequence, special tokens included, int16 [its length]."""
        end = self._ends[number]
        return self._tokens[end - self.lengths[number] : end]
