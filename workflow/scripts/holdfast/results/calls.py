"""Calls: from the probabilities of a sample's frames to its tables.

:func:`classify_contigs` takes a sample through in one process. What the classifier gives is written to ``frames.tsv``,
block by block, and its numbers are kept; the frames vote (:mod:`.votes`), contigs are decided (:mod:`.decisions`) and
regions found (:mod:`.regions`); then ``chunks.tsv``, ``contigs.tsv`` and ``regions.tsv`` are written, and VirNucPro's
own two files. Only arrays of numbers are held.

A frame is a virus when ``p_virus > p_non_viral``; a tie is non-viral (VirNucPro). The tables are as :mod:`.contigs`
says; coordinates are 1-based, the last base included, where a column says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import atomic_text
from ..sequences.frames import FRAMES, bounds_of_records
from .calibration import Calibration, read_calibration
from .classifier import CLASSES, classify, load_classifier
from .contigs import NOT_AVAILABLE, line, number, write_contigs
from .decisions import NOT_CALLED, REASONS, decide
from .embeddings import EmbeddingsFile, Rows
from .presets import CallRules
from .regions import find_regions, write_regions
from .votes import Votes, score_groups, vote

FRAME_COLUMNS = ("frame_id", "contig", "chunk", "frame", "prediction", "p_non_viral", "p_virus", "genetic_code")
CHUNK_COLUMNS = (
    *("chunk_id", "contig", "start_1based", "end_1based", "frames", "status", "is_virus"),
    *("max_p_virus", "max_p_non_viral", "genetic_code"),
)
VIRNUCPRO_FRAMES = "prediction_results.txt"
VIRNUCPRO_CHUNKS = "prediction_results_highestscore.csv"
NON_VIRAL, VIRUS = CLASSES


def classify_contigs(
    embeddings: str | Path,
    classifier_path: str | Path,
    rules: CallRules,
    directory: Path,
    method: Mapping[str, str | None] | None = None,
    virnucpro: bool = False,
    calibration_path: Path | None = None,
) -> None:
    """Classify the frames of one sample, and call its chunks and contigs.

    Args:
        embeddings: Its embeddings, of kind ``contigs``.
        classifier_path: The classifier, .safetensors.
        rules: By which contigs are called.
        directory: Where the tables go, each by the name of its kind, such as ``frames.tsv``.
        method: Names of the models by role; None where there is only one.
        virnucpro: Also write VirNucPro's own two files, into ``virnucpro`` there.
        calibration_path: What calibrates the classifier, ``calibration.json``; None where there is none.

    Raises:
        ConfigError: rules that need a calibration, without one, or with one that was made for another margin.
        InputError: embeddings that cannot be read, of another kind, or without a model that the classifier needs.
        WeightsError: a file that is no classifier, or one that does not fit the embeddings; a calibration of another.
    """
    classifier = load_classifier(classifier_path)
    calibration = None
    if calibration_path is not None:
        calibration = read_calibration(calibration_path, Path(classifier_path), rules.margin)
    with EmbeddingsFile(embeddings) as reader:
        call_contigs(reader, classify(reader, classifier, method or {}), rules, directory, virnucpro, calibration)


def call_contigs(
    reader: EmbeddingsFile,
    classified: Iterable[tuple[Rows, np.ndarray]],
    rules: CallRules,
    directory: Path,
    virnucpro: bool = False,
    calibration: Calibration | None = None,
) -> None:
    """Call the chunks and contigs of one sample, whose frames are classified as they are asked for.

    Args:
        reader: Its embeddings, of kind ``contigs``.
        classified: All its rows, in order, and their probabilities, float32 [k, 2]: non-viral, virus.
        rules: By which contigs are called.
        directory: As for :func:`classify_contigs`, and so is ``virnucpro``.
        virnucpro: For two files.
        calibration: Of the classifier; None where there is none.

    Raises:
        ConfigError: rules that need a calibration, without one.
        InputError: embeddings that cannot be read.
    """
    places, probabilities = _write_frames(directory / "frames.tsv", reader, classified)
    length_bp, status = _measure_records(reader)
    contig, start_bp, end_bp = bounds_of_records(length_bp, reader.chunk_length_bp)
    chunks = np.bincount(contig, minlength=len(length_bp))
    votes = vote(_chunk_of_rows(reader, places, chunks), len(contig), probabilities)
    code = reader.genetic_code
    _write_chunks(directory / "chunks.tsv", _name_chunks(reader, chunks), start_bp, end_bp, votes, code)
    evidence, score = score_groups(contig, reader.record_count, votes, rules.margin)
    p_virus = None if calibration is None else calibration.apply(score, rules.virus_share)
    decisions = decide(length_bp, status, evidence, score, p_virus, rules)
    write_contigs(directory / "contigs.tsv", reader.record_blocks(), chunks, evidence, score, decisions, rules, code)
    called = decisions.decision != NOT_CALLED
    regions = find_regions(contig, start_bp, end_bp, votes, called, length_bp, rules)
    write_regions(directory / "regions.tsv", directory / "regions.bed", reader.record_blocks(), regions, code)
    if virnucpro:
        (directory / "virnucpro").mkdir(exist_ok=True)
        _write_virnucpro(directory / "virnucpro", reader, _name_chunks(reader, chunks), probabilities, votes)


def _measure_records(reader: EmbeddingsFile) -> tuple[np.ndarray, np.ndarray]:
    """Length in bp of each record, int64 [M], and why it cannot be called, an index into REASONS, uint8 [M]."""
    lengths_bp, statuses = [np.empty(0, np.int64)], [np.empty(0, np.uint8)]
    for records in reader.record_blocks():
        lengths_bp.append(records.length)
        known = (REASONS.index(status) if status in REASONS else 0 for status in records.status)
        statuses.append(np.fromiter(known, np.uint8, len(records.ids)))
    return np.concatenate(lengths_bp), np.concatenate(statuses)


def _chunk_of_rows(reader: EmbeddingsFile, places: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Index of each row's chunk among all chunks of the sample, int64 [N].

    Args:
        reader: For errors.
        places: Record and chunk of each row, int32 [N, 2].
        chunks: Of each record, int64 [M].
    """
    record, chunk = places.T
    if ((chunk < 1) | (chunk > chunks[record])).any():
        raise InputError("holds a frame of a chunk that its record does not have; compute it again", reader.path)
    return (np.cumsum(chunks) - chunks)[record] + chunk - 1


def _name_chunks(reader: EmbeddingsFile, chunks: np.ndarray) -> Iterator[tuple[str, int, str]]:
    """For every chunk of every record the record's id, the chunk's number from 1, and the record's status."""
    counts = iter(chunks.tolist())
    for records in reader.record_blocks():
        for name, status in zip(records.ids, records.status, strict=True):
            for place in range(1, next(counts) + 1):
                yield name, place, status


def _uncalled(record_status: str) -> str:
    """Status of a chunk that is not called: the record's, unless only this chunk has no frame."""
    return "no_stop_free_frame" if record_status == "ok" else record_status


def _write_frames(
    path: str | Path, reader: EmbeddingsFile, classified: Iterable[tuple[Rows, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Write ``frames.tsv``; record and chunk of each frame, int32 [N, 2], and its probabilities, float32 [N, 2]."""
    places = np.empty((reader.row_count, 2), np.int32)
    probabilities = np.empty((reader.row_count, 2), np.float32)
    start, code = 0, str(reader.genetic_code)
    with atomic_text(path) as table:
        table.write(line(*FRAME_COLUMNS))
        for rows, found in classified:
            stop = start + len(rows.ids)
            places[start:stop] = np.stack([rows.record, rows.chunk], axis=1)
            probabilities[start:stop] = found
            start = stop
            first = int(rows.record.min())
            contigs = reader.records(first, int(rows.record.max()) + 1).ids
            numbers = ((rows.record - first).tolist(), rows.chunk.tolist(), rows.frame.tolist(), found.tolist())
            for name, record, chunk, frame, (p_non_viral, p_virus) in zip(rows.ids, *numbers, strict=True):
                prediction = VIRUS if p_virus > p_non_viral else NON_VIRAL
                place = (name, contigs[record], str(chunk), FRAMES[frame])
                table.write(line(*place, prediction, number(p_non_viral), number(p_virus), code))
    return places, probabilities


def _write_chunks(
    path: Path,
    named: Iterable[tuple[str, int, str]],
    start_bp: np.ndarray,
    end_bp: np.ndarray,
    votes: Votes,
    genetic_code: int,
) -> None:
    results = zip(start_bp, end_bp, votes.frames, votes.is_virus, votes.max_p_virus, votes.max_p_non_viral, strict=True)
    with atomic_text(path) as table:
        table.write(line(*CHUNK_COLUMNS))
        for (name, place, status), (start, end, frames, is_virus, *maxima) in zip(named, results, strict=True):
            verdict = (str(is_virus), *map(number, maxima)) if frames else (NOT_AVAILABLE,) * 3
            where = (f"{name}_chunk_{place}", name, str(start + 1), str(end), str(frames))
            table.write(line(*where, "called" if frames else _uncalled(status), *verdict, str(genetic_code)))


def _write_virnucpro(
    directory: Path,
    reader: EmbeddingsFile,
    named: Iterable[tuple[str, int, str]],
    probabilities: np.ndarray,
    votes: Votes,
) -> None:
    """Write VirNucPro's two files, value-equal.

    Frames come in their order, called chunks sorted by id, which is how a pandas groupby leaves them; sorting is
    the one step here that holds an object for each.
    """
    with atomic_text(directory / VIRNUCPRO_FRAMES) as table:
        table.write(line("Sequence_ID", "Prediction", "score1", "score2"))
        names = (name for rows in reader.blocks() for name in rows.ids)
        for name, (p_non_viral, p_virus) in zip(names, probabilities, strict=True):
            prediction = "virus" if p_virus > p_non_viral else "others"
            table.write(line(name, prediction, number(p_non_viral), number(p_virus)))
    called = (
        (f"{name}_chunk_{place}", is_virus)
        for (name, place, _), frames, is_virus in zip(named, votes.frames, votes.is_virus, strict=True)
        if frames
    )
    with atomic_text(directory / VIRNUCPRO_CHUNKS) as table:
        table.write(line("Modified_ID", "Is_Virus"))
        table.writelines(line(name, str(is_virus)) for name, is_virus in sorted(called))
