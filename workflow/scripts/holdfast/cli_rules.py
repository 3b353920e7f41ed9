"""The commands that only rules call: hand in and collect, train and classify, combine, count and draw.

Each is a function as those of :mod:`.cli`, which has the commands for people.
"""

import argparse
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .report.results import Results

Arguments = argparse.Namespace
Parser = argparse.ArgumentParser


def path(text: str) -> Path:
    """A path of the command line; ``~`` is the home directory, which shells overlook in ``--output=~/x``."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    return Path(os.path.expanduser(text))


def add_calls(parser: Parser) -> None:
    """Take what the config says under ``calls``."""
    parser.add_argument("--calls", type=json.loads, required=True, metavar="JSON", help="the key calls of the config")


def add_results(parser: Parser) -> None:
    """Take the samples of a run, and where their results are."""
    parser.add_argument("samples", type=path, help="sample sheet")
    parser.add_argument("--results", type=path, required=True, help="directory of the results")


def add_outcome(parser: Parser) -> None:
    """Take the samples of a run, what failed of them, and what they were called with."""
    add_results(parser)
    parser.add_argument("--failures", type=path, required=True, help="table of what failed")
    parser.add_argument("--classifier", type=path, nargs="*", default=[], help="that contigs are called with, if any")
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


def _add_calling(parser: Parser) -> None:
    add_calls(parser)
    parser.add_argument("--calibration", type=path, nargs="?", metavar="JSON", help="what calibrates it, if any")
    parser.add_argument("--virnucpro", action="store_true", help="also write VirNucPro's own two files, DIR/virnucpro/")
    _add_method(parser)


def _calling(given: Arguments) -> dict[str, Any]:
    """What :func:`_add_calling` has taken, as :class:`.calls.Caller` takes it."""
    names = ("calls", "virnucpro", "calibration")
    return {**{name: getattr(given, name) for name in names}, "method": _method(given)}


def _labelled(given: Arguments) -> list[tuple[str | Path, str]]:
    """Embeddings and label of every labelled sample."""
    from .run.config import labelled_files

    return [*labelled_files(given.samples, given.results)]


def _add_margin(parser: Parser) -> None:
    parser.add_argument("--margin", type=float, required=True, help="from which a chunk is confident")


def _be_left_alone() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def submit(parser: Parser) -> Callable[[Arguments], None]:
    """Hand in the jobs of one consumer, wait, and write a receipt for every sample, done or failed."""
    parser.add_argument("plan", type=path, help="plan of the run")
    parser.add_argument("--consumer", type=int, required=True, help="its number in the plan")
    parser.add_argument("--models", nargs="+", type=path, required=True, metavar="model.json", help="prepared models")
    parser.add_argument("--spool", type=path, required=True, help="where to hand the jobs in")
    parser.add_argument("--endpoint", type=path, help="endpoint file of the pool that was started for them")
    parser.add_argument("--classifier", type=path, help="that frames will be classified with; checked before all else")
    parser.add_argument("--patience-s", type=float, metavar="S", help="give up when no pool could do them for S")
    parser.add_argument("--results", type=path, required=True, help="directory of the results, where receipts go")

    def do(given: Arguments) -> None:
        from .run.client import submit_planned

        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's: consumers are many, and take no core of a pool's
        if given.endpoint:  # a scheduler, or Ctrl-C, signals all; the pool needs its time, and says when it has ended
            _be_left_alone()
        directories = [path.parent for path in given.models]
        waiting = (given.spool, given.endpoint, given.results, given.patience_s, given.classifier)
        for outcome in submit_planned(given.plan, given.consumer, directories, *waiting):
            print(f"{outcome.sample}: {outcome.state}{': ' if outcome.error else ''}{outcome.error}")

    return do


def share(parser: Parser) -> Callable[[Arguments], None]:
    """Wait while other replicas have large samples in work, so that this one's pool lives and takes parts of them."""
    parser.add_argument("plan", type=path, help="plan of the run")
    parser.add_argument("--results", type=path, required=True, help="directory of the results")
    parser.add_argument("--endpoint", type=path, required=True, help="endpoint file of this replica's pool")
    parser.add_argument("--output", type=path, required=True, help="an empty file, written in the end")

    def do(given: Arguments) -> None:
        from .run.client import await_samples
        from .run.plan import load_plan

        _be_left_alone()
        await_samples(load_plan(given.plan), given.results, given.endpoint)
        given.output.touch()

    return do


def collect(parser: Parser) -> Callable[[Arguments], None]:
    """Fetch the embeddings of a sample from the spool, or exit 2 with the error of its job."""
    parser.add_argument("receipt", type=path, help="receipt of the sample")
    parser.add_argument("--fasta", type=path, required=True, help="sequence file of the sample")
    parser.add_argument("--output", type=path, required=True, metavar="OUT.h5")
    parser.add_argument("--records", type=path, required=True, metavar="records.tsv")

    def do(given: Arguments) -> None:
        from .run.client import collect_embeddings

        collect_embeddings(given.receipt, given.fasta, given.output, given.records)

    return do


def train(parser: Parser) -> Callable[[Arguments], None]:
    """Train the classifier on the embeddings of labelled samples."""
    add_results(parser)
    parser.add_argument("--seed", type=int, required=True, help="of split, weights, order and dropout")
    _add_margin(parser)
    parser.add_argument("--output", type=path, required=True, metavar="DIR", help="for the classifier and its figures")
    _add_method(parser)

    def do(given: Arguments) -> None:
        from .results.training import train

        trained = train(_labelled(given), given.seed, margin=given.margin, method=_method(given))
        calibration = trained.write(given.output)
        print(f"{trained.summary()}\n{calibration.summary()}")

    return do


def calibrate(parser: Parser) -> Callable[[Arguments], None]:
    """Calibrate a classifier that was given on the embeddings of labelled samples."""
    add_results(parser)
    parser.add_argument("--classifier", type=path, required=True, help="a .safetensors")
    _add_margin(parser)
    parser.add_argument("--output", type=path, required=True, metavar="calibration.json")
    _add_method(parser)

    def do(given: Arguments) -> None:
        from .results.calibration import calibrate_classifier

        found = calibrate_classifier(_labelled(given), given.classifier, _method(given), given.margin)
        found.write(given.output)
        print(found.summary())

    return do


def classify(parser: Parser) -> Callable[[Arguments], None]:
    """Classify the frames of a sample, call its contigs, and write the sequences of its viruses."""
    parser.add_argument("embeddings", type=path, help="embeddings of the sample")
    parser.add_argument("--classifier", type=path, required=True, help="a .safetensors")
    parser.add_argument("--fasta", type=path, required=True, help="sequence file of the sample")
    parser.add_argument("--output", type=path, required=True, metavar="DIR", help="for the tables")
    parser.add_argument("--viruses", type=path, required=True, metavar="virus.fna", help="as BGZF with .gz at its end")
    _add_calling(parser)

    def do(given: Arguments) -> None:
        from .results.calls import Caller

        caller = Caller(given.classifier, **_calling(given))
        caller.call(given.embeddings, given.fasta, given.output, given.viruses)

    return do


def classify_small(parser: Parser) -> Callable[[Arguments], None]:
    """Call the small samples that are still to be called, as ``classify`` does, many in one process."""
    add_outcome(parser)
    parser.add_argument("--made", type=path, required=True, metavar="DIR", help="for a directory a sample")
    parser.add_argument("--viruses", required=True, metavar="NAME", help="of the file of sequences")
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--output", type=path, required=True, help="keeps by which rules contigs were called")
    _add_calling(parser)

    def do(given: Arguments) -> None:
        from .files import atomic_text
        from .run.calling import call_small, find_small

        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's: the matrices are small
        results, calling = results_of(given), _calling(given)
        rules = json.dumps({**calling, "viruses": given.viruses}, default=str, sort_keys=True)
        anew = given.output.exists() and given.output.read_text() != rules
        samples = [(results.samples[name], results.receipts[name]) for name in results.called]
        known = [given.classifier[0], *filter(None, [given.calibration])]
        tasks = list(find_small(samples, given.results, given.made, known, anew))
        called = call_small(tasks, given.processes, given.viruses, {"classifier": given.classifier[0], **calling})
        print(f"{called} of {len(samples)} samples called together; rule classify_contigs calls the others")
        with atomic_text(given.output) as file:
            file.write(rules)

    return do


def combine(parser: Parser) -> Callable[[Arguments], None]:
    """Put the contigs of all samples into one table, and the sequences of their viruses into one file."""
    add_outcome(parser)
    parser.add_argument("--contigs", type=path, required=True, metavar="contigs.tsv")
    parser.add_argument("--viruses", type=path, required=True, metavar="virus.fna", help="named as each sample's")

    def do(given: Arguments) -> None:
        from .results.viruses import combine

        combine(results_of(given).called, given.results, given.contigs, given.viruses)

    return do
