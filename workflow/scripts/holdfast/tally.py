"""The tally of a run: what the report draws and lists, counted from the results, small however many samples there are.

Every sample's receipt, embeddings and calls are read once, one sample after the other, and become counts: outcomes of
records, histograms of scores and lengths, open frames per chunk, seconds. Of the rows of each model at most
:data:`POINTS` are kept, chosen by chance with the seed, and of the contigs at most :data:`LISTED`, those with the
highest scores.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import pace, receipt
from .calls import CONTIG_COLUMNS, NOT_AVAILABLE
from .configuration import Sample, read_samples
from .embeddings import Reader
from .errors import InputError, ResourceError
from .frames import FRAMES
from .pace import Moment
from .receipt import Receipt

OUTCOMES = ("virus", "other", "embedded", "no_open_frame", "too_short", "too_long", "failed")
SCORE_BINS = 50
LENGTH_BINS_A_DECADE = 4
POINTS = 20_000
LISTED = 20_000


@dataclass(frozen=True, slots=True)
class Contig:
    """A line of ``contigs.tsv``; ``score`` is None where the contig is not called."""

    sample: str
    contig: str
    length_bp: int
    chunks: int
    chunks_with_frames: int
    outcome: str
    score: float | None


@dataclass
class SampleTally:
    """The counts of one sample, or of several together.

    Attributes:
        name: Of the sample.
        outcomes: Records by outcome, one of :data:`OUTCOMES`.
        scores: Called contigs by score, int64 [SCORE_BINS].
        frames: Chunks by their number of open frames, int64 [7]; all zero but for kind ``contigs``.
    """

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))
    frames: np.ndarray = field(default_factory=lambda: np.zeros(len(FRAMES) + 1, np.int64))

    @property
    def records(self) -> int:
        """Records of the input."""
        return self.outcomes.total()

    def add(self, other: "SampleTally") -> None:
        """Count another sample in."""
        self.outcomes += other.outcomes
        self.scores = self.scores + other.scores
        self.frames = self.frames + other.frames


@dataclass
class PoolTally:
    """What one pool did for the samples whose results are here.

    Attributes:
        name: Of the pool.
        devices: Names of its devices.
        load_s: Seconds to load its models.
        device_s: Seconds that devices worked for these samples.
        tokens: Tokens of these samples.
        samples: Their number.
        moments: Its pace, over all that it did; empty where it left no record.
    """

    name: str
    devices: str = ""
    load_s: float = 0.0
    device_s: float = 0.0
    tokens: int = 0
    samples: int = 0
    moments: list[Moment] = field(default_factory=list)


@dataclass
class Points:
    """Rows of one model, to be drawn as points.

    Attributes:
        matrix: float16 or float32 [k, D].
        groups: What each belongs to, k names.
        rows: Rows of all samples, of which these k were chosen.
    """

    matrix: np.ndarray
    groups: list[str]
    rows: int


@dataclass
class Tally:
    """All that the report shows of samples and pools.

    Attributes:
        samples: In the order of the sheet.
        lengths: By bin, the lower end in bp, and outcome: the contigs of called samples.
        contigs: Those to be listed, the highest score first.
        contig_count: How many there are.
        points: By model.
        pools: By name, in the order in which they are met.
        synthetic: Models whose weights are random.
    """

    samples: list[SampleTally] = field(default_factory=list)
    lengths: Counter[tuple[float, str]] = field(default_factory=Counter)
    contigs: list[Contig] = field(default_factory=list)
    contig_count: int = 0
    points: dict[str, Points] = field(default_factory=dict)
    pools: dict[str, PoolTally] = field(default_factory=dict)
    synthetic: set[str] = field(default_factory=set)


def count(sheet: Path, schema: Path, results: Path, spool: Path, seed: int) -> Tally:
    """Count.

    Args:
        sheet: The sample sheet.
        schema: Its schema.
        results: Directory with the results of every sample.
        spool: Where the pools left their pace.
        seed: For the choice of points.

    Raises:
        HoldfastError: a file that is missing, or cannot be read.
    """
    entries = read_samples(sheet, schema)
    receipts = {name: _receipt(results / name) for name in entries}
    chosen = _choose(receipts, seed)
    tally = Tally()
    found: dict[str, list[tuple[np.ndarray, list[str]]]] = defaultdict(list)
    by_sample = not any(entry.label or (results / name / "contigs.tsv").exists() for name, entry in entries.items())
    for name, entry in entries.items():
        _count_pool(tally, receipts[name], spool)
        sample = SampleTally(name)
        tally.samples.append(sample)
        with Reader(results / name / "embeddings.h5") as reader:
            outcomes = _count_records(tally, sample, reader, results / name / "contigs.tsv")
            sample.outcomes.update(outcomes)
            tally.synthetic |= {model for model, attributes in reader.models.items() if attributes["synthetic"]}
            for model in reader.models:
                rows = chosen[name][chosen[name] < reader.row_count]
                records, matrix = reader.take(rows, model)
                groups = [name if by_sample else _group(entry, outcomes[record]) for record in records.tolist()]
                found[model].append((matrix, groups))
    for model, parts in found.items():
        matrix = np.concatenate([part for part, _ in parts])
        total = sum(
            outcome.counts.get("rows", 0) for outcome in receipts.values() if f"{model}_tokens" in outcome.counts
        )
        tally.points[model] = Points(matrix, [group for _, groups in parts for group in groups], total)
    tally.contigs = _highest(tally.contigs)
    return tally


def _receipt(directory: Path) -> Receipt:
    outcome = receipt.read(directory / "receipt.json")
    if outcome is None:
        raise ResourceError(f"{directory}/receipt.json: is missing; run again")
    return outcome


def _choose(receipts: dict[str, Receipt], seed: int) -> dict[str, np.ndarray]:
    """By sample, the rows to keep: at most POINTS of all, without repetition, each as likely as any other."""
    ends = np.cumsum([0, *(outcome.counts.get("rows", 0) for outcome in receipts.values())])
    total = int(ends[-1])
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(total, POINTS), replace=False))
    places = np.searchsorted(chosen, ends)
    return {
        name: chosen[start:stop] - first
        for name, start, stop, first in zip(receipts, places, places[1:], ends, strict=False)
    }


def _group(entry: Sample, outcome: str) -> str:
    """What a row is drawn as: by its label, or its contig's call, or else its kind."""
    if entry.label:
        return f"labelled {entry.label}"
    return f"called {outcome}" if outcome in ("virus", "other") else entry.kind


def _count_pool(tally: Tally, outcome: Receipt, spool: Path) -> None:
    name = str(outcome.pool.get("id", ""))
    if name not in tally.pools:
        moments = pace.read(spool / "pools" / f"{Path(name).name}.tsv") if name else []
        tally.pools[name] = PoolTally(name, moments=moments)
    pool = tally.pools[name]
    pool.devices = str(outcome.pool.get("devices", ""))
    pool.load_s = float(outcome.pool.get("load_s", 0))
    pool.device_s += outcome.seconds.get("device_s", 0.0)
    pool.tokens += sum(value for key, value in outcome.counts.items() if key.endswith("_tokens"))
    pool.samples += 1


def _count_records(tally: Tally, sample: SampleTally, reader: Reader, contigs: Path) -> list[str]:
    """Count chunks, and scores and lengths where the sample is called; the outcome of each record."""
    rows = np.zeros(reader.record_count, np.int64)
    places = [np.empty(0, np.int64)]
    for block in reader.blocks():
        np.add.at(rows, block.record, 1)
        places.append(block.record * np.int64(2**31) + block.chunk)
    lengths_bp = np.zeros(0, np.int64)
    outcomes: list[str] = []
    for records in reader.record_blocks():
        lengths_bp = np.concatenate([lengths_bp, records.length])
        outcomes += records.status
    if reader.kind == "contigs":
        with_frames = np.unique(np.concatenate(places), return_counts=True)[1]
        sample.frames += np.bincount(with_frames, minlength=len(FRAMES) + 1)
        sample.frames[0] = (-(-lengths_bp // reader.chunk_length_bp)).sum() - len(with_frames)
    if not contigs.exists():
        plain = zip(outcomes, rows.tolist(), strict=True)
        return [status if status != "ok" else "embedded" if count else "no_open_frame" for status, count in plain]
    called = list(_read_contigs(contigs, sample.name))
    if len(called) != len(rows):
        raise InputError(f"has {len(called)} contigs, but there are {len(rows)} records; run again", contigs)
    for contig in called:
        if contig.score is not None:
            sample.scores[min(int(contig.score * SCORE_BINS), SCORE_BINS - 1)] += 1
        if contig.length_bp:
            place = np.floor(np.log10(contig.length_bp) * LENGTH_BINS_A_DECADE) / LENGTH_BINS_A_DECADE
            tally.lengths[round(float(10**place), 3), contig.outcome] += 1
    tally.contig_count += len(called)
    tally.contigs += called
    if len(tally.contigs) > 5 * LISTED:
        tally.contigs = _highest(tally.contigs)
    return [contig.outcome for contig in called]


def _highest(contigs: list[Contig]) -> list[Contig]:
    return sorted(contigs, key=lambda contig: -1.0 if contig.score is None else contig.score, reverse=True)[:LISTED]


def _read_contigs(path: Path, sample: str) -> Iterator[Contig]:
    with open(path, encoding="utf-8", newline="\n") as table:
        if table.readline().rstrip("\n").split("\t") != list(CONTIG_COLUMNS):
            raise InputError("not a table of contigs; call the contigs again", path, 1)
        for number, line in enumerate(table, 2):
            try:
                contig, length, chunks, with_frames, status, is_virus, score = line.rstrip("\n").split("\t")
                outcome = {"True": "virus", "False": "other"}[is_virus] if status == "called" else status
                value = None if score == NOT_AVAILABLE else float(score)
                yield Contig(sample, contig, int(length), int(chunks), int(with_frames), outcome, value)
            except (ValueError, KeyError):
                raise InputError("not a line of a table of contigs; call the contigs again", path, number) from None
