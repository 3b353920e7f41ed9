"""The summary table: what came out of every sample, and what it cost."""

from collections import Counter, defaultdict
from pathlib import Path

from . import embeddings, provenance, receipt
from .configuration import Sample, read_samples
from .errors import ResourceError
from .files import atomic_text
from .models import MODELS
from .receipt import Receipt

STATUSES = ("called", "no_open_frame", "too_short", "failed")
COLUMNS = (
    "sample",
    "kind",
    "label",
    "records",
    "too_short",
    "too_long",
    "rows",
    "distinct_sequences",
    "tokens",
    *(f"contigs_{status}" for status in STATUSES),
    "contigs_virus",
    "inherited_vectors",
    "load_s",
    "load_share_s",
    "read_s",
    "device_s",
    "total_s",
    "tokens_per_s",
    "device_busy",
    "precision",
    "devices",
    "synthetic_weights",
    "run",
)


def write(sheet: Path, schema: Path, results: Path, output: Path) -> None:
    """Write ``summary.tsv`` from receipts, embeddings and calls; a cell that does not apply is empty.

    ``load_s`` is the pool's time to load its models, the same for all its samples, and ``load_share_s`` the sample's
    share of that, by ``device_s`` among the pool's samples in this table. ``device_s`` is the sample's share of the
    batches it was in, by tokens; ``tokens_per_s`` is the tokens in that share over it. ``device_busy`` is the pool's.
    """
    samples = read_samples(sheet, schema)
    receipts = {name: _receipt(results / name) for name in samples}
    work: dict[object, list[float]] = defaultdict(list)
    for outcome in receipts.values():
        work[outcome.pool.get("id")].append(outcome.seconds.get("device_s", 0.0))
    pools = provenance.pools(receipts.values())
    with atomic_text(output) as file:
        file.write("\t".join(COLUMNS) + "\n")
        for entry in samples.values():
            outcome = receipts[entry.sample]
            row = _row(entry, results / entry.sample, outcome)
            row["load_share_s"] = _load_share_s(outcome, work[outcome.pool.get("id")])
            row["device_busy"] = pools[str(outcome.pool.get("id", ""))]["device_busy"]
            cells = (row.get(column) for column in COLUMNS)
            file.write("\t".join("" if cell is None else str(cell) for cell in cells) + "\n")


def _receipt(directory: Path) -> Receipt:
    outcome = receipt.read(directory / "receipt.json")
    if outcome is None:
        raise ResourceError(f"{directory}/receipt.json: is missing; run again")
    return outcome


def _load_share_s(outcome: Receipt, work_s: list[float]) -> float:
    """A sample's share of the load of its pool: by its work among all of the pool's samples, or even."""
    own_s, total_s = outcome.seconds.get("device_s", 0.0), sum(work_s)
    share = own_s / total_s if total_s > 0 else 1 / len(work_s)
    return round(provenance.number(outcome.pool.get("load_s")) * share, 3)


def _row(entry: Sample, directory: Path, outcome: Receipt) -> dict[str, object]:
    with embeddings.Reader(directory / "embeddings.h5") as file:
        synthetic = sorted(model for model, attributes in file.models.items() if attributes["synthetic"])
    counts, seconds = outcome.counts, outcome.seconds
    device_s = seconds.get("device_s", 0.0)
    row: dict[str, object] = {
        "sample": entry.sample,
        "kind": entry.kind,
        "label": entry.label,
        **counts,
        **seconds,
        "distinct_sequences": sum(counts.get(f"{model}_sequences", 0) for model in MODELS),
        "tokens": sum(counts.get(f"{model}_tokens", 0) for model in MODELS),
        "inherited_vectors": counts.get("inherited"),
        "load_s": outcome.pool.get("load_s"),
        "tokens_per_s": f"{counts.get('computed_tokens', 0) / device_s:.0f}" if device_s > 0 else None,
        "precision": outcome.pool.get("precision"),
        "devices": outcome.pool.get("devices"),
        "synthetic_weights": ",".join(synthetic),
        "run": outcome.run,
    }
    calls = directory / "contigs.tsv"
    if calls.exists():
        with open(calls, encoding="utf-8") as file:
            header = file.readline().rstrip("\n").split("\t")
            rows = [dict(zip(header, line.rstrip("\n").split("\t"), strict=True)) for line in file]
        found = Counter(call["status"] for call in rows)
        row |= {f"contigs_{status}": found[status] for status in STATUSES}
        row["contigs_virus"] = sum(call["is_virus"] == "True" for call in rows)
    return row
