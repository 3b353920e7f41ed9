"""Say where the demo's results are and what came out."""

import csv
import json
import sys
from pathlib import Path


def main() -> None:
    """Print a line for each sample, the held-out accuracy, and the paths."""
    results = Path(sys.argv[1])
    metrics = json.loads((results / "classifier" / "metrics.json").read_text())
    with open(results / "summary.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    print(
        f"\n{'sample':<18} {'kind':<9} {'records':>7} {'embedded':>8} {'called':>6} {'virus':>5} {'no open frame':>13}"
    )
    for row in rows:
        cells = [row[name] for name in ("records", "rows", "contigs_called", "contigs_virus", "contigs_no_open_frame")]
        records, embedded, called, virus, frameless = (cell or "-" for cell in cells)
        print(f"{row['sample']:<18} {row['kind']:<9} {records:>7} {embedded:>8} {called:>6} {virus:>5} {frameless:>13}")
    print(
        f"\nHeld-out contigs of the training samples: {metrics['contig_accuracy']:.1%} called right "
        f"({metrics['accuracy']:.1%} of their frames, AUC {metrics['auc']:.3f})."
    )
    synthetic = sorted({name for row in rows for name in row["synthetic_weights"].split(",") if name})
    if synthetic:
        print(f"SYNTHETIC WEIGHTS: {' and '.join(synthetic)} have seeded random weights; the calls mean nothing.")
    print(f"Results: {results}/summary.tsv and {results}/SAMPLE/{{embeddings.h5,frames.tsv,chunks.tsv,contigs.tsv}}")


if __name__ == "__main__":
    main()
