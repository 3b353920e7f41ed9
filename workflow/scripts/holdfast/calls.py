"""Calls: from the probabilities of frames to chunks, from chunks to contigs, and the tables that say so.

Data passes through in two steps. :func:`write_frames` takes what the classifier gives, block by block, and
writes ``frames.tsv``. :func:`write_calls` reads that table back beside the embeddings file, votes, and writes
``chunks.tsv`` and ``contigs.tsv`` (and VirNucPro's own two files), with a row for every chunk and for every
record of the input, called or not. In between only arrays of numbers are held.

The rules:

- A frame is a virus when ``p_virus > p_other``; a tie goes to the others (VirNucPro).
- A chunk is a virus when the largest ``p_virus`` of its frames is at least the largest ``p_other`` (VirNucPro).
  Its score is ``max_p_virus / (max_p_virus + max_p_other)``: at least 0.5 exactly when it is a virus, and
  ``p_virus`` itself where there is one frame.
- A contig's score is the mean of its called chunks' scores; it is a virus when that reaches the threshold.
  VirNucPro stops at the chunks, so this rule is ours.

The tables are tab-separated UTF-8 without quoting: an id is one word of a FASTA header, so it holds neither tab
nor newline, and any quote in it is part of it. ``NA`` stands where there is nothing to say. Probabilities have nine
digits, which give back the same float32. Coordinates are 0-based and half-open, as in BED.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .embeddings import Reader, Rows
from .errors import ConfigError, InputError
from .files import atomic_text
from .frames import FRAMES, chunk_bounds, frame_id

FRAME_COLUMNS = ("frame_id", "contig", "chunk", "frame", "prediction", "p_other", "p_virus")
CHUNK_COLUMNS = ("chunk_id", "contig", "start", "end", "frames", "status", "is_virus", "max_p_virus", "max_p_other")
CONTIG_COLUMNS = ("contig", "length", "chunks", "chunks_with_frames", "status", "is_virus", "score")
VIRNUCPRO_FRAMES = "prediction_results.txt"
VIRNUCPRO_CHUNKS = "prediction_results_highestscore.csv"
NOT_AVAILABLE = "NA"
THRESHOLD = 0.5


@dataclass(frozen=True)
class Votes:
    """What the frames of each chunk say; C chunks.

    Attributes:
        frames: Open frames, int64 [C].
        max_p_other: Largest probability of the others, float32 [C]; 0 without frames, as below.
        max_p_virus: Largest probability of a virus, float32 [C].
    """

    frames: np.ndarray
    max_p_other: np.ndarray
    max_p_virus: np.ndarray

    @property
    def is_virus(self) -> np.ndarray:
        """The vote, bool [C]; without meaning where there are no frames."""
        return self.max_p_virus >= self.max_p_other

    @property
    def score(self) -> np.ndarray:
        """Score of each chunk, float64 [C]; 0 without frames."""
        total = self.max_p_virus.astype(np.float64) + self.max_p_other
        return np.divide(self.max_p_virus, total, out=np.zeros(len(total)), where=total > 0)


def vote(chunk: np.ndarray, chunks: int, probabilities: np.ndarray) -> Votes:
    """Let the frames of each chunk vote.

    Args:
        chunk: Index of each frame's chunk, int64 [N], in any order.
        chunks: C.
        probabilities: float32 [N, 2]: others, virus.
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


def write_frames(path: str | Path, classified: Iterable[tuple[Rows, np.ndarray]]) -> None:
    """Write ``frames.tsv``.

    Args:
        path: The table.
        classified: Rows of a file of kind ``contigs`` and their probabilities, float32 [k, 2]: others, virus.
    """
    with atomic_text(path) as table:
        table.write(_line(*FRAME_COLUMNS))
        for rows, probabilities in classified:
            columns = (rows.ids, rows.chunk.tolist(), rows.frame.tolist(), probabilities.tolist())
            for name, chunk, frame, (p_other, p_virus) in zip(*columns, strict=True):
                contig = name.removesuffix(frame_id("", chunk, frame))
                prediction = "virus" if p_virus > p_other else "other"
                numbers = (_number(p_other), _number(p_virus))
                table.write(_line(name, contig, str(chunk), FRAMES[frame], prediction, *numbers))


def read_probabilities(path: str | Path, reader: Reader) -> np.ndarray:
    """Read the probabilities back from ``frames.tsv``, which must fit the embeddings file row by row.

    Returns:
        float32 [N, 2]: others, virus.

    Raises:
        InputError: no such file, or not the frames of this embeddings file.
    """
    hint = f"classify {reader.path} again"
    probabilities = np.empty((reader.row_count, 2), np.float32)
    names = (name for rows in reader.blocks() for name in rows.ids)
    row = -1
    try:
        with open(path, encoding="utf-8", newline="\n") as table:
            if table.readline() != _line(*FRAME_COLUMNS):
                raise InputError(f"not a table of frames; {hint}", path, 1)
            for row, (line, name) in enumerate(zip(table, names, strict=True)):
                cells = line.rstrip("\n").split("\t")
                if len(cells) != len(FRAME_COLUMNS) or cells[0] != name:
                    raise InputError(f"not the frame '{name}' of the embeddings; {hint}", path, row + 2)
                probabilities[row] = cells[-2:]
                if not (0 <= probabilities[row].min() <= probabilities[row].max() <= 1):
                    raise InputError(f"not probabilities, {cells[-2]} and {cells[-1]}; {hint}", path, row + 2)
    except FileNotFoundError:
        raise InputError("no such file", path) from None
    except ValueError as error:
        raise InputError(f"does not fit the embeddings after this line ({error}); {hint}", path, row + 2) from None
    return probabilities


def write_calls(
    embeddings_path: str | Path,
    frames_path: str | Path,
    threshold: float,
    chunks_path: str | Path,
    contigs_path: str | Path,
    virnucpro_directory: str | Path | None = None,
) -> None:
    """Call the chunks and contigs of one sample.

    Args:
        embeddings_path: Its embeddings, of kind ``contigs``.
        frames_path: What :func:`write_frames` wrote for them.
        threshold: Mean score from which on a contig is a virus.
        chunks_path: Where ``chunks.tsv`` goes.
        contigs_path: Where ``contigs.tsv`` goes.
        virnucpro_directory: Where VirNucPro's own two files go, if they are wanted.

    Raises:
        ConfigError: a threshold outside 0 to 1.
        InputError: files that cannot be read, or do not fit each other.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold {threshold:g}: must lie between 0 and 1")
    with Reader(embeddings_path) as reader:
        require_contigs(reader)
        probabilities = read_probabilities(frames_path, reader)
        ends = _chunk_ends(reader)
        votes = vote(_chunk_of_rows(reader, ends), ends[-1], probabilities)
        contig = np.repeat(np.arange(reader.record_count), np.diff(ends))
        with_frames, score = score_contigs(contig, reader.record_count, votes)
        _write_chunks(chunks_path, reader, votes)
        _write_contigs(contigs_path, reader, np.diff(ends), with_frames, score, threshold)
        if virnucpro_directory is not None:
            Path(virnucpro_directory).mkdir(parents=True, exist_ok=True)
            _write_virnucpro(Path(virnucpro_directory), reader, probabilities, votes)


def require_contigs(reader: Reader) -> None:
    """Refuse a file of another kind.

    Raises:
        InputError: its kind is not ``contigs``.
    """
    if reader.kind != "contigs":
        raise InputError(f"its kind is {reader.kind}; only samples of kind contigs can be classified", reader.path)


def _chunk_ends(reader: Reader) -> np.ndarray:
    """Index one past the last chunk before each record and, at the end, of all: int64 [M + 1]."""
    lengths_bp = [records.length for records in reader.record_blocks()]
    chunks = -(-np.concatenate([np.empty(0, np.int64), *lengths_bp]) // reader.chunk_length_bp)
    return np.concatenate([[0], np.cumsum(chunks)])


def _chunk_of_rows(reader: Reader, ends: np.ndarray) -> np.ndarray:
    """Index of each row's chunk among all chunks of the sample, int64 [N]."""
    indices = [ends[rows.record] + rows.chunk - 1 for rows in reader.blocks()]
    return np.concatenate([np.empty(0, np.int64), *indices])


def _chunks(reader: Reader) -> Iterator[tuple[str, int, int, int, str]]:
    """Every chunk of every record: record id, number from 1, start and end in bp, status of the record."""
    for records in reader.record_blocks():
        for name, length_bp, status in zip(records.ids, records.length.tolist(), records.status, strict=True):
            starts, ends = (bounds.tolist() for bounds in chunk_bounds(length_bp, reader.chunk_length_bp))
            for number, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
                yield name, number, start, end, status


def _uncalled(record_status: str) -> str:
    """Status of a chunk or contig that is not called: the record's, unless that is well and only frames are missing."""
    return "no_open_frame" if record_status == "ok" else record_status


def _number(value: float) -> str:
    return f"{value:.9g}"


def _line(*cells: str) -> str:
    return "\t".join(cells) + "\n"


def _write_chunks(path: str | Path, reader: Reader, votes: Votes) -> None:
    results = zip(votes.frames, votes.is_virus, votes.max_p_virus, votes.max_p_other, strict=True)
    with atomic_text(path) as table:
        table.write(_line(*CHUNK_COLUMNS))
        for (name, number, start, end, status), result in zip(_chunks(reader), results, strict=True):
            frames, is_virus, *maxima = result
            verdict = (str(is_virus), *map(_number, maxima)) if frames else (NOT_AVAILABLE,) * 3
            place = (f"{name}_chunk_{number}", name, str(start), str(end), str(frames))
            table.write(_line(*place, "called" if frames else _uncalled(status), *verdict))


def _write_contigs(
    path: str | Path,
    reader: Reader,
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


def _write_virnucpro(directory: Path, reader: Reader, probabilities: np.ndarray, votes: Votes) -> None:
    """Write VirNucPro's two files, value-equal.

    Frames come in their order, called chunks sorted by id, which is how a pandas groupby leaves them; sorting is
    the one step here that holds an object for each.
    """
    with atomic_text(directory / VIRNUCPRO_FRAMES) as table:
        table.write(_line("Sequence_ID", "Prediction", "score1", "score2"))
        names = (name for rows in reader.blocks() for name in rows.ids)
        for name, (p_other, p_virus) in zip(names, probabilities, strict=True):
            prediction = "virus" if p_virus > p_other else "others"
            table.write(_line(name, prediction, _number(p_other), _number(p_virus)))
    called = (
        (f"{name}_chunk_{number}", is_virus)
        for (name, number, *_), frames, is_virus in zip(_chunks(reader), votes.frames, votes.is_virus, strict=True)
        if frames
    )
    with atomic_text(directory / VIRNUCPRO_CHUNKS) as table:
        table.write(_line("Modified_ID", "Is_Virus"))
        table.writelines(_line(name, str(is_virus)) for name, is_virus in sorted(called))
