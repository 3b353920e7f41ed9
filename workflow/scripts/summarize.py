"""Write the summary table: one row a sample."""

import argparse
from pathlib import Path

from holdfast import summary
from holdfast.errors import run


def main() -> None:
    """Read the receipts and calls below ``results/``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path, help="sample sheet")
    parser.add_argument("--schema", type=Path, required=True, help="schema of the sample sheet")
    parser.add_argument("--results", type=Path, required=True, help="directory of the results")
    parser.add_argument("--output", type=Path, required=True, metavar="summary.tsv")
    arguments = parser.parse_args()
    summary.write(arguments.samples, arguments.schema, arguments.results, arguments.output)


if __name__ == "__main__":
    run(main)
