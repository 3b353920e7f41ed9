"""Calls: from the probabilities of a sample's frames to its tables.

:func:`classify_contigs` takes a sample through in one process, some records with all their frames at a time: these vote
(:mod:`.votes`), regions are found (:mod:`.regions`), and ``frames.tsv``, ``chunks.tsv``, ``regions.tsv`` and
VirNucPro's own two files are written. Evidence and score of every contig are kept, 12 bytes, since a false discovery
rate, another 16, is one of all; then contigs are decided (:mod:`.decisions`), and ``contigs.tsv`` is written.

A frame is a virus when ``p_virus > p_non_viral``; a tie is non-viral (VirNucPro). The tables are as :mod:`.contigs`
says; coordinates are 1-based, the last base included, where a column says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from ..errors import InputError
from ..files import atomic_text
from ..sequences.frames import FRAMES, bounds_of_records
from .calibration import Calibration, read_calibration
from .classifier import NON_VIRAL, VIRUS, classify, load_classifier
from .contigs import CONTIG_COLUMNS, NOT_AVAILABLE, contig_lines, line, number
from .decisions import REASONS, FalseDiscoveries, decide, gate
from .embeddings import EmbeddingsFile, Records, Rows
from .presets import CallRules, choose_rules
from .regions import REGION_COLUMNS, find_regions, region_lines
from .viruses import write_viruses
from .votes import Votes, score_groups, vote

FRAME_COLUMNS = ("frame_id", "contig", "chunk", "frame", "prediction", "p_non_viral", "p_virus", "genetic_code")
CHUNK_COLUMNS = (
    *("chunk_id", "contig", "start_1based", "end_1based", "frames", "status", "is_virus"),
    *("max_p_virus", "max_p_non_viral", "genetic_code"),
)
VIRNUCPRO_FRAMES = "prediction_results.txt"
VIRNUCPRO_CHUNKS = "prediction_results_highestscore.csv"


class Caller:
    """Classifies the frames of samples, calls their chunks and contigs, and writes the sequences of their viruses."""

    def __init__(
        self,
        classifier: Path,
        calls: Mapping[str, Any],
        method: Mapping[str, str | None],
        virnucpro: bool,
        calibration: Path | None,
    ) -> None:
        """Read what is the same for all samples.

        Args:
            classifier: The classifier, .safetensors.
            calls: What the config says under that key.
            method: Names of the models by role; None where there is only one.
            virnucpro: Also write VirNucPro's own two files, into ``virnucpro`` beside the tables.
            calibration: What calibrates the classifier, ``calibration.json``; None where there is none.

        Raises:
            ConfigError: rules that need a calibration, without one, or with one that was made for another margin.
            WeightsError: a file that is no classifier; a calibration of another.
        """
        self._rules = choose_rules(calls)
        self._classifier = load_classifier(classifier)
        self._calibration = None
        if calibration is not None:
            self._calibration = read_calibration(calibration, classifier, self._rules.margin)
        self._method, self._virnucpro = method, virnucpro

    def call(self, embeddings: Path, fasta: Path, directory: Path, viruses: Path) -> None:
        """Call one sample.

        Args:
            embeddings: Its embeddings, of kind ``contigs``.
            fasta: Its sequence file.
            directory: Where the tables go, each by the name of its kind, such as ``frames.tsv``.
            viruses: Where the sequences go, see :func:`.viruses.write_viruses`.

        Raises:
            ConfigError: rules that need a calibration, where the labelled contigs could make none.
            InputError: embeddings that cannot be read, of another kind, or without a model that the classifier needs; a
                sequence file that is not theirs.
            WeightsError: a classifier that does not fit the embeddings.
        """
        with EmbeddingsFile(embeddings) as reader:
            classified = classify(reader, self._classifier, self._method)
            call_contigs(reader, classified, self._rules, directory, self._virnucpro, self._calibration)
            write_viruses(viruses, fasta, reader, directory)


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
        directory: As for :meth:`Caller.call`.
        virnucpro: Whether VirNucPro's two files are written.
        calibration: Of the classifier; None where there is none.

    Raises:
        ConfigError: rules that need a calibration, without one.
        InputError: embeddings that cannot be read.
    """
    evidence = np.zeros(reader.record_count, np.int32)
    score = np.full(reader.record_count, np.nan)
    first = 0
    with _Tables(directory, reader.genetic_code, virnucpro) as tables:
        for records, frames in _by_records(reader, classified):
            place = slice(first, first + len(records.ids))
            evidence[place], score[place] = _call_chunks(reader, tables, records, frames, rules)
            first = place.stop
        tables.finish()
    fdr = None
    if calibration is not None:
        fdr = FalseDiscoveries(score, partial(calibration.apply, virus_share=rules.virus_share))
    with atomic_text(directory / "contigs.tsv") as table:
        table.write(line(*CONTIG_COLUMNS))
        first = 0
        for records in reader.record_blocks():
            place = slice(first, first + len(records.ids))
            first = place.stop
            p_virus, rate = None, None
            if calibration is not None and fdr is not None:
                p_virus, rate = calibration.apply(score[place], rules.virus_share), fdr.at(score[place])
            known = (records.length, _statuses(records), evidence[place], score[place])
            decisions = decide(*known, p_virus, rate, rules)
            chunks = -(-records.length // reader.chunk_length_bp)
            values = (chunks, evidence[place], score[place], decisions, rules, reader.genetic_code)
            table.writelines(contig_lines(records, *values))


@dataclass(frozen=True)
class _Frames:
    """Frames of consecutive records.

    Attributes:
        ids: N ids.
        record: Index of each one's record, int64 [N].
        chunk: Number of its chunk there, from 1, int64 [N].
        frame: Index into FRAMES, uint8 [N].
        probabilities: float32 [N, 2]: non-viral, virus.
    """

    ids: list[str]
    record: np.ndarray
    chunk: np.ndarray
    frame: np.ndarray
    probabilities: np.ndarray

    def part(self, place: slice) -> "_Frames":
        """Some of them that follow one another."""
        return _Frames(*(getattr(self, field.name)[place] for field in fields(self)))


def _by_records(
    reader: EmbeddingsFile, classified: Iterable[tuple[Rows, np.ndarray]]
) -> Iterator[tuple[Records, _Frames]]:
    """All records, some at a time, with all frames of these, whose records are counted from the first of them.

    Raises:
        InputError: rows that are not in the order of their records.
    """
    blocks = (_Frames(rows.ids, rows.record.astype(np.int64), rows.chunk, rows.frame, p) for rows, p in classified)
    no_rows = np.empty(0, np.int64)
    waiting = _Frames([], no_rows, no_rows, no_rows.astype(np.uint8), np.empty((0, 2), np.float32))
    first, last = 0, -1
    for records in reader.record_blocks():
        stop = first + len(records.ids)
        parts = [waiting]
        while last < stop and (block := next(blocks, None)) is not None:
            parts.append(block)
            if (np.diff(block.record, prepend=last) < 0).any():
                raise InputError("its rows are not in the order of its records; compute it again", reader.path)
            last = int(block.record[-1])
        ids = [name for part in parts for name in part.ids]
        columns = zip(*((part.record, part.chunk, part.frame, part.probabilities) for part in parts), strict=True)
        held = _Frames(ids, *map(np.concatenate, columns))
        cut = int(np.searchsorted(held.record, stop))
        held.record[:cut] -= first
        yield records, held.part(slice(0, cut))
        waiting, first = held.part(slice(cut, None)), stop


class _Tables:
    """The tables that are written as frames pass, open side by side; they appear together, or none does."""

    def __init__(self, directory: Path, genetic_code: int, virnucpro: bool) -> None:
        """Name them."""
        self.genetic_code = genetic_code
        self._directory = directory
        self._published = directory / "virnucpro" if virnucpro else None
        self._stack = ExitStack()
        self._voted: list[tuple[str, bool]] = []

    def __enter__(self) -> Self:
        self.frames = self._open(self._directory / "frames.tsv", *FRAME_COLUMNS)
        self.chunks = self._open(self._directory / "chunks.tsv", *CHUNK_COLUMNS)
        self.regions = self._open(self._directory / "regions.tsv", *REGION_COLUMNS)
        self.bed = self._open(self._directory / "regions.bed")
        if self._published:
            self._published.mkdir(exist_ok=True)
            columns = ("Sequence_ID", "Prediction", "score1", "score2")
            self._published_frames = self._open(self._published / VIRNUCPRO_FRAMES, *columns)
        return self

    def _open(self, path: Path, *columns: str) -> IO[str]:
        table = self._stack.enter_context(atomic_text(path))
        table.write(line(*columns) if columns else "")
        return table

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def publish(self, frames: _Frames, voted: Iterable[tuple[str, bool]]) -> None:
        """Write frames as VirNucPro does, value-equal, and keep the votes, where its two files are asked for."""
        if self._published:
            self._voted.extend(voted)
            for name, (p_non_viral, p_virus) in zip(frames.ids, frames.probabilities.tolist(), strict=True):
                prediction = "virus" if p_virus > p_non_viral else "others"
                self._published_frames.write(line(name, prediction, number(p_non_viral), number(p_virus)))

    def finish(self) -> None:
        """Write VirNucPro's called chunks, sorted by id, which is how a pandas groupby leaves them.

        Sorting is the one step here that holds an object for each.
        """
        if self._published:
            with atomic_text(self._published / VIRNUCPRO_CHUNKS) as table:
                table.write(line("Modified_ID", "Is_Virus"))
                table.writelines(line(name, str(is_virus)) for name, is_virus in sorted(self._voted))


def _call_chunks(
    reader: EmbeddingsFile, tables: _Tables, records: Records, frames: _Frames, rules: CallRules
) -> tuple[np.ndarray, np.ndarray]:
    """Write frames, chunks and regions of some records; evidence of each, int64 [M], and score, float64 [M].

    A record that is not called has no score: NaN.
    """
    tables.frames.writelines(_frame_lines(records, frames, tables.genetic_code))
    contig, start_bp, end_bp = bounds_of_records(records.length, reader.chunk_length_bp)
    chunks = np.bincount(contig, minlength=len(records.ids))
    if ((frames.chunk < 1) | (frames.chunk > chunks[frames.record])).any():
        raise InputError("holds a frame of a chunk that its record does not have; compute it again", reader.path)
    places = (np.cumsum(chunks) - chunks)[frames.record] + frames.chunk - 1
    votes = vote(places, len(contig), frames.probabilities)
    named = [(f"{records.ids[owner]}_chunk_{place}", owner) for owner, place in _numbered(chunks)]
    tables.chunks.writelines(_chunk_lines(records, named, start_bp, end_bp, votes, tables.genetic_code))
    voted = zip(named, votes.frames.tolist(), votes.is_virus.tolist(), strict=True)
    tables.publish(frames, ((name, is_virus) for (name, _), count, is_virus in voted if count))
    evidence, score = score_groups(contig, len(records.ids), votes, rules.margin)
    called = gate(records.length, _statuses(records), evidence, rules) == 0
    regions = find_regions(contig, start_bp, end_bp, votes, called, records.length, rules)
    for text, bed in region_lines(records, regions, tables.genetic_code):
        tables.regions.write(text)
        tables.bed.write(bed)
    return evidence, np.where(called, score, np.nan)


def _statuses(records: Records) -> np.ndarray:
    """Why each record cannot be called, an index into REASONS, uint8 [M]."""
    return np.array([REASONS.index(status) if status in REASONS else 0 for status in records.status], np.uint8)


def _numbered(chunks: np.ndarray) -> Iterator[tuple[int, int]]:
    """For every chunk of every record the record's index and the chunk's number from 1."""
    for owner, count in enumerate(chunks.tolist()):
        for place in range(1, count + 1):
            yield owner, place


def _uncalled(record_status: str) -> str:
    """Status of a chunk that is not called: the record's, unless only this chunk has no frame."""
    return "no_stop_free_frame" if record_status == "ok" else record_status


def _frame_lines(records: Records, frames: _Frames, genetic_code: int) -> Iterator[str]:
    numbers = (column.tolist() for column in (frames.record, frames.chunk, frames.frame, frames.probabilities))
    for name, record, chunk, frame, (p_non_viral, p_virus) in zip(frames.ids, *numbers, strict=True):
        prediction = VIRUS if p_virus > p_non_viral else NON_VIRAL
        place = (name, records.ids[record], str(chunk), FRAMES[frame])
        yield line(*place, prediction, number(p_non_viral), number(p_virus), str(genetic_code))


def _chunk_lines(
    records: Records,
    named: Iterable[tuple[str, int]],
    start_bp: np.ndarray,
    end_bp: np.ndarray,
    votes: Votes,
    genetic_code: int,
) -> Iterator[str]:
    """Lines of ``chunks.tsv``; of each chunk come its id and its record's index, and a value in every array."""
    columns = (start_bp, end_bp, votes.frames, votes.is_virus, votes.max_p_virus, votes.max_p_non_viral)
    results = zip(*(column.tolist() for column in columns), strict=True)
    for (name, owner), (start, end, frames, is_virus, *maxima) in zip(named, results, strict=True):
        verdict = (str(is_virus), *map(number, maxima)) if frames else (NOT_AVAILABLE,) * 3
        where = (name, records.ids[owner], str(start + 1), str(end), str(frames))
        status = "called" if frames else _uncalled(records.status[owner])
        yield line(*where, status, *verdict, str(genetic_code))
