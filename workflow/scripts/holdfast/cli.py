"""The command ``holdfast COMMAND``: which arguments a command takes, and which function of the package does the work.

Nothing is decided here. Each command is one function below: its docstring is the help, it adds its arguments to a
parser and returns what to do with them. It imports the package's modules when it runs, so that light commands stay
light. The rules of the workflow call the same commands; those that are of use to rules alone are marked, and listed
nowhere.
"""

import argparse
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import __version__
from .cli_calls import calibrate, classify, combine, train
from .cli_report import check_samples, draw, list_failures, summarize
from .errors import ConfigError, guarded
from .models.registry import POLICIES, POOLINGS
from .sequences import GENETIC_CODES, STANDARD_CODE

Arguments = argparse.Namespace
Parser = argparse.ArgumentParser
Command = Callable[[Parser], Callable[[Arguments], None]]

PRECISIONS = ("auto", "fp32", "fp16", "bf16")

COMMANDS: dict[str, tuple[Command, str]] = {
    function.__name__.replace("_", "-"): (function, "")
    for function in (train, calibrate, classify, combine, list_failures, check_samples, summarize, draw)
}
"""By name: the function, and an example for people; empty where only rules call it."""


def command(name: str, example: str = "") -> Callable[[Command], Command]:
    """Put a function into :data:`COMMANDS`."""

    def add(function: Command) -> Command:
        COMMANDS[name] = function, example
        return function

    return add


def main(words: list[str] | None = None) -> None:
    """Run the command that the words name; ``sys.argv`` without words.

    Raises:
        SystemExit: always but on success: 2 for the user's input, 1 for input/output, see :mod:`.errors`.
    """
    parser = Parser(
        prog="holdfast",
        description="Language models that stay loaded while a Snakemake workflow works through its samples.",
        epilog="holdfast COMMAND --help says more of a command.",
    )
    parser.add_argument("--version", action="version", version=f"holdfast {__version__}")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (function, example) in COMMANDS.items():
        text = " ".join((function.__doc__ or "").split())
        described: dict[str, Any] = {"description": text, "epilog": example and f"Example: {example}"}
        if example:
            described["help"] = text.partition(". ")[0].rstrip(".")
        added = parsers.add_parser(name, **described)
        added.set_defaults(do=function(added))
    arguments = parser.parse_args(words)
    guarded(lambda: arguments.do(arguments))


@command("embed", "holdfast embed proteins.faa --model facebook/esm2_t33_650M_UR50D --output embeddings.h5")
def embed(parser: Parser) -> Callable[[Arguments], None]:
    """Embed one FASTA or FASTQ file with one model.

    Weights that are not prepared yet are fetched and prepared once, in the user's cache directory. The output's suffix
    says what is written: .h5 (as the workflow's), .npz (all in memory), .parquet (pyarrow) or .h5ad (anndata).
    """
    parser.add_argument("fasta", type=Path, metavar="FASTA", help="FASTA or FASTQ, of the letters that the model knows")
    parser.add_argument("--model", required=True, metavar="SOURCE", help="a prepared model, or what `prepare` takes")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help=".h5, .npz, .parquet or .h5ad")
    parser.add_argument("--layers", default="last", metavar="N,N", help="from 0 (embedding of tokens) on, or last")
    parser.add_argument("--pooling", default="mean", metavar="NAME,NAME", help="of mean, cls, max, residues")
    parser.add_argument("--long", choices=POLICIES, help="for sequences above --max-length; else what suits the model")
    parser.add_argument("--max-length", type=int, metavar="N", help="letters; else the model's own limit")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPUs, or the CPU")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: fp16 on GPUs, fp32 on a CPU")
    parser.add_argument("--store-dtype", choices=("float16", "float32"), default="float32", help="default: %(default)s")

    def do(given: Arguments) -> None:
        from .run.by_hand import embed_file

        asked = {
            "layers": _words("--layers", given.layers, r"last|\d{1,4}", "a number from 0 on, or last"),
            "pooling": _words("--pooling", given.pooling, "|".join(POOLINGS), f"one of {', '.join(POOLINGS)}"),
            "long": given.long,
            "max_length": given.max_length,
        }
        computed = (given.device, given.precision, given.store_dtype)
        print(embed_file(given.fasta, given.model, given.output, asked, *computed))

    return do


@command("prepare", "holdfast prepare facebook/esm2_t36_3B_UR50D --output models/esm2_3b")
def prepare(parser: Parser) -> Callable[[Arguments], None]:
    """Turn a published checkpoint into a prepared model: safetensors, compared with a reference implementation."""
    source = "fair-esm .pt file, Hugging Face directory or hub id, or synthetic:ARCHITECTURE for random weights"
    parser.add_argument("source", metavar="SOURCE", help=source)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="to write; complete or absent")
    parser.add_argument("--sha256", metavar="HEX", help="expected digest of the weights, checked before they are read")

    def do(given: Arguments) -> None:
        from .models.prepare import prepare

        print(prepare(given.source, given.output, given.sha256).summary(given.output))

    return do


@command("frames", "holdfast frames contigs.fna --chunk-length 500 --nucleotides frames.fna --proteins frames.faa")
def frames(parser: Parser) -> Callable[[Arguments], None]:
    """Write the stop-free frames of a file's chunks as two FASTA files, byte-equal to VirNucPro's."""
    parser.add_argument("fasta", type=Path, metavar="FASTA", help="FASTA or FASTQ of nucleotides, plain or compressed")
    chunk_length = "bases in a chunk; VirNucPro has classifiers for 300 and 500"
    parser.add_argument("--chunk-length", type=int, required=True, metavar="N", help=chunk_length)
    known = f"NCBI's number of the code by which frames are read: {', '.join(map(str, GENETIC_CODES))}"
    code: dict[str, Any] = {"type": int, "choices": GENETIC_CODES, "default": STANDARD_CODE, "help": known}
    parser.add_argument("--genetic-code", metavar="CODE", **code)
    parser.add_argument("--nucleotides", type=Path, required=True, metavar="N.fna", help="output: bases of each frame")
    parser.add_argument("--proteins", type=Path, required=True, metavar="P.faa", help="output: amino acids of each")

    def do(given: Arguments) -> None:
        from .sequences.frames import write_frames_fasta

        written = write_frames_fasta(
            given.fasta, given.chunk_length, given.nucleotides, given.proteins, given.genetic_code
        )
        print(f"{written.records} records, {written.chunks} chunks, {written.frames} stop-free frames")

    return do


@command("export", "holdfast export results/S/embeddings.h5 --model esm2 --per protein --output esm2.h5")
def export(parser: Parser) -> Callable[[Arguments], None]:
    """Write embeddings as UniProt publishes them: one HDF5 dataset an id.

    Without --model the output is a directory, with a file a protein and a file a residue for every model.
    """
    parser.add_argument("embeddings", type=Path, metavar="EMBEDDINGS", help="embeddings file of a sample")
    parser.add_argument("--model", metavar="NAME", help="whose embeddings; all without")
    parser.add_argument("--layer", type=int, metavar="L", help="of which layer; the last that there is without")
    parser.add_argument("--per", choices=("protein", "residue"), default="protein", help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.h5", help="file, or directory, to write")

    def do(given: Arguments) -> None:
        from .results.export import export_all, export_embeddings

        if given.model is None:
            for path in export_all(given.embeddings, given.output):
                print(path)
            return
        count = export_embeddings(given.embeddings, given.model, given.output, given.per, given.layer)
        print(f"{given.output}: {count} embeddings of {given.model}")

    return do


@command("serve", "holdfast serve --config POOL.yaml --spool /shared/spool --endpoint pool.json")
def serve(parser: Parser) -> Callable[[Arguments], None]:
    """Serve a pool: hold the models on the devices and work through the jobs of a spool."""
    parser.add_argument("--config", type=Path, required=True, metavar="POOL.yaml", help="its settings")
    parser.add_argument("--spool", type=Path, required=True, metavar="DIR", help="spool to serve; made if missing")
    parser.add_argument("--endpoint", type=Path, required=True, metavar="FILE", help="the pool ends when this goes")

    def do(given: Arguments) -> None:
        from .spool.state import Identity, PoolState

        state = PoolState(Identity.own(), str(given.spool.absolute()))
        state.announce(given.endpoint)  # at once: a service that is late with its output holds Snakemake up

        try:
            from .pool.supervisor import serve_pool

            serve_pool(given.config, state, given.endpoint)
            given.endpoint.unlink(missing_ok=True)
        except KeyboardInterrupt:  # before the supervisor takes the signal
            given.endpoint.unlink(missing_ok=True)
            raise

    return do


@command("status", "holdfast status .holdfast/spool --live")
def status(parser: Parser) -> Callable[[Arguments], None]:
    """Say what the pools of a spool do now: devices, jobs, what waits, and how long it will take."""
    parser.add_argument("spool", type=Path, metavar="SPOOL", help="such as .holdfast/spool")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--live", action="store_true", help="go on until interrupted")
    how.add_argument("--json", action="store_true", help="as JSON, see docs/watching.md")

    def do(given: Arguments) -> None:
        from .run.watch import SpoolWatch

        watch = SpoolWatch(given.spool)
        if given.json:
            print(watch.look().json())
            return

        from .run.screen import print_spool, watch_spool

        watch_spool(watch) if given.live else print_spool(watch.look())

    return do


@command("convert-classifier", "holdfast convert-classifier 500_model.pth classifier.safetensors")
def convert_classifier(parser: Parser) -> Callable[[Arguments], None]:
    """Convert VirNucPro's classifier, a pickled .pth, to safetensors; nothing in it is executed."""
    parser.add_argument("classifier", metavar="PTH", help="VirNucPro's, such as 500_model.pth")
    parser.add_argument("output", metavar="OUT.safetensors", help="the same network")

    def do(given: Arguments) -> None:
        from .results.classifier import load_published

        converted = load_published(given.classifier)
        converted.save(given.output)
        print(f"{given.output}: {converted.feature_width} values a frame, from {converted.source}")

    return do


@command("crate", "holdfast crate results --license https://spdx.org/licenses/CC-BY-4.0")
def crate(parser: Parser) -> Callable[[Arguments], None]:
    """Describe the results of runs as an RO-Crate: ro-crate-metadata.json beside them."""
    parser.add_argument("results", type=Path, metavar="RESULTS", help="directory of the results of a run")
    parser.add_argument("--license", required=True, metavar="URL", help="of the results")

    def do(given: Arguments) -> None:
        from .run.crate import write_crate
        from .run.provenance import CRATE

        for name in write_crate(given.results, given.license):
            print(f"left out, changed since its run: {given.results / name}")
        print(given.results / CRATE)

    return do


@command("submit")
def submit(parser: Parser) -> Callable[[Arguments], None]:
    """Hand in the jobs of one consumer, wait, and write a receipt for every sample, done or failed."""
    parser.add_argument("plan", type=Path, help="plan of the run")
    parser.add_argument("--consumer", type=int, required=True, help="its number in the plan")
    parser.add_argument("--models", nargs="+", type=Path, required=True, metavar="model.json", help="prepared models")
    parser.add_argument("--spool", type=Path, required=True, help="where to hand the jobs in")
    parser.add_argument("--endpoint", type=Path, help="endpoint file of the pool that was started for them")
    parser.add_argument("--classifier", type=Path, help="that frames will be classified with; checked before all else")
    parser.add_argument("--patience-s", type=float, metavar="S", help="give up when no pool could do them for S")
    parser.add_argument("--receipts", nargs="+", type=Path, required=True, help="where to write them, in order")

    def do(given: Arguments) -> None:
        from .run.client import submit_planned

        if (
            given.endpoint
        ):  # a scheduler, or Ctrl-C, signals all; the pool then needs its time, and says when it has ended
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        directories = [path.parent for path in given.models]
        waiting = (given.spool, given.endpoint, given.receipts, given.patience_s, given.classifier)
        for outcome in submit_planned(given.plan, given.consumer, directories, *waiting):
            print(f"{outcome.sample}: {outcome.state}{': ' if outcome.error else ''}{outcome.error}")

    return do


@command("collect")
def collect(parser: Parser) -> Callable[[Arguments], None]:
    """Fetch the embeddings of a sample from the spool, or exit 2 with the error of its job."""
    parser.add_argument("receipt", type=Path, help="receipt of the sample")
    parser.add_argument("--fasta", type=Path, required=True, help="sequence file of the sample")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.h5")
    parser.add_argument("--records", type=Path, required=True, metavar="records.tsv")

    def do(given: Arguments) -> None:
        from .run.client import collect_embeddings

        collect_embeddings(given.receipt, given.fasta, given.output, given.records)

    return do


def _words(option: str, text: str, pattern: str, wanted: str) -> list[str]:
    """The words of a list with commas, each of which matches a pattern.

    Raises:
        ConfigError: one that does not, and is not what is ``wanted``.
    """
    words = text.split(",")
    for word in words:
        if not re.fullmatch(pattern, word):
            raise ConfigError(f"{option} {text}: {word!r:.40} is not {wanted}")
    return words


if __name__ == "__main__":
    main(sys.argv[1:])
