"""The tally of a run: what its report says, counted from its results.

Every sample's receipt, embeddings and calls are read once, one sample after the other, block by block and line by line.
They become counts (:func:`count_results`), small however many samples and contigs there are: outcomes of records,
histograms of scores and lengths, stop-free frames per chunk, seconds. Of the rows of each model at most :data:`POINTS`
are kept, chosen by chance with the seed, and of the contigs at most :data:`LISTED`: viruses first, by tier and score.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..results.contigs import ContigCall, read_contigs
from ..results.decisions import DECISIONS, NOT_CALLED, TIERS
from ..results.embeddings import EmbeddingsFile
from ..run.config import Sample
from ..run.provenance import number
from ..sequences.frames import FRAMES
from ..spool.job import Receipt
from ..spool.progress import Moment, read_moments
from .results import Results
from .summary import STATUSES

OUTCOMES = (*DECISIONS, "embedded", *STATUSES)
SCORE_BINS = 50
LENGTH_BINS_A_DECADE = 4
POINTS = 20_000
LISTED = 20_000


@dataclass
class SampleTally:
    """The counts of one sample, or of several together.

    Attributes:
        name: Of the sample.
        outcomes: Records by outcome, one of :data:`OUTCOMES`.
        scores: Called contigs by score, int64 [SCORE_BINS].
        frames: Chunks by their number of stop-free frames, int64 [7]; all zero but for kind ``contigs``.
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
        moments: Its history, over all that it did; empty where it left none.
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
        contigs: Those to be listed, sample and call, by decision, tier and score.
        contig_count: How many there are.
        calibrated: Whether a contig has a calibrated probability.
        viruses: Contigs that are called virus.
        expected_false: How many of them are expected to be none, by their calibrated probabilities.
        points: By model.
        pools: By name, in the order in which they are met.
        models: By name, what embeddings files say of the models they were made with.
        genetic_codes: By which frames were read, NCBI's numbers.
    """

    samples: list[SampleTally] = field(default_factory=list)
    lengths: Counter[tuple[float, str]] = field(default_factory=Counter)
    contigs: list[tuple[str, ContigCall]] = field(default_factory=list)
    contig_count: int = 0
    calibrated: bool = False
    viruses: int = 0
    expected_false: float = 0.0
    points: dict[str, Points] = field(default_factory=dict)
    pools: dict[str, PoolTally] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    genetic_codes: set[int] = field(default_factory=set)

    @property
    def synthetic(self) -> list[str]:
        """Models whose weights are random, sorted."""
        return sorted(model for model, known in self.models.items() if known["synthetic"])


def count_results(results: Results, spool: Path, seed: int) -> Tally:
    """Count.

    Args:
        results: What there is.
        spool: Where the pools left their history.
        seed: For the choice of points.

    Raises:
        HoldfastError: a file that is missing, or cannot be read.
    """
    chosen = _choose(results.receipts, seed)
    tally = Tally()
    found: dict[str, list[tuple[np.ndarray, list[str]]]] = defaultdict(list)
    totals: Counter[str] = Counter()
    called = frozenset(results.called)
    by_sample = not (called or any(entry.label for entry in results.samples.values()))
    for name in results.done:
        entry = results.samples[name]
        _count_pool(tally, results.receipts[name], spool)
        sample = SampleTally(name)
        tally.samples.append(sample)
        with EmbeddingsFile(results.embeddings(name)) as file:
            tally.models = {**file.models, **tally.models}
            taken = _take(file, chosen[name])
            wanted = {int(record) for records, _ in taken.values() for record in records}
            outcomes = _count_records(tally, sample, file, results.contigs(name) if name in called else None, wanted)
            if file.kind == "contigs":
                tally.genetic_codes.add(file.genetic_code)
                _count_frames(sample, file)
            for model, (records, matrix) in taken.items():
                totals[model] += file.row_count
                groups = [name if by_sample else _group(entry, outcomes[record]) for record in records.tolist()]
                found[model].append((matrix, groups))
    for model, parts in found.items():
        matrix = np.concatenate([part for part, _ in parts])
        tally.points[model] = Points(matrix, [group for _, groups in parts for group in groups], totals[model])
    tally.contigs = _highest(tally.contigs)
    return tally


def _take(file: EmbeddingsFile, rows: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Some rows of the matrix of each model that is drawn, with the index of each one's record."""
    taken = {}
    for model in file.models:
        shown = file.matrix_of(model) or file.matrix_of(model, "max") or file.matrix_of(model, "cls")
        if shown is not None:
            taken[model] = file.take(rows[rows < file.row_count], shown)
    return taken


def _choose(receipts: Mapping[str, Receipt], seed: int) -> dict[str, np.ndarray]:
    """By sample, the rows to keep: at most POINTS of all, without repetition, each as likely as any other."""
    ends = np.cumsum([0, *(receipt.counts.get("rows", 0) for receipt in receipts.values())])
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
    return f"called {outcome}" if outcome in DECISIONS[:NOT_CALLED] else entry.kind


def _count_pool(tally: Tally, receipt: Receipt, spool: Path) -> None:
    name = receipt.pool_id
    if name not in tally.pools:
        moments = read_moments(spool / "pools" / f"{Path(name).name}.tsv") if name else []
        tally.pools[name] = PoolTally(name, moments=moments)
    pool = tally.pools[name]
    pool.devices = str(receipt.pool.get("devices", ""))
    pool.load_s = number(receipt.pool.get("load_s"))
    pool.device_s += receipt.seconds.get("device_s", 0.0)
    pool.tokens += receipt.counts.get("tokens", 0)
    pool.samples += 1


def _count_frames(sample: SampleTally, file: EmbeddingsFile) -> None:
    """Count chunks by their stop-free frames; the frames of a chunk are rows that follow one another."""
    last, open_frames, with_frames = -1, 0, 0
    for rows in file.blocks():
        place = rows.record * np.int64(2**31) + rows.chunk
        starts = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1]]))
        frames = np.diff(np.append(starts, len(place)))
        if place[0] == last:
            frames[0] += open_frames
        elif open_frames:
            sample.frames[open_frames] += 1
        sample.frames += np.bincount(frames[:-1], minlength=len(FRAMES) + 1)
        with_frames += len(frames) - int(place[0] == last)
        last, open_frames = int(place[-1]), int(frames[-1])
    if open_frames:
        sample.frames[open_frames] += 1
    chunks = sum(int((-(-records.length // file.chunk_length_bp)).sum()) for records in file.record_blocks())
    sample.frames[0] = chunks - with_frames


def _count_records(
    tally: Tally, sample: SampleTally, file: EmbeddingsFile, contigs: Path | None, wanted: set[int]
) -> dict[int, str]:
    """Count the records of a sample by outcome, and its calls; the outcomes of those records that are wanted."""
    calls = None if contigs is None else read_contigs(contigs)
    outcomes: dict[int, str] = {}
    index = 0
    for records in file.record_blocks():
        if calls is None:
            found = ["embedded" if status == "ok" else status for status in records.status]
        else:
            found = [_count_contig(tally, sample, calls, status, contigs) for status in records.status]
        sample.outcomes.update(found)
        outcomes |= {index + place: found[place] for place in range(len(found)) if index + place in wanted}
        index += len(found)
    if calls is not None and next(calls, None) is not None:
        raise InputError(f"has more than the {index} records of the sample; run again", contigs or "")
    return outcomes


def _count_contig(
    tally: Tally, sample: SampleTally, calls: Iterator[ContigCall], status: str, path: Path | None
) -> str:
    """Count the next contig of a table; its outcome: the decision or, of a record not called for its status, that."""
    call = next(calls, None)
    if call is None:
        raise InputError("has fewer contigs than the sample has records; run again", path or "")
    outcome = call.decision if call.tier or status == "ok" else status
    tally.contig_count += 1
    tally.contigs.append((sample.name, call))
    if len(tally.contigs) > 5 * LISTED:
        tally.contigs = _highest(tally.contigs)
    if call.score is not None:
        sample.scores[min(int(call.score * SCORE_BINS), SCORE_BINS - 1)] += 1
    if call.p_virus is not None:
        tally.calibrated = True
    if call.is_virus:
        tally.viruses += 1
        tally.expected_false += 0.0 if call.p_virus is None else 1 - call.p_virus
    if call.length_bp:
        place = np.floor(np.log10(call.length_bp) * LENGTH_BINS_A_DECADE) / LENGTH_BINS_A_DECADE
        tally.lengths[round(float(10**place), 3), outcome] += 1
    return outcome


def _highest(contigs: list[tuple[str, ContigCall]]) -> list[tuple[str, ContigCall]]:
    """The first :data:`LISTED` by decision, of viruses by tier, and by score."""

    def place(entry: tuple[str, ContigCall]) -> tuple[int, int, float]:
        call = entry[1]
        tier = TIERS.index(call.tier) if call.tier and call.is_virus else 0
        return DECISIONS.index(call.decision), -tier, -1.0 if call.score is None else -call.score

    return sorted(contigs, key=place)[:LISTED]
