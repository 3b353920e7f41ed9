"""How a reader, a CPU process of the pool, takes a sample from its file to parts that can be embedded.

:func:`read_sample` walks the file once: records, chunks, stop-free frames, tokens, into the directory of a part.
If the file holds more than one part, it is first read to its end without keeping anything, so that whatever is wrong in
it is said before anything is computed. Then every part that is read lies below ``parts/JOB/`` of the spool, and a
manifest of its own is handed in for it: any pool may embed it, as :func:`read_part` finds it. The pool that has the job
of the whole sample joins the parts in the end, see :mod:`.finish`.
"""

import hashlib
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError, ResourceError
from ..sequences import Alphabet
from ..sequences.fasta import Record, read_records
from ..sequences.ids import Ids, ManyIds
from ..spool.job import Manifest
from ..spool.spool import COUNTS_FILE, Spool
from .batches import make_recipe
from .distinct import DistinctSequences
from .exchange import Exchange
from .part import Models, PartWriter, in_blocks, is_full, read_counts

UNUSUAL = ("truncated", "windowed", "too_long", "too_short", "bad_letters")
"""Statuses of records that a warning counts; for kind ``contigs``, whose tables say the others, the last alone."""
QUESTIONED_SHARE = 0.95  # letters of a protein file that may be nucleotides; in UniProt A, C, G, T and N are 31%
ROWS_A_CHUNK = 2  # of contigs, to guess the room that they need; about 1 in the genomes of demo/
PART_BYTES_A_RECORD = 200  # of ids, digests and numbers in a part that waits


class Contents(NamedTuple):
    """What was found in a file.

    Attributes:
        counts: ``records``, ``rows``, records of each status.
        sha256: Of the file (hex).
        warnings: What is doubtful in it.
        fetched: By model, blocks that were made of what the shared cache has.
        parts: How many parts it was cut into; 0 for one that is in the work directory, ready to be embedded.
    """

    counts: dict[str, int]
    sha256: str
    warnings: list[str]
    fetched: dict[str, list[Path]]
    parts: int = 0


def read_sample(
    manifest: Manifest, directory: Path, models: Models, precision: str, cache: Exchange | None = None
) -> Contents:
    """Read a sample, and fetch what the shared cache has of it if it is one part.

    Args:
        manifest: The job.
        directory: Its work directory, which holds the one part in the end.
        models: The prepared models.
        precision: What the pool computes in, and with it all pools that embed parts.
        cache: The shared cache, if there is one.

    Raises:
        InputError: the file cannot be read, is not the one that was submitted, or is not for these models.
        ResourceError: the disk has no room for what would come of it.
    """
    _check_there(manifest)
    _check_models(manifest, models)
    digest, ids = hashlib.sha256(), Ids()
    alphabet = Alphabet.PROTEIN if manifest.kind == "proteins" else Alphabet.NUCLEOTIDE
    records = map(_strip, read_records(manifest.fasta, alphabet, digest, ids))
    blocks = in_blocks(records, lambda record: len(record.sequence))
    spool = Spool(directory.parents[2])
    counts: Counter[str] = Counter()
    number, more = 0, True
    block = next(blocks, None)
    if spool.has_parts(manifest, precision):  # of a pool that died: they were surveyed
        ids.stop()
    while more:
        described = replace(manifest, part=number, computed_in=precision)
        known = spool.part_directory(described)
        is_known = (known / COUNTS_FILE).exists()
        if is_known:
            block = _skip(block, blocks)
            counts.update(read_counts(known))
        else:
            with PartWriter(manifest, directory, models) as part:
                block = _fill(part, block, blocks)
            counts.update(part.counts)
        more = block is not None
        if more and not is_known and not number:
            _survey(manifest, alphabet, directory, models)
            ids.stop()
            spool.open_parts(manifest, precision)
        if more or number:
            spool.hand_in_part(described, directory)
            number += 1
    if digest.hexdigest() != manifest.input_sha256:
        raise InputError("was changed after the job was submitted; run again", manifest.fasta)
    warnings = _warnings(manifest, counts)
    if number:
        return Contents(_public(counts), digest.hexdigest(), warnings, {}, number)
    _check_room(manifest, directory, models)
    return Contents(_public(counts), digest.hexdigest(), warnings, _fetch(manifest, directory, models, cache))


def read_part(manifest: Manifest, directory: Path, models: Models, cache: Exchange | None = None) -> Contents:
    """Take up a part that has been read, by this pool or another; arguments and errors as for :func:`read_sample`."""
    _check_models(manifest, models)
    _check_room(manifest, directory, models)
    counts = _public(read_counts(directory))
    return Contents(counts, manifest.input_sha256, [], _fetch(manifest, directory, models, cache))


def _public(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts without that which only a warning is made of."""
    return {name: count for name, count in counts.items() if name != "nucleotides"}


def _fill(part: PartWriter, block: list[Record] | None, blocks: Iterator[list[Record]]) -> list[Record] | None:
    """Put this block and further ones into a part until it is full; the block with which the next part begins."""
    while block is not None and not part.is_full:
        part.add(block)
        block = next(blocks, None)
    return block


def _skip(block: list[Record] | None, blocks: Iterator[list[Record]]) -> list[Record] | None:
    """Pass over the blocks of a part that was read before; the block with which the next part begins."""
    records = letters = 0
    while block is not None and not is_full(records, letters):
        records += len(block)
        letters += sum(len(record.sequence) for record in block)
        block = next(blocks, None)
    return block


def _fetch(manifest: Manifest, directory: Path, models: Models, cache: Exchange | None) -> dict[str, list[Path]]:
    if cache is None:
        return {}
    recipes = {name: make_recipe(asked, manifest.store_dtype) for name, asked in manifest.models.items()}
    return {
        name: cache.fetch(recipes[name], prepared, DistinctSequences(directory, name))
        for name, (prepared, _) in models.items()
    }


def _strip(record: Record) -> Record:
    """A record without the stop at its end, which is no residue; nucleotides have none."""
    return record._replace(sequence=record.sequence.rstrip("*")) if record.sequence.endswith("*") else record


def _warnings(manifest: Manifest, counts: Counter[str]) -> list[str]:
    warnings = []
    looked_at = UNUSUAL[-1:] if manifest.kind == "contigs" else UNUSUAL
    unusual = {status: counts[status] for status in looked_at if counts[status]}
    if unusual:
        told = ", ".join(f"{count} {status}" for status, count in unusual.items())
        warnings.append(f"not all records were embedded as they are ({told}); the table of records says which")
    if counts["letters"] and counts["nucleotides"] >= QUESTIONED_SHARE * counts["letters"]:
        share = f"{counts['nucleotides'] / counts['letters']:.0%} of its letters are A, C, G, T, U or N"
        warnings.append(f"{share}: are these really proteins? for nucleotides set kind to dna or contigs")
    return warnings


def _survey(manifest: Manifest, alphabet: Alphabet, directory: Path, models: Models) -> None:
    """Read a large file to its end before anything of it is embedded.

    Raises:
        InputError: anything is wrong with it.
        ResourceError: the disk has no room for what would come of it.
    """
    ids = ManyIds(directory.with_name(f"{directory.name}.ids"))
    records = letters = 0
    with ids:
        for record in read_records(manifest.fasta, alphabet, ids=ids):
            records += 1
            letters += len(record.sequence)
        repeated = ids.repeated()
    if repeated:
        for _ in read_records(manifest.fasta, alphabet, ids=Ids(only=repeated)):
            pass  # until it names the record and both lines
    item = np.dtype(manifest.store_dtype).itemsize
    rows = ROWS_A_CHUNK * (records + letters // manifest.chunk_length) if manifest.kind == "contigs" else records
    needed = waiting = 0
    for name, asked in manifest.models.items():
        for output in asked.outputs:
            needed += models[name][0].width * item * (letters if output.pooling == "residues" else rows)
        waiting += 2 * letters + PART_BYTES_A_RECORD * rows
    free = shutil.disk_usage(directory).free
    if 2 * needed + waiting > free:
        raise ResourceError(
            f"{manifest.fasta}: {records} records give about {needed / 1e9:.1f} GB, and while they are computed need "
            f"{(2 * needed + waiting) / 1e9:.1f} GB in {directory.parents[2]}, with {free / 1e9:.1f} GB free; take "
            "a larger disk (pool.spool), or fewer outputs"
        )


def _check_models(manifest: Manifest, models: Models) -> None:
    """Refuse what a model cannot do; a client that knows the models never asks for it."""
    for name, asked in manifest.models.items():
        prepared = models[name][0]
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


def _check_room(manifest: Manifest, directory: Path, models: Models) -> None:
    """Refuse residues for which the disk has no room: once in blocks, once in the embeddings file."""
    item = np.dtype(manifest.store_dtype).itemsize
    needed = 0
    for name, asked in manifest.models.items():
        layers = sum(output.pooling == "residues" for output in asked.outputs)
        if layers:
            known = DistinctSequences(directory, name)
            distinct = int(known.lengths.sum())
            all_rows = int(known.lengths[known.rows].sum())
            needed += layers * models[name][0].width * item * (distinct + all_rows)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ResourceError(
            f"{manifest.fasta}: its residues need {needed / 1e9:.1f} GB in {directory.parents[2]}, of which "
            f"{free / 1e9:.1f} GB are free; ask for fewer layers, or take a larger disk (pool.spool)"
        )


def _check_there(manifest: Manifest) -> None:
    """Refuse a file that cannot be opened, saying by whom."""
    try:  # opened, not looked at: NFS would answer from memory, which may be of the file before it was mended
        os.close(os.open(manifest.fasta, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        where = f"(by the pool on {socket.gethostname()})"
        raise InputError(f"cannot be read: {error.strerror} {where}", manifest.fasta) from None
