"""Draw the report of a run: figures, and one page with figures, captions and contigs."""

import argparse
from pathlib import Path

from holdfast import figures, page, projection, tally
from holdfast.errors import run


def main() -> None:
    """Read the results, and write ``report.html`` and ``figures/`` beside them; the captions say what to draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path, help="sample sheet")
    parser.add_argument("--schema", type=Path, required=True, help="schema of the sample sheet")
    parser.add_argument("--results", type=Path, default=Path("results"), help="directory of the results")
    parser.add_argument("--spool", type=Path, required=True, help="where the pools left their pace")
    parser.add_argument("--threshold", type=float, required=True, help="score from which on a contig is a virus")
    parser.add_argument("--projection", choices=projection.METHODS, default=projection.METHODS[0])
    parser.add_argument("--seed", type=int, default=1, help="of the choice of points, and of UMAP")
    parser.add_argument("--template", type=Path, required=True, metavar="page.html")
    parser.add_argument("--captions", type=Path, nargs="+", required=True, metavar="FIGURE.rst")
    arguments = parser.parse_args()
    counted = tally.count(arguments.samples, arguments.schema, arguments.results, arguments.spool, arguments.seed)
    told = figures.Told(arguments.results, arguments.threshold, arguments.projection, arguments.seed)
    drawn = figures.write([path.stem for path in arguments.captions], counted, told)
    page.write(arguments.template, arguments.captions, drawn, counted, told)


if __name__ == "__main__":
    run(main)
