"""Calls: from the probabilities of frames to chunks, from chunks to contigs, and the tables that say so.

:func:`classify_contigs` takes a sample through in one process. What the classifier gives is written to ``frames.tsv``,
block by block, and its numbers are kept; then the frames vote, and ``chunks.tsv`` and ``contigs.tsv`` (and VirNucPro's
own two files) get a row for every chunk and for every record of the input, called or not. Only arrays of numbers are
held. :func:`read_contigs` reads the last table back.

The rules:

- A frame is a virus when ``p_virus > p_non_viral``; a tie is non-viral (VirNucPro).
- A chunk is a virus when the largest ``p_virus`` of its frames is at least the largest ``p_non_viral`` (VirNucPro).
  Its score is ``max_p_virus / (max_p_virus + max_p_non_viral)``: at least 0.5 exactly when it is a virus, and
  ``p_virus`` itself where there is one frame.
- A contig's score is the mean of its called chunks' scores; it is a virus when that reaches the threshold.
  VirNucPro stops at the chunks, so this rule is ours.

The tables are tab-separated UTF-8 without quoting: an id is one word of a FASTA header, so it holds neither tab
nor newline, and any quote in it is part of it. ``NA`` stands where there is nothing to say. Probabilities have nine
digits, which give back the same float32. Coordinates are 0-based and half-open, as in BED.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ConfigError, InputError
from ..files import atomic_text
from ..sequences.frames import FRAMES, chunk_bounds
from .classifier import CLASSES, classify, load_classifier
from .embeddings import EmbeddingsFile, Rows

FRAME_COLUMNS = ("frame_id", "contig", "chunk", "frame", "prediction", "p_non_viral", "p_virus")
CHUNK_COLUMNS = ("chunk_id", "contig", "start", "end", "frames", "status", "is_virus", "max_p_virus", "max_p_non_viral")
CONTIG_COLUMNS = ("contig", "length", "chunks", "chunks_with_frames", "status", "is_virus", "score")
CONTIG_STATUSES = ("called", "no_stop_free_frame", "too_short", "bad_letters", "failed")
VIRNUCPRO_FRAMES = "prediction_results.txt"
VIRNUCPRO_CHUNKS = "prediction_results_highestscore.csv"
NOT_AVAILABLE = "NA"
THRESHOLD = 0.5
NON_VIRAL, VIRUS = CLASSES


@dataclass(frozen=True)
class Votes:
    """What the frames of each chunk say; C chunks.

    Attributes:
        frames: Stop-free frames, int64 [C].
        max_p_non_viral: Largest probability of being non-viral, float32 [C]; 0 without frames, as below.
        max_p_virus: Largest probability of a virus, float32 [C].
    """

    frames: np.ndarray
    max_p_non_viral: np.ndarray
    max_p_virus: np.ndarray

    @property
    def is_virus(self) -> np.ndarray:
        """The vote, bool [C]; without meaning where there are no frames."""
        return self.max_p_virus >= self.max_p_non_viral

    @property
    def score(self) -> np.ndarray:
        """Score of each chunk, float64 [C]; 0 without frames."""
        total = self.max_p_virus.astype(np.float64) + self.max_p_non_viral
        return np.divide(self.max_p_virus, total, out=np.zeros(len(total)), where=total > 0)


@dataclass(frozen=True, slots=True)
class ContigCall:
    """A line of ``contigs.tsv``.

    Attributes:
        contig: Id of the record.
        length_bp: Its length.
        chunks: Its chunks.
        chunks_with_frames: Those with a stop-free frame.
        status: One of :data:`CONTIG_STATUSES`.
        is_virus: The call; None where there is none, as below.
        score: From 0 to 1.
    """

    contig: str
    length_bp: int
    chunks: int
    chunks_with_frames: int
    status: str
    is_virus: bool | None
    score: float | None

    @property
    def outcome(self) -> str:
        """The call in a word, ``virus`` or ``non-viral``; the status where there is none."""
        return self.status if self.is_virus is None else VIRUS if self.is_virus else NON_VIRAL


def vote(chunk: np.ndarray, chunks: int, probabilities: np.ndarray) -> Votes:
    """Let the frames of each chunk vote.

    Args:
        chunk: Index of each frame's chunk, int64 [N], in any order.
        chunks: C.
        probabilities: float32 [N, 2]: non-viral, virus.
    """
    largest = np.zeros((2, chunks), np.float32)
    for row, column in zip(largest, probabilities.T, strict=True):
        np.maximum.at(row, chunk, column)
    return Votes(np.bincount(chunk, minlength=chunks), *largest)


def score_contigs(contig: np.ndarray, contigs: int, votes: Votes) -> tuple[np.ndarray, np.ndarray]:
    """Score contigs.

    Args:
        contig: Index of each chunk's contig, int64 [C].
        contigs: M.
        votes: Of the chunks.

    Returns:
        Chunks with frames, int64 [M], and mean score of those, float64 [M], NaN where there are none.
    """
    called = votes.frames > 0
    count = np.bincount(contig[called], minlength=contigs)
    total = np.bincount(contig[called], weights=votes.score[called], minlength=contigs)
    return count, np.divide(total, count, out=np.full(contigs, np.nan), where=count > 0)


def classify_contigs(
    embeddings: str | Path,
    classifier_path: str | Path,
    threshold: float,
    frames: str | Path,
    chunks: str | Path,
    contigs: str | Path,
    virnucpro_directory: str | Path | None = None,
    method: Mapping[str, str | None] | None = None,
) -> None:
    """Classify the frames of one sample, and call its chunks and contigs.

    Args:
        embeddings: Its embeddings, of kind ``contigs``.
        classifier_path: The classifier, .safetensors.
        threshold: Mean score from which a contig is a virus.
        frames: Where ``frames.tsv`` goes.
        chunks: Where ``chunks.tsv`` goes.
        contigs: Where ``contigs.tsv`` goes.
        virnucpro_directory: Where VirNucPro's own two files go, if they are wanted.
        method: Names of the models by role; None where there is only one.

    Raises:
        ConfigError: a threshold outside 0 to 1.
        InputError: embeddings that cannot be read, of another kind, or without a model that the classifier needs.
        WeightsError: a file that is no classifier, or one that does not fit the embeddings.
    """
    classifier = load_classifier(classifier_path)
    with EmbeddingsFile(embeddings) as reader:
        classified = classify(reader, classifier, method or {})
        call_contigs(reader, classified, threshold, frames, chunks, contigs, virnucpro_directory)


def call_contigs(
    reader: EmbeddingsFile,
    classified: Iterable[tuple[Rows, np.ndarray]],
    threshold: float,
    frames: str | Path,
    chunks: str | Path,
    contigs: str | Path,
    virnucpro_directory: str | Path | None = None,
) -> None:
    """Call the chunks and contigs of one sample, whose frames are classified as they are asked for.

    Args:
        reader: Its embeddings, of kind ``contigs``.
        classified: All its rows, in order, and their probabilities, float32 [k, 2]: non-viral, virus.
        threshold: As for :func:`classify_contigs`, and so are the others.
        frames: Table.
        chunks: Table.
        contigs: Table.
        virnucpro_directory: For two files.

    Raises:
        ConfigError: a threshold outside 0 to 1.
        InputError: embeddings that cannot be read.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold {threshold:g}: must lie between 0 and 1")
    places, probabilities = _write_frames(frames, reader, classified)
    ends = _chunk_ends(reader)
    votes = vote(_chunk_of_rows(reader, places, ends), ends[-1], probabilities)
    contig = np.repeat(np.arange(reader.record_count), np.diff(ends))
    with_frames, score = score_contigs(contig, reader.record_count, votes)
    _write_chunks(chunks, reader, votes)
    _write_contigs(contigs, reader, np.diff(ends), with_frames, score, threshold)
    if virnucpro_directory is not None:
        Path(virnucpro_directory).mkdir(parents=True, exist_ok=True)
        _write_virnucpro(Path(virnucpro_directory), reader, probabilities, votes)


def read_contigs(path: str | Path) -> Iterator[ContigCall]:
    """Read ``contigs.tsv``, line by line.

    Raises:
        InputError: no such file, or a line that is none of such a table.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as table:
            if table.readline() != _line(*CONTIG_COLUMNS):
                raise InputError("not a table of contigs; classify the contigs again", path, 1)
            for number, line in enumerate(table, 2):
                try:
                    yield _parse_contig(*line.removesuffix("\n").split("\t"))
                except (TypeError, ValueError, KeyError):
                    problem = "not a line of a table of contigs; classify the contigs again"
                    raise InputError(problem, path, number) from None
    except FileNotFoundError:
        raise InputError("no such file", path) from None


def _parse_contig(
    contig: str, length: str, chunks: str, with_frames: str, status: str, is_virus: str, score: str
) -> ContigCall:
    called = status == "called"
    if status not in CONTIG_STATUSES or (not called and (is_virus, score) != (NOT_AVAILABLE, NOT_AVAILABLE)):
        raise ValueError
    counts = int(length), int(chunks), int(with_frames)
    if not 0 <= min(counts) <= max(counts) < 2**63 or (called and not 0 <= float(score) <= 1):
        raise ValueError
    verdict = ({"True": True, "False": False}[is_virus], float(score)) if called else (None, None)
    return ContigCall(contig, *counts, status, *verdict)


def _chunk_ends(reader: EmbeddingsFile) -> np.ndarray:
    """Index one past the last chunk before each record and, at the end, of all: int64 [M + 1]."""
    lengths_bp = [records.length for records in reader.record_blocks()]
    chunks = -(-np.concatenate([np.empty(0, np.int64), *lengths_bp]) // reader.chunk_length_bp)
    return np.concatenate([[0], np.cumsum(chunks)])


def _chunk_of_rows(reader: EmbeddingsFile, places: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Index of each row's chunk among all chunks of the sample, int64 [N]; of their places, int32 [N, 2]."""
    record, chunk = places.T
    if ((chunk < 1) | (chunk > np.diff(ends)[record])).any():
        raise InputError("holds a frame of a chunk that its record does not have; compute it again", reader.path)
    return ends[record] + chunk - 1


def _chunks(reader: EmbeddingsFile) -> Iterator[tuple[str, int, int, int, str]]:
    """Every chunk of every record: record id, number from 1, start and end in bp, status of the record."""
    for records in reader.record_blocks():
        for name, length_bp, status in zip(records.ids, records.length.tolist(), records.status, strict=True):
            starts, ends = (bounds.tolist() for bounds in chunk_bounds(length_bp, reader.chunk_length_bp))
            for number, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
                yield name, number, start, end, status


def _uncalled(record_status: str) -> str:
    """Status of a chunk or contig that is not called: the record's, unless only this chunk has no frame."""
    return "no_stop_free_frame" if record_status == "ok" else record_status


def _number(value: float) -> str:
    return f"{value:.9g}"


def _line(*cells: str) -> str:
    return "\t".join(cells) + "\n"


def _write_frames(
    path: str | Path, reader: EmbeddingsFile, classified: Iterable[tuple[Rows, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Write ``frames.tsv``; record and chunk of each frame, int32 [N, 2], and its probabilities, float32 [N, 2]."""
    places = np.empty((reader.row_count, 2), np.int32)
    probabilities = np.empty((reader.row_count, 2), np.float32)
    start = 0
    with atomic_text(path) as table:
        table.write(_line(*FRAME_COLUMNS))
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
                table.write(_line(*place, prediction, _number(p_non_viral), _number(p_virus)))
    return places, probabilities


def _write_chunks(path: str | Path, reader: EmbeddingsFile, votes: Votes) -> None:
    results = zip(votes.frames, votes.is_virus, votes.max_p_virus, votes.max_p_non_viral, strict=True)
    with atomic_text(path) as table:
        table.write(_line(*CHUNK_COLUMNS))
        for (name, number, start, end, status), result in zip(_chunks(reader), results, strict=True):
            frames, is_virus, *maxima = result
            verdict = (str(is_virus), *map(_number, maxima)) if frames else (NOT_AVAILABLE,) * 3
            place = (f"{name}_chunk_{number}", name, str(start), str(end), str(frames))
            table.write(_line(*place, "called" if frames else _uncalled(status), *verdict))


def _write_contigs(
    path: str | Path,
    reader: EmbeddingsFile,
    chunks: np.ndarray,
    with_frames: np.ndarray,
    score: np.ndarray,
    threshold: float,
) -> None:
    contigs = zip(chunks.tolist(), with_frames.tolist(), score.tolist(), strict=True)
    with atomic_text(path) as table:
        table.write(_line(*CONTIG_COLUMNS))
        for records in reader.record_blocks():
            for name, length_bp, record_status in zip(records.ids, records.length, records.status, strict=True):
                count, called, mean = next(contigs)
                status = "called" if called and record_status == "ok" else _uncalled(record_status)
                verdict = (str(mean >= threshold), _number(mean)) if status == "called" else (NOT_AVAILABLE,) * 2
                table.write(_line(name, str(length_bp), str(count), str(called), status, *verdict))


def _write_virnucpro(directory: Path, reader: EmbeddingsFile, probabilities: np.ndarray, votes: Votes) -> None:
    """Write VirNucPro's two files, value-equal.

    Frames come in their order, called chunks sorted by id, which is how a pandas groupby leaves them; sorting is
    the one step here that holds an object for each.
    """
    with atomic_text(directory / VIRNUCPRO_FRAMES) as table:
        table.write(_line("Sequence_ID", "Prediction", "score1", "score2"))
        names = (name for rows in reader.blocks() for name in rows.ids)
        for name, (p_non_viral, p_virus) in zip(names, probabilities, strict=True):
            prediction = "virus" if p_virus > p_non_viral else "others"
            table.write(_line(name, prediction, _number(p_non_viral), _number(p_virus)))
    called = (
        (f"{name}_chunk_{number}", is_virus)
        for (name, number, *_), frames, is_virus in zip(_chunks(reader), votes.frames, votes.is_virus, strict=True)
        if frames
    )
    with atomic_text(directory / VIRNUCPRO_CHUNKS) as table:
        table.write(_line("Modified_ID", "Is_Virus"))
        table.writelines(_line(name, str(is_virus)) for name, is_virus in sorted(called))
