"""Commands between embeddings and calls: train and calibrate a classifier, call a sample, put all samples together.

Only rules call them. Each is a function as those of :mod:`.cli`, which has the rest of the command line.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report.results import Results

Arguments = argparse.Namespace
Parser = argparse.ArgumentParser


def add_calls(parser: Parser) -> None:
    """Take what the config says under ``calls``."""
    parser.add_argument("--calls", type=json.loads, required=True, metavar="JSON", help="the key calls of the config")


def add_results(parser: Parser) -> None:
    """Take the samples of a run, and where their results are."""
    parser.add_argument("samples", type=Path, help="sample sheet")
    parser.add_argument("--results", type=Path, required=True, help="directory of the results")


def add_outcome(parser: Parser) -> None:
    """Take the samples of a run, what failed of them, and what they were called with."""
    add_results(parser)
    parser.add_argument("--failures", type=Path, required=True, help="table of what failed")
    parser.add_argument("--classifier", type=Path, nargs="*", default=[], help="that contigs are called with, if any")
    parser.add_argument("--trained", action="store_true", help="labelled samples train it, and are not called")


def results_of(given: Arguments) -> "Results":
    """What :func:`add_outcome` has taken."""
    from .report.results import read_results

    classifier = given.classifier[0] if given.classifier else None
    return read_results(given.samples, given.results, given.failures, classifier, given.trained)


def _add_method(parser: Parser) -> None:
    parser.add_argument("--protein", metavar="NAME", help="the protein model; the only one without")
    parser.add_argument("--dna", metavar="NAME", help="the DNA model; the only one without")


def _method(given: Arguments) -> dict[str, str | None]:
    return {"protein": given.protein, "dna": given.dna}


def _add_labelled(parser: Parser) -> None:
    parser.add_argument("--virus", nargs="+", default=[], metavar="H5", help="embeddings of samples labelled virus")
    parser.add_argument("--non-viral", nargs="+", default=[], metavar="H5", help="of samples labelled non-viral")


def _labelled(given: Arguments) -> list[tuple[str | Path, str]]:
    return [(path, "virus") for path in given.virus] + [(path, "non-viral") for path in given.non_viral]


def _add_margin(parser: Parser) -> None:
    parser.add_argument("--margin", type=float, required=True, help="from which a chunk is confident")


def train(parser: Parser) -> Callable[[Arguments], None]:
    """Train the classifier on the embeddings of labelled samples."""
    _add_labelled(parser)
    parser.add_argument("--seed", type=int, required=True, help="of split, weights, order and dropout")
    _add_margin(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the classifier and its figures")
    _add_method(parser)

    def do(given: Arguments) -> None:
        from .results.training import train

        trained = train(_labelled(given), given.seed, margin=given.margin, method=_method(given))
        calibration = trained.write(given.output)
        print(f"{trained.summary()}\n{calibration.summary()}")

    return do


def calibrate(parser: Parser) -> Callable[[Arguments], None]:
    """Calibrate a classifier that was given on the embeddings of labelled samples."""
    _add_labelled(parser)
    parser.add_argument("--classifier", type=Path, required=True, help="a .safetensors")
    _add_margin(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="calibration.json")
    _add_method(parser)

    def do(given: Arguments) -> None:
        from .results.calibration import calibrate_classifier

        found = calibrate_classifier(_labelled(given), given.classifier, _method(given), given.margin)
        found.write(given.output)
        print(found.summary())

    return do


def classify(parser: Parser) -> Callable[[Arguments], None]:
    """Classify the frames of a sample, call its contigs, and write the sequences of its viruses."""
    parser.add_argument("embeddings", type=Path, help="embeddings of the sample")
    parser.add_argument("--classifier", type=Path, required=True, help="a .safetensors")
    add_calls(parser)
    parser.add_argument("--fasta", type=Path, required=True, help="sequence file of the sample")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the tables")
    parser.add_argument("--calibration", type=Path, metavar="JSON", help="what calibrates the classifier")
    parser.add_argument("--virnucpro", action="store_true", help="also write VirNucPro's own two files, DIR/virnucpro/")
    parser.add_argument("--viruses", type=Path, required=True, metavar="virus.fna", help="with .gz at its end, as BGZF")
    _add_method(parser)

    def do(given: Arguments) -> None:
        from .results.calls import classify_contigs
        from .results.presets import choose_rules
        from .results.viruses import write_viruses

        calls = (given.embeddings, given.classifier, choose_rules(given.calls), given.output)
        classify_contigs(*calls, _method(given), given.virnucpro, given.calibration)
        write_viruses(given.viruses, given.fasta, given.embeddings, given.output)

    return do


def combine(parser: Parser) -> Callable[[Arguments], None]:
    """Put the contigs of all samples into one table, and the sequences of their viruses into one file."""
    add_outcome(parser)
    parser.add_argument("--contigs", type=Path, required=True, metavar="contigs.tsv")
    parser.add_argument("--viruses", type=Path, required=True, metavar="virus.fna", help="named as each sample's")

    def do(given: Arguments) -> None:
        from .results.viruses import combine

        combine(results_of(given).called, given.results, given.contigs, given.viruses)

    return do
