"""The commands that rules call when every sample has a receipt: what failed, the summary, the report."""

import argparse
from collections.abc import Callable

from .cli_rules import add_calls, add_outcome, add_results, path, results_of

Arguments = argparse.Namespace
Parser = argparse.ArgumentParser


def list_failures(parser: Parser) -> Callable[[Arguments], None]:
    """List the samples that failed, and the rows that were given up, from the receipts."""
    add_results(parser)
    parser.add_argument("--output", type=path, required=True, metavar="failures.tsv")

    def do(given: Arguments) -> None:
        from .run.config import read_samples
        from .run.failures import write_failures

        write_failures(read_samples(given.samples), given.results, given.output)

    return do


def check_samples(parser: Parser) -> Callable[[Arguments], None]:
    """Exit 2 with the names of the samples that failed, if there are any."""
    parser.add_argument("failures", type=path, help="table of what failed")

    def do(given: Arguments) -> None:
        from .run.failures import check_samples

        check_samples(given.failures)

    return do


def summarize(parser: Parser) -> Callable[[Arguments], None]:
    """Write the summary table: one row a sample."""
    add_outcome(parser)
    parser.add_argument("--output", type=path, required=True, metavar="summary.tsv")

    def do(given: Arguments) -> None:
        from .report.summary import write_summary

        write_summary(results_of(given), given.output)

    return do


def draw(parser: Parser) -> Callable[[Arguments], None]:
    """Draw the report of a run, report.html, and figures/ beside it; the captions say which figures."""
    add_outcome(parser)
    add_calls(parser)
    parser.add_argument("--summary", type=path, required=True, help="table of the samples")
    parser.add_argument("--runs", type=path, required=True, help="where running Snakemakes keep their plans")
    parser.add_argument("--spool", type=path, required=True, help="where the pools left their record")
    parser.add_argument("--calibration", type=path, nargs="?", metavar="JSON", help="what calibrates it, if any")
    parser.add_argument("--projection", choices=("pca", "umap"), required=True)
    parser.add_argument("--seed", type=int, required=True, help="of the choice of points, and of UMAP")
    parser.add_argument("--template", type=path, required=True, metavar="page.html")
    parser.add_argument("--captions", type=path, nargs="+", required=True, metavar="FIGURE.rst")

    def do(given: Arguments) -> None:
        import vl_convert

        from .processes import beside
        from .report.charts import Choices
        from .report.page import VEGA, write_report
        from .report.tally import count_results
        from .results.presets import choose_rules

        with beside(1) as process:  # more than a second's work, as the reading is
            vega = process.submit(vl_convert.javascript_bundle, VEGA)
            results = results_of(given)
            tally = count_results(results, given.spool, given.seed)
            rules = choose_rules(given.calls)
            method = (given.projection, given.seed)
            choices = Choices(results.directory, results.classifier, given.calibration, rules, *method)
            written = (given.template, given.captions, vega.result())
            write_report(results, given.summary, given.runs, tally, choices, *written)

    return do
