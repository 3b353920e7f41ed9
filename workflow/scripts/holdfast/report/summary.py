"""The summary: a table with one row a sample, from receipts and calls.

Tables are read line by line, so that a sample of millions of contigs takes no memory.
"""

from collections import Counter, defaultdict
from pathlib import Path

from ..files import atomic_text
from ..results.classifier import VIRUS
from ..results.contigs import read_contigs
from ..results.decisions import DECISIONS, TIERS
from ..run.provenance import describe_pools, number, sha256
from ..spool.job import Receipt
from .results import Results

STATUSES = ("truncated", "windowed", "no_stop_free_frame", "too_short", "too_long", "bad_letters", "failed")
VIRUS_TIERS = tuple(f"virus_{tier}" for tier in reversed(TIERS))
SUMMARY_COLUMNS = (
    *("sample", "kind", "label", "state", "records", "length_bp", "length_aa", "genetic_code"),
    *("virus", *VIRUS_TIERS, "virus_fdr", "ambiguous", "non_viral", "not_called", *STATUSES),
    *("rows", "distinct_sequences", "tokens", "inherited_vectors", "cached_vectors"),
    *("load_s", "load_share_s", "read_s", "device_s", "total_s", "tokens_per_s", "device_busy"),
    *("precision", "devices", "synthetic_weights", "classifier_sha256", "run"),
)


def write_summary(results: Results, output: Path) -> None:
    """Write ``summary.tsv``; a cell that does not apply is empty, and of a failed sample all are but the first four.

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
        work_s[receipt.pool_id].append(receipt.seconds.get("device_s", 0.0))
    pools = describe_pools(receipts.values())
    classifier_sha256 = sha256(results.classifier) if results.classifier else None
    called = frozenset(results.called)
    with atomic_text(output) as file:
        file.write("\t".join(SUMMARY_COLUMNS) + "\n")
        for name, entry in results.samples.items():
            row: dict[str, object] = {"sample": name, "kind": entry.kind, "label": entry.label, "state": "failed"}
            if name in receipts:
                receipt = receipts[name]
                row |= {"state": "done", **_work(receipt, entry.kind)}
                row |= {"device_busy": pools[receipt.pool_id]["device_busy"]}
                row |= {"load_share_s": _load_share_s(receipt, work_s[receipt.pool_id])}
            if name in called:
                row |= _calls(results.contigs(name)) | {"classifier_sha256": classifier_sha256}
            cells = (row.get(column) for column in SUMMARY_COLUMNS)
            file.write("\t".join("" if cell is None else str(cell) for cell in cells) + "\n")


def _load_share_s(receipt: Receipt, work_s: list[float]) -> float:
    """A sample's share of the load of its pool: by its work among all of the pool's samples, or even."""
    own_s, total_s = receipt.seconds.get("device_s", 0.0), sum(work_s)
    share = own_s / total_s if total_s > 0 else 1 / len(work_s)
    return round(number(receipt.pool.get("load_s")) * share, 3)


def _work(receipt: Receipt, kind: str) -> dict[str, object]:
    """The cells that a receipt fills."""
    counts, pool = receipt.counts, receipt.pool
    device_s = receipt.seconds.get("device_s", 0.0)
    return {
        **counts,
        **receipt.seconds,
        "length_aa" if kind == "proteins" else "length_bp": counts.get("letters"),
        "genetic_code": receipt.genetic_code or None,
        "synthetic_weights": ",".join(sorted(receipt.synthetic)),
        "distinct_sequences": counts.get("sequences", 0),
        "tokens": counts.get("tokens", 0),
        "inherited_vectors": counts.get("inherited"),
        "cached_vectors": counts.get("cached"),
        "load_s": pool.get("load_s"),
        "tokens_per_s": f"{counts.get('computed_tokens', 0) / device_s:.0f}" if device_s > 0 else None,
        "precision": pool.get("precision"),
        "devices": pool.get("devices"),
        "run": receipt.run,
    }


def _calls(path: Path) -> dict[str, object]:
    """The cells that a table of contigs fills."""
    met: Counter[tuple[str, str | None]] = Counter()
    expected_false, calibrated = 0.0, False
    for call in read_contigs(path):
        met[call.decision, call.tier] += 1
        if call.is_virus and call.p_virus is not None:
            expected_false, calibrated = expected_false + 1 - call.p_virus, True
    decisions = {name: sum(met[name, tier] for tier in (*TIERS, None)) for name in DECISIONS}
    return {
        **{name.replace(" ", "_").replace("-", "_"): count for name, count in decisions.items()},
        **{f"virus_{tier}": met["virus", tier] for tier in TIERS},
        "virus_fdr": f"{expected_false / decisions[VIRUS]:.4g}" if calibrated else None,
    }
