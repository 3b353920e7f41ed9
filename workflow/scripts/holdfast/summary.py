"""The summary table: what came out of every sample, and what it cost."""

from collections import Counter
from pathlib import Path

from . import embeddings, receipt
from .configuration import Sample, read_samples
from .errors import ResourceError
from .files import atomic_text

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
    "load_s",
    "read_s",
    "device_s",
    "total_s",
    "tokens_per_s",
    "precision",
    "devices",
    "synthetic_weights",
)


def write(sheet: Path, schema: Path, results: Path, output: Path) -> None:
    """Write ``summary.tsv`` from receipts, embeddings and calls; a cell that does not apply is empty.

    ``load_s`` is the pool's time to load its models, the same for all its samples; ``device_s`` is the sample's share
    of the batches it was in, by tokens; ``tokens_per_s`` is tokens over ``device_s``.
    """
    with atomic_text(output) as file:
        file.write("\t".join(COLUMNS) + "\n")
        for entry in read_samples(sheet, schema).values():
            row = _row(entry, results / entry.sample)
            file.write("\t".join(str(row.get(column, "")) for column in COLUMNS) + "\n")


def _row(entry: Sample, directory: Path) -> dict[str, object]:
    outcome = receipt.read(directory / "receipt.json")
    if outcome is None:
        raise ResourceError(f"{directory}/receipt.json: is missing; run again")
    with embeddings.Reader(directory / "embeddings.h5") as file:
        synthetic = sorted(model for model, attributes in file.models.items() if attributes["synthetic"])
    counts = outcome.counts
    tokens = sum(value for name, value in counts.items() if name.endswith("_tokens"))
    seconds = outcome.seconds
    row: dict[str, object] = {
        "sample": entry.sample,
        "kind": entry.kind,
        "label": entry.label,
        **counts,
        **seconds,
        "distinct_sequences": sum(value for name, value in counts.items() if name.endswith("_sequences")),
        "tokens": tokens,
        "load_s": outcome.pool.get("load_s", ""),
        "tokens_per_s": f"{tokens / seconds['device_s']:.0f}" if seconds.get("device_s") else "",
        "precision": outcome.pool.get("precision", ""),
        "devices": outcome.pool.get("devices", ""),
        "synthetic_weights": ",".join(synthetic),
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
