"""Say where the demo's results are and what came out."""

import csv
import json
import sys
from pathlib import Path


def main() -> None:
    """Print a line for each sample, the held-out accuracy where weights are real, and the paths."""
    results = Path(sys.argv[1])
    metrics = json.loads((results / "classifier" / "metrics.json").read_text())
    with open(results / "summary.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    synthetic = sorted({name for row in rows for name in row["synthetic_weights"].split(",") if name})
    line = "{:<18} {:<9} {:>7} {:>8} {:>6} {:>9} {:>10} {:>11}".format
    print("\n" + line("sample", "kind", "records", "embedded", "virus", "ambiguous", "non-viral", "not called"))
    for row in rows:
        counts = ("records", "rows", "virus", "ambiguous", "non_viral", "not_called")
        print(line(row["sample"], row["kind"], *(row[name] or "-" for name in counts)))
    if synthetic:
        print(f"\nSYNTHETIC WEIGHTS: {' and '.join(synthetic)} have seeded random weights; the calls mean nothing.")
    else:
        print(
            f"\nHeld-out contigs of the training samples: {metrics['contig_accuracy']:.1%} called right "
            f"({metrics['accuracy']:.1%} of their frames, AUC {metrics['auc']:.3f})."
        )
    print(f"Results: {results}/report.html, {results}/summary.tsv, {results}/SAMPLE/")


if __name__ == "__main__":
    main()
