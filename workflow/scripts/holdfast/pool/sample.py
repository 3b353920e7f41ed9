"""One sample's way from its FASTA file to rows and tokens, and from blocks to its embeddings file.

Both are the work of a reader, a CPU process of the pool. :func:`read_sample` walks the file once: record, chunks,
stop-free frames, tokens. Rows go to the sample's embeddings file, which is not complete yet. The tokens of distinct
sequences go to files beside it: texts of equal tokens are one sequence. The supervisor maps these files and sends the
tokens of a batch to a worker. When the blocks are there, :func:`finish_sample` completes the embeddings file, and
writes beside it what became of every record.
"""

import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from ..errors import InputError, ResourceError
from ..files import atomic_text
from ..models.registry import KINDS, Prepared, load_tokenizer
from ..results.embeddings import EmbeddingsFile
from ..results.writer import EmbeddingsWriter
from ..sequences import Alphabet
from ..sequences.fasta import Record, read_records
from ..sequences.frames import find_frames, frame_id
from ..spool.job import Manifest
from .blocks import gather, gather_residues
from .distinct import DistinctSequences, DistinctWriter

EMBEDDINGS_FILE = "embeddings.h5"
RECORDS_FILE = "records.tsv"
RECORD_COLUMNS = ("record", "length", "residues_used", "status", "reason")
UNUSUAL = ("truncated", "windowed", "too_long", "too_short")
"""Statuses of records that a warning counts."""
BLOCK_ROWS = 4096
BLOCK_LETTERS = 16_000_000
NUCLEOTIDES = b"ACGTUNacgtun"
QUESTIONED_SHARE = 0.95  # letters of a protein file that may be nucleotides; in UniProt A, C, G, T and N are 31%

Item = TypeVar("Item")


class Contents(NamedTuple):
    """What was found in a file: counts (``records``, ``rows`` and one a status), its SHA-256 (hex), and warnings."""

    counts: dict[str, int]
    sha256: str
    warnings: list[str]


class Fate(NamedTuple):
    """What becomes of a record before anything is embedded: its status, the letters that are used, and why."""

    status: str
    used: int
    reason: str


class Row(NamedTuple):
    """One row of the embeddings file before it is embedded: its place, and its text in each alphabet."""

    id: str
    record: int
    chunk: int
    frame: int
    texts: dict[str, str]


def read_sample(manifest: Manifest, directory: Path, models: dict[str, tuple[Prepared, Path]]) -> Contents:
    """Read a sample into ``directory``.

    Args:
        manifest: The job.
        directory: Its work directory.
        models: The prepared models by the job's names, and where they are.

    Raises:
        InputError: the file cannot be read, is not the one that was submitted, or is not for these models.
        ResourceError: the disk has no room for what would come of it.
    """
    _check_unchanged(manifest)
    _check_models(manifest, {name: prepared for name, (prepared, _) in models.items()})
    digest = hashlib.sha256()
    counts = {"records": 0, "rows": 0}
    letters = nucleotides = 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(DistinctWriter(directory, name, load_tokenizer(prepared, place)))
            for name, (prepared, place) in models.items()
        }
        path = directory / EMBEDDINGS_FILE
        cutting = (manifest.chunk_length, manifest.genetic_code)
        created = EmbeddingsWriter.create(path, manifest.sample, manifest.kind, *cutting, job=manifest.job)
        file = stack.enter_context(created)
        first = KINDS[manifest.kind][0]
        is_protein = manifest.kind == "proteins"
        alphabet = Alphabet.PROTEIN if is_protein else Alphabet.NUCLEOTIDE
        numbered = enumerate(read_records(manifest.fasta, alphabet, digest))
        for block in _blocks(numbered, lambda entry: len(entry[1].sequence)):
            records = [(number, _strip(record) if is_protein else record) for number, record in block]
            fates = [judge(manifest, len(record.sequence)) for _, record in records]
            lengths = [len(record.sequence) for _, record in records]
            statuses = [fate.status for fate in fates]
            file.append_records([record.id for _, record in records], lengths, [fate.used for fate in fates], statuses)
            counts["records"] += len(records)
            if is_protein:
                letters += sum(lengths)
                nucleotides += sum(_nucleotides(record.sequence) for _, record in records)
            usable = (
                (number, record, fate) for (number, record), fate in zip(records, fates, strict=True) if fate.used
            )
            found = (row for number, record, _ in usable for row in _rows(manifest, number, record))
            for rows in _blocks(found, lambda row: sum(map(len, row.texts.values()))):
                embedded = [row.texts[first.name][: _shortest(manifest)] for row in rows]
                file.append_rows(
                    [row.id for row in rows],
                    [len(text) for text in embedded],
                    [hashlib.sha256(text.encode()).digest() for text in embedded],
                    record=[row.record for row in rows],
                    chunk=[row.chunk for row in rows],
                    frame=[row.frame for row in rows],
                )
                for name, writer in writers.items():
                    prepared, limit = models[name][0], _cut(manifest, name)
                    writer.add([row.texts[prepared.alphabet.upper()][:limit] for row in rows])
                counts["rows"] += len(rows)
        if manifest.kind == "contigs":
            file.mark_empty("no_stop_free_frame")
        counts |= file.count_statuses()
        file.name_input(digest.hexdigest())
    _check_unchanged(manifest)
    _check_room(manifest, directory, {name: prepared for name, (prepared, _) in models.items()})
    warnings = []
    unusual = {status: counts[status] for status in UNUSUAL if counts[status] and manifest.kind != "contigs"}
    if unusual:
        told = ", ".join(f"{count} {status}" for status, count in unusual.items())
        warnings.append(f"not all records were embedded as they are ({told}); the table of records says which")
    if letters and nucleotides >= QUESTIONED_SHARE * letters:
        share = f"{nucleotides / letters:.0%} of its letters are A, C, G, T, U or N"
        warnings.append(f"{share}: are these really proteins? for nucleotides set kind to dna or contigs")
    return Contents(counts, digest.hexdigest(), warnings)


def _strip(record: Record) -> Record:
    """A protein without the stop at its end, which is no residue."""
    return record._replace(sequence=record.sequence.rstrip("*"))


def _nucleotides(sequence: str) -> int:
    """Letters of a sequence that may be nucleotides."""
    return len(sequence) - len(sequence.encode("ascii", "replace").translate(None, NUCLEOTIDES))


def judge(manifest: Manifest, length: int) -> Fate:
    """What becomes of a record of so many letters: a codon is needed for ``contigs``, one letter otherwise.

    Where several models are asked, a record that one of them refuses is left out for all, so that rows stay equal.
    """
    if length < (3 if manifest.kind == "contigs" else 1):
        return Fate("too_short", 0, f"{length} letters")
    if manifest.kind == "contigs":
        return Fate("ok", length, "")
    longer = [
        (name, asked) for name, asked in manifest.models.items() if asked.max_length and length > asked.max_length
    ]
    reasons = {
        "refuse": ("too_long", "{name} takes {limit} at most (long: refuse)"),
        "truncate": ("truncated", "{name} saw the first {limit} (long: truncate)"),
        "window": ("windowed", "{name} saw overlapping windows of {limit} (long: window)"),
    }
    for policy, (status, reason) in reasons.items():
        if concerned := [(name, asked.max_length) for name, asked in longer if asked.long == policy]:
            used = {"refuse": 0, "truncate": min(limit for _, limit in concerned), "window": length}[policy]
            return Fate(status, used, "; ".join(reason.format(name=name, limit=limit) for name, limit in concerned))
    return Fate("ok", length, "")


def _cut(manifest: Manifest, name: str) -> int | None:
    """Letters of a sequence that a model sees at most; None for all."""
    asked = manifest.models[name]
    return asked.max_length if asked.long == "truncate" else None


def _shortest(manifest: Manifest) -> int | None:
    """Letters of a sequence that every model sees at most."""
    return min((limit for name in manifest.models if (limit := _cut(manifest, name)) is not None), default=None)


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


def _check_models(manifest: Manifest, models: dict[str, Prepared]) -> None:
    """Refuse what a model cannot do; a client that knows the models never asks for it."""
    for name, asked in manifest.models.items():
        prepared = models[name]
        if not prepared.fits(manifest.kind):
            raise InputError(f"is of kind {manifest.kind}, which {name} does not embed", manifest.fasta)
        if max(output.layer for output in asked.outputs) > prepared.layers:
            raise InputError(f"asks for a layer beyond those of {name}, {prepared.layers}", manifest.fasta)
        frame = manifest.chunk_length // (3 if prepared.is_protein else 1)
        if manifest.kind == "contigs" and asked.max_length and frame > asked.max_length:
            raise InputError(
                f"chunk_length {manifest.chunk_length} gives frames of up to {frame} letters, more than {name} takes, "
                f"{asked.max_length}; set a smaller chunk_length",
                manifest.fasta,
            )


def _check_room(manifest: Manifest, directory: Path, models: dict[str, Prepared]) -> None:
    """Refuse residues for which the disk has no room: once in blocks, once in the embeddings file."""
    item = np.dtype(manifest.store_dtype).itemsize
    needed = 0
    for name, asked in manifest.models.items():
        layers = sum(output.pooling == "residues" for output in asked.outputs)
        if layers:
            known = DistinctSequences(directory, name)
            distinct = int(known.lengths.sum())
            all_rows = int(known.lengths[known.rows].sum())
            needed += layers * models[name].width * item * (distinct + all_rows)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ResourceError(
            f"{manifest.fasta}: its residues need {needed / 1e9:.1f} GB in {directory.parents[2]}, of which "
            f"{free / 1e9:.1f} GB are free; ask for fewer layers, or take a larger disk (pool.spool)"
        )


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


def _rows(manifest: Manifest, number: int, record: Record) -> Iterator[Row]:
    if manifest.kind == "contigs":
        for found in find_frames(record.sequence, manifest.chunk_length, manifest.genetic_code):
            identifier = frame_id(record.id, found.chunk, found.frame)
            texts = {Alphabet.PROTEIN.name: found.protein, Alphabet.NUCLEOTIDE.name: found.nucleotides}
            yield Row(identifier, number, found.chunk, found.frame, texts)
    else:
        (alphabet,) = KINDS[manifest.kind]
        yield Row(record.id, number, 0, 0, {alphabet.name: record.sequence})


def finish_sample(
    manifest: Manifest,
    directory: Path,
    models: dict[str, Prepared],
    places: dict[str, tuple[list[Path], np.ndarray]],
    failures: dict[str, dict[int, tuple[str, str]]],
    precision: str,
    software: dict[str, str],
) -> tuple[dict[str, str], dict[str, int]]:
    """Complete the embeddings file of a sample whose vectors are all in blocks.

    Args:
        manifest: The job.
        directory: Its work directory, as :func:`read_sample` left it.
        models: Descriptions of the prepared models.
        places: For each model what :meth:`blocks.BlockStore.locate` gave for its distinct sequences.
        failures: For each model the distinct sequences that were given up, with status and reason.
        precision: What the models computed in, for the file's attributes.
        software: Names and versions, for the file's attributes.

    Returns:
        The ids of the rows that were given up, with the reason, and how many records have which status.
    """
    sequences = {name: DistinctSequences(directory, name) for name in places}
    lost: dict[int, tuple[str, str]] = {}
    for name, reasons in failures.items():
        rows = sequences[name].rows
        for row in np.flatnonzero(np.isin(rows, list(reasons))).tolist():
            status, reason = reasons[int(rows[row])]
            known_status = "failed" if manifest.kind == "contigs" else status  # whose tables know no other
            lost[row] = known_status, f"{name}: {reason}"
    kept = np.ones(len(next(iter(sequences.values())).rows), bool)
    kept[list(lost)] = False
    given_up: dict[str, str] = {}
    fates: dict[int, Fate] = {}
    path = directory / EMBEDDINGS_FILE
    with EmbeddingsWriter.reopen(path, software) as file:
        if lost:
            ordered = [lost[row] for row in sorted(lost)]
            taken = file.fail_rows(~kept, [status for status, _ in ordered])
            given_up = {name: reason for (name, _), (_, reason) in zip(taken, ordered, strict=True)}
            fates = {
                record: Fate(status, 0, reason) for (_, record), (status, reason) in zip(taken, ordered, strict=True)
            }
        statuses = file.count_statuses()
        for name, (paths, where) in places.items():
            rows = sequences[name].rows[kept]
            for output in manifest.models[name].outputs:
                described = (name, models[name], output, manifest.store_dtype, precision)
                if output.pooling == "residues":
                    counts = sequences[name].lengths[rows].astype(np.int64) - models[name].around
                    file.write_residues(*described, counts, gather_residues(paths, where, rows, output.name))
                else:
                    file.write_matrix(*described, gather(paths, where, rows, output.name))
    _write_records(manifest, path, fates)
    for entry in directory.iterdir():
        if entry.name not in (EMBEDDINGS_FILE, RECORDS_FILE):
            entry.unlink()
    return given_up, statuses


def _write_records(manifest: Manifest, embeddings: Path, fates: dict[int, Fate]) -> None:
    """Write what became of every record of the input, a line each.

    Args:
        manifest: The job.
        embeddings: Its complete embeddings file; the table goes beside it.
        fates: By index, of records that were given up.
    """
    number = 0
    with EmbeddingsFile(embeddings) as reader, atomic_text(embeddings.with_name(RECORDS_FILE)) as table:
        table.write("\t".join(RECORD_COLUMNS) + "\n")
        for records in reader.record_blocks():
            told = (records.ids, records.length.tolist(), records.residues_used.tolist(), records.status)
            for name, length, used, status in zip(*told, strict=True):
                fate = fates.get(number) or judge(manifest, length)
                reason = "no chunk has a frame without a stop" if status == "no_stop_free_frame" else fate.reason
                table.write("\t".join((name, str(length), str(used), status, reason)) + "\n")
                number += 1
