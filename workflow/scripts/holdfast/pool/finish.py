"""The end of a sample: from blocks to its embeddings file, or from its parts, or from a sample of the same content.

:func:`finish_sample` fills the rows of one part with the vectors in blocks, and writes beside it what became of every
record. For a sample of several parts :func:`join_parts` puts one behind the other.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import atomic_text
from ..models.registry import Prepared
from ..results.writer import EmbeddingsWriter, copy_embeddings, join_embeddings
from ..spool.job import Manifest, Receipt, read_receipt
from .batches import make_recipe
from .blocks import Block, gather, gather_residues
from .distinct import DistinctSequences
from .exchange import Exchange
from .fates import Fate, judge
from .ledger import ORIGINS
from .part import PROBLEMS_FILE, ROWS_FILE

EMBEDDINGS_FILE = "embeddings.h5"
RECORDS_FILE = "records.tsv"
RECORD_COLUMNS = ("record", "length", "residues_used", "status", "reason")


class Finished(NamedTuple):
    """How a sample ended.

    Attributes:
        given_up: By id, the rows that were given up, with the reason.
        counts: Records by status, and ``cached``, sequences whose vectors came from the shared cache.
        origins: Where those came from, :data:`ORIGINS` at most.
    """

    given_up: dict[str, str]
    counts: dict[str, int]
    origins: list[dict[str, str]]


def finish_sample(
    manifest: Manifest,
    directory: Path,
    models: dict[str, Prepared],
    places: dict[str, tuple[list[Path], np.ndarray]],
    failures: dict[str, dict[int, tuple[str, str]]],
    precision: str,
    software: dict[str, str],
    cache: Exchange | None = None,
) -> Finished:
    """Complete the embeddings file of a sample whose vectors are all in blocks.

    Args:
        manifest: The job.
        directory: Its work directory, or that of the part, as :class:`.part.PartWriter` left it; it stays so but for
            what is written, so that this can be done again.
        models: Descriptions of the prepared models.
        places: For each model what :meth:`blocks.BlockStore.locate` gave for its distinct sequences.
        failures: For each model the distinct sequences that were given up, with status and reason.
        precision: What the models computed in, for the file's attributes.
        software: Names and versions, for the file's attributes.
        cache: The shared cache, if there is one, which gets what was computed.
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
    with EmbeddingsWriter.reopen(path, software, directory / ROWS_FILE) as file:
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
        _write_records(manifest, file, path.with_name(RECORDS_FILE), fates)
    origins: dict[str, dict[str, str]] = {}
    statuses["cached"] = 0
    for name, (paths, where) in places.items():
        found = [Block(path).origins for path in paths]
        origins |= {repr(origin): origin for each in found for origin in each}
        is_fetched = np.array([bool(each) for each in found] + [False])[where[:, 0]]  # the last one for -1, given up
        statuses["cached"] += int(np.count_nonzero(is_fetched))
        if cache:
            recipe = make_recipe(manifest.models[name], manifest.store_dtype)
            computed = (where[:, 0] >= 0) & ~is_fetched
            cache.keep(recipe, models[name], sequences[name], paths, where, computed, manifest.run)
    return Finished(given_up, statuses, list(origins.values())[:ORIGINS])


def _write_records(manifest: Manifest, file: EmbeddingsWriter, output: Path, fates: dict[int, Fate]) -> None:
    """Write what became of every record of the input, a line each.

    Args:
        manifest: The job.
        file: Its embeddings file.
        output: The table, beside that.
        fates: By index, of records that were given up.
    """
    number = 0
    with (
        atomic_text(output) as table,
        open(output.with_name(PROBLEMS_FILE), encoding="utf-8") as problems,
    ):
        table.write("\t".join(RECORD_COLUMNS) + "\n")
        for records in file.record_blocks():
            told = (records.ids, records.length.tolist(), records.residues_used.tolist(), records.status)
            for name, length, used, status in zip(*told, strict=True):
                problem = next(problems).rstrip("\n") if status == "bad_letters" else ""
                fate = fates.get(number) or judge(manifest, length, problem)
                reason = "no chunk has a frame without a stop" if status == "no_stop_free_frame" else fate.reason
                table.write("\t".join((name, str(length), str(used), status, reason)) + "\n")
                number += 1


def copy_sample(manifest: Manifest, directory: Path, twin: Path) -> Receipt | None:
    """Make the embeddings of a sample from those of another with the same content.

    Args:
        manifest: The job.
        directory: Its work directory.
        twin: Where the finished job of the other is, see :meth:`.Spool.twin`.

    Returns:
        The receipt of that one; None if it has been removed meanwhile.
    """
    outcome = read_receipt(twin / "receipt.json")
    try:
        copy_embeddings(twin / EMBEDDINGS_FILE, directory / EMBEDDINGS_FILE, manifest.sample, manifest.job)
        shutil.copyfile(twin / RECORDS_FILE, directory / RECORDS_FILE)
    except FileNotFoundError:
        return None
    return outcome


def join_parts(directory: Path, parts: list[Path], software: dict[str, str]) -> None:
    """Put the parts of a sample one behind the other, in its work directory.

    Args:
        directory: Its work directory.
        parts: Directories of its finished parts, in order.
        software: Names and versions, for the file's attributes.
    """
    files = [part / EMBEDDINGS_FILE for part in parts]
    join_embeddings(files, directory / EMBEDDINGS_FILE, software)
    with atomic_text(directory / RECORDS_FILE) as table:
        for number, part in enumerate(parts):
            with open(part / RECORDS_FILE, encoding="utf-8", errors="surrogateescape", newline="\n") as rows:
                if number:
                    rows.readline()
                shutil.copyfileobj(rows, table)
