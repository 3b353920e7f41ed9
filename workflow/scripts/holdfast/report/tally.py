"""The tally of a run: what the summary and the report say of it, counted from its results.

Every sample's receipt, embeddings and calls are read once, one sample after the other. For the summary they become a
row each (:func:`write_summary`); for the report they become counts (:func:`count_results`), small however many samples
there are: outcomes of records, histograms of scores and lengths, stop-free frames per chunk, seconds. Of the rows of
each model at most :data:`POINTS` are kept, chosen by chance with the seed, and of the contigs at most :data:`LISTED`,
those with the highest scores.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import atomic_text
from ..results.calls import CONTIG_STATUSES, NON_VIRAL, VIRUS, ContigCall, read_contigs
from ..results.embeddings import EmbeddingsFile
from ..run.config import Sample
from ..run.provenance import describe_pools, number
from ..sequences.frames import FRAMES
from ..spool.job import Receipt
from ..spool.progress import Moment, read_moments
from .results import Results

STATUSES = ("truncated", "windowed", "no_stop_free_frame", "too_short", "too_long", "bad_letters", "failed")
OUTCOMES = (VIRUS, NON_VIRAL, "embedded", *STATUSES)
SCORE_BINS = 50
LENGTH_BINS_A_DECADE = 4
POINTS = 20_000
LISTED = 20_000
SUMMARY_COLUMNS = (
    *("sample", "kind", "label", "state", "records", *STATUSES, "rows", "distinct_sequences", "tokens"),
    *(f"contigs_{status}" for status in CONTIG_STATUSES),
    *("contigs_virus", "inherited_vectors"),
    *("load_s", "load_share_s", "read_s", "device_s", "total_s", "tokens_per_s", "device_busy"),
    *("precision", "devices", "synthetic_weights", "run"),
)


def write_summary(results: Results, output: Path) -> None:
    """Write ``summary.tsv`` from receipts, embeddings and calls; a cell that does not apply is empty.

    ``load_s`` is the pool's time to load its models, the same for all its samples, and ``load_share_s`` the sample's
    share of that, by ``device_s`` among the pool's samples in this table. ``device_s`` is the sample's share of the
    batches it was in, by tokens; ``tokens_per_s`` is the tokens in that share over it. ``device_busy`` is the pool's.

    Args:
        results: What there is.
        output: The table.

    Raises:
        HoldfastError: a file that is missing, or cannot be read.
    """
    receipts = results.receipts
    work_s: dict[str, list[float]] = defaultdict(list)
    for receipt in receipts.values():
        work_s[_pool_of(receipt)].append(receipt.seconds.get("device_s", 0.0))
    pools = describe_pools(receipts.values())
    with atomic_text(output) as file:
        file.write("\t".join(SUMMARY_COLUMNS) + "\n")
        for name, entry in results.samples.items():
            row: dict[str, object] = {"sample": name, "kind": entry.kind, "label": entry.label, "state": "failed"}
            if name in receipts:
                pool = _pool_of(receipts[name])
                row |= _summary_row(results, name)
                row |= {"state": "done", "device_busy": pools[pool]["device_busy"]}
                row |= {"load_share_s": _load_share_s(receipts[name], work_s[pool])}
            cells = (row.get(column) for column in SUMMARY_COLUMNS)
            file.write("\t".join("" if cell is None else str(cell) for cell in cells) + "\n")


def _pool_of(receipt: Receipt) -> str:
    """Name of the pool that left a receipt."""
    return str(receipt.pool.get("id", ""))


def _load_share_s(receipt: Receipt, work_s: list[float]) -> float:
    """A sample's share of the load of its pool: by its work among all of the pool's samples, or even."""
    own_s, total_s = receipt.seconds.get("device_s", 0.0), sum(work_s)
    share = own_s / total_s if total_s > 0 else 1 / len(work_s)
    return round(number(receipt.pool.get("load_s")) * share, 3)


def _summary_row(results: Results, name: str) -> dict[str, object]:
    """The cells of one sample by column, but for those that depend on the pool's other samples."""
    receipt = results.receipts[name]
    with EmbeddingsFile(results.embeddings(name)) as file:
        synthetic = _synthetic(file)
    counts, pool = receipt.counts, receipt.pool
    device_s = receipt.seconds.get("device_s", 0.0)
    calls: dict[str, int] = {}
    if name in results.called:
        met = [(call.status, call.is_virus) for call in read_contigs(results.contigs(name))]
        statuses = Counter(status for status, _ in met)
        calls = {f"contigs_{status}": statuses[status] for status in CONTIG_STATUSES}
        calls["contigs_virus"] = sum(is_virus is True for _, is_virus in met)
    return {
        **counts,
        **receipt.seconds,
        **calls,
        "distinct_sequences": counts.get("sequences", 0),
        "tokens": counts.get("tokens", 0),
        "inherited_vectors": counts.get("inherited"),
        "load_s": pool.get("load_s"),
        "tokens_per_s": f"{counts.get('computed_tokens', 0) / device_s:.0f}" if device_s > 0 else None,
        "precision": pool.get("precision"),
        "devices": pool.get("devices"),
        "synthetic_weights": ",".join(sorted(synthetic)),
        "run": receipt.run,
    }


def _synthetic(file: EmbeddingsFile) -> set[str]:
    """The models of a results file whose weights are random."""
    return {model for model, attributes in file.models.items() if attributes["synthetic"]}


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
        contigs: Those to be listed, sample and call, the highest score first.
        contig_count: How many there are.
        points: By model.
        pools: By name, in the order in which they are met.
        synthetic: Models whose weights are random.
    """

    samples: list[SampleTally] = field(default_factory=list)
    lengths: Counter[tuple[float, str]] = field(default_factory=Counter)
    contigs: list[tuple[str, ContigCall]] = field(default_factory=list)
    contig_count: int = 0
    points: dict[str, Points] = field(default_factory=dict)
    pools: dict[str, PoolTally] = field(default_factory=dict)
    synthetic: set[str] = field(default_factory=set)


def count_results(results: Results, spool: Path, seed: int) -> Tally:
    """Count.

    Args:
        results: What there is.
        spool: Where the pools left their history.
        seed: For the choice of points.

    Raises:
        HoldfastError: a file that is missing, or cannot be read.
    """
    receipts = results.receipts
    chosen = _choose(receipts, seed)
    tally = Tally()
    found: dict[str, list[tuple[np.ndarray, list[str]]]] = defaultdict(list)
    totals: Counter[str] = Counter()
    by_sample = not (results.called or any(entry.label for entry in results.samples.values()))
    for name in results.done:
        entry = results.samples[name]
        _count_pool(tally, receipts[name], spool)
        sample = SampleTally(name)
        tally.samples.append(sample)
        with EmbeddingsFile(results.embeddings(name)) as file:
            outcomes = _count_records(tally, sample, file, results.contigs(name) if name in results.called else None)
            sample.outcomes.update(outcomes)
            tally.synthetic |= _synthetic(file)
            for model in file.models:
                shown = file.matrix_of(model) or file.matrix_of(model, "max") or file.matrix_of(model, "cls")
                if shown is None:
                    continue
                rows = chosen[name][chosen[name] < file.row_count]
                records, matrix = file.take(rows, shown)
                totals[model] += file.row_count
                groups = [name if by_sample else _group(entry, outcomes[record]) for record in records.tolist()]
                found[model].append((matrix, groups))
    for model, parts in found.items():
        matrix = np.concatenate([part for part, _ in parts])
        tally.points[model] = Points(matrix, [group for _, groups in parts for group in groups], totals[model])
    tally.contigs = _highest(tally.contigs)
    return tally


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
    return f"called {outcome}" if outcome in (VIRUS, NON_VIRAL) else entry.kind


def _count_pool(tally: Tally, receipt: Receipt, spool: Path) -> None:
    name = _pool_of(receipt)
    if name not in tally.pools:
        moments = read_moments(spool / "pools" / f"{Path(name).name}.tsv") if name else []
        tally.pools[name] = PoolTally(name, moments=moments)
    pool = tally.pools[name]
    pool.devices = str(receipt.pool.get("devices", ""))
    pool.load_s = number(receipt.pool.get("load_s"))
    pool.device_s += receipt.seconds.get("device_s", 0.0)
    pool.tokens += receipt.counts.get("tokens", 0)
    pool.samples += 1


def _count_records(tally: Tally, sample: SampleTally, file: EmbeddingsFile, contigs: Path | None) -> list[str]:
    """Count chunks, and scores and lengths where the sample is called; the outcome of each record."""
    places = [np.empty(0, np.int64)]
    places += [block.record * np.int64(2**31) + block.chunk for block in file.blocks()]
    lengths_bp = np.zeros(0, np.int64)
    statuses: list[str] = []
    for records in file.record_blocks():
        lengths_bp = np.concatenate([lengths_bp, records.length])
        statuses += records.status
    if file.kind == "contigs":
        with_frames = np.unique(np.concatenate(places), return_counts=True)[1]
        sample.frames += np.bincount(with_frames, minlength=len(FRAMES) + 1)
        sample.frames[0] = (-(-lengths_bp // file.chunk_length_bp)).sum() - len(with_frames)
    if contigs is None:
        return ["embedded" if status == "ok" else status for status in statuses]
    return _count_contigs(tally, sample, contigs, len(statuses))


def _count_contigs(tally: Tally, sample: SampleTally, path: Path, records: int) -> list[str]:
    """Count the calls of a sample; the outcome of each of its records."""
    outcomes = []
    for call in read_contigs(path):
        outcomes.append(call.outcome)
        tally.contigs.append((sample.name, call))
        if call.score is not None:
            sample.scores[min(int(call.score * SCORE_BINS), SCORE_BINS - 1)] += 1
        if call.length_bp:
            place = np.floor(np.log10(call.length_bp) * LENGTH_BINS_A_DECADE) / LENGTH_BINS_A_DECADE
            tally.lengths[round(float(10**place), 3), call.outcome] += 1
        if len(tally.contigs) > 5 * LISTED:
            tally.contigs = _highest(tally.contigs)
    if len(outcomes) != records:
        raise InputError(f"has {len(outcomes)} contigs, but there are {records} records; run again", path)
    tally.contig_count += len(outcomes)
    return outcomes


def _highest(contigs: list[tuple[str, ContigCall]]) -> list[tuple[str, ContigCall]]:
    def score(entry: tuple[str, ContigCall]) -> float:
        return -1.0 if entry[1].score is None else entry[1].score

    return sorted(contigs, key=score, reverse=True)[:LISTED]
