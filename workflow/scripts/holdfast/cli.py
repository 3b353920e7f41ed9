"""The command ``holdfast COMMAND``: which arguments a command takes, and which function of the package does the work.

Nothing is decided here. Each command is one function below: its docstring is the help, it adds its arguments to a
parser and returns what to do with them. It imports the package's modules when it runs, so that light commands stay
light. The rules of the workflow call the same commands; those that are of use to rules alone are marked, and listed
nowhere.
"""

import argparse
import re
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from . import __version__
from .cli_report import check_samples, draw, list_failures, summarize
from .cli_rules import calibrate, classify, classify_small, collect, combine, path, share, submit, train
from .errors import ConfigError, guarded
from .files import check_outputs, say
from .models.registry import POLICIES, POOLINGS
from .sequences import GENETIC_CODES, STANDARD_CODE

Arguments = argparse.Namespace
Parser = argparse.ArgumentParser
Command = Callable[[Parser], Callable[[Arguments], None]]

NOTHING_TO_COMPARE = 3
PRECISIONS = ("auto", "fp32", "fp16", "bf16")

COMMANDS: dict[str, tuple[Command, str]] = {
    function.__name__.replace("_", "-"): (function, "")
    for function in (
        *(submit, share, collect, train, calibrate, classify, classify_small, combine),
        *(list_failures, check_samples, summarize, draw),
    )
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
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be any bytes
    guarded(lambda: arguments.do(arguments))


@command("embed", "holdfast embed proteins.faa --model facebook/esm2_t33_650M_UR50D --output embeddings.h5")
def embed(parser: Parser) -> Callable[[Arguments], None]:
    """Embed one FASTA or FASTQ file with one model.

    Weights that are not prepared yet are fetched and prepared once, in the user's cache directory. The output's suffix
    says what is written: .h5 (as the workflow's), .npz (all in memory), .parquet (pyarrow) or .h5ad (anndata).
    """
    parser.add_argument("fasta", type=path, metavar="FASTA", help="FASTA or FASTQ, of the letters that the model knows")
    parser.add_argument("--model", required=True, metavar="SOURCE", help="a prepared model, or what `prepare` takes")
    parser.add_argument("--output", type=path, required=True, metavar="OUT", help=".h5, .npz, .parquet or .h5ad")
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
    parser.add_argument("--output", type=path, required=True, metavar="DIR", help="to write; complete or absent")
    parser.add_argument("--sha256", metavar="HEX", help="expected digest of the weights, checked before they are read")

    def do(given: Arguments) -> None:
        from .models.prepare import prepare

        print(prepare(given.source, given.output, given.sha256).summary(given.output))

    return do


@command("verify", "holdfast verify models/esm2_3b")
def verify(parser: Parser) -> Callable[[Arguments], None]:
    """Compare prepared models with values that others published for their weights.

    Exit code 0: all agree. 2: one does not, or cannot be read. 3: there are no published values for one of them.
    """
    parser.add_argument("models", nargs="+", type=path, metavar="DIR", help="prepared models")
    parser.add_argument("--as", dest="name", metavar="NAME", help="what it claims to be; else the name of its source")
    parser.add_argument("--classifier", type=path, metavar="FILE", help="VirNucPro's, with both of its models as DIR")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPUs, or the CPU")
    parser.add_argument("--values", type=path, metavar="YAML", help="other values than those of Holdfast")

    def do(given: Arguments) -> None:
        from .run.verify import PUBLISHED_VALUES, verify_models

        values = given.values or PUBLISHED_VALUES
        lines, complete = verify_models(given.models, given.name, given.classifier, given.device, values)
        print(*lines, sep="\n")
        if not complete:
            raise SystemExit(NOTHING_TO_COMPARE)

    return do


@command("frames", "holdfast frames contigs.fna --chunk-length 500 --nucleotides frames.fna --proteins frames.faa")
def frames(parser: Parser) -> Callable[[Arguments], None]:
    """Write the stop-free frames of a file's chunks as two FASTA files, byte-equal to VirNucPro's."""
    parser.add_argument("fasta", type=path, metavar="FASTA", help="FASTA or FASTQ of nucleotides, plain or compressed")
    chunk_length = "bases in a chunk; VirNucPro has classifiers for 300 and 500"
    parser.add_argument("--chunk-length", type=int, required=True, metavar="N", help=chunk_length)
    known = f"NCBI's number of the code by which frames are read: {', '.join(map(str, GENETIC_CODES))}"
    code: dict[str, Any] = {"type": int, "choices": GENETIC_CODES, "default": STANDARD_CODE, "help": known}
    parser.add_argument("--genetic-code", metavar="CODE", **code)
    parser.add_argument("--nucleotides", type=path, required=True, metavar="N.fna", help="output: bases of each frame")
    parser.add_argument("--proteins", type=path, required=True, metavar="P.faa", help="output: amino acids of each")

    def do(given: Arguments) -> None:
        from .sequences.frames import write_frames_fasta

        outputs = (given.nucleotides, given.proteins)
        written = write_frames_fasta(given.fasta, given.chunk_length, *outputs, given.genetic_code)
        if written.left_out:
            left_out = f"{written.left_out} record(s) left out, the first: {written.problem}"
            print(f"holdfast: warning: {given.fasta}: {left_out}", file=sys.stderr)
        counts = f"{written.records} records, {written.chunks} chunks, {written.frames} stop-free frames"
        say(counts, given.nucleotides, given.proteins)

    return do


@command("export", "holdfast export results/S/embeddings.h5 --model esm2 --per protein --output esm2.h5")
def export(parser: Parser) -> Callable[[Arguments], None]:
    """Write embeddings as UniProt publishes them: one HDF5 dataset an id.

    Without --model the output is a directory, with a file a protein and a file a residue for every model.
    """
    parser.add_argument("embeddings", type=path, metavar="EMBEDDINGS", help="embeddings file of a sample")
    parser.add_argument("--model", metavar="NAME", help="whose embeddings; all without")
    parser.add_argument("--layer", type=int, metavar="L", help="of which layer; the last that there is without")
    parser.add_argument("--per", choices=("protein", "residue"), default="protein", help="default: %(default)s")
    parser.add_argument("--output", type=path, required=True, metavar="OUT.h5", help="file, or directory, to write")

    def do(given: Arguments) -> None:
        from .results.export import export_all, export_embeddings

        if given.model is None:
            for path in export_all(given.embeddings, given.output):
                print(path)
            return
        count = export_embeddings(given.embeddings, given.model, given.output, given.per, given.layer)
        say(f"{given.output}: {count} embeddings of {given.model}", given.output)

    return do


@command("serve", "holdfast serve --config POOL.yaml --spool /shared/spool --endpoint pool.json")
def serve(parser: Parser) -> Callable[[Arguments], None]:
    """Serve a pool: hold the models on the devices and work through the jobs of a spool."""
    parser.add_argument("--config", type=path, required=True, metavar="POOL.yaml", help="its settings")
    parser.add_argument("--spool", type=path, required=True, metavar="DIR", help="spool to serve; made if missing")
    parser.add_argument("--endpoint", type=path, required=True, metavar="FILE", help="the pool ends when this goes")

    def do(given: Arguments) -> None:
        from .spool.state import Identity, PoolState

        check_outputs([given.endpoint], [given.config])
        state = PoolState(Identity.own(), str(given.spool.absolute()))
        state.announce(given.endpoint)  # at once: a service that is late with its output holds Snakemake up

        try:
            from .pool.service import serve_pool

            serve_pool(given.config, state, given.endpoint)
            given.endpoint.unlink(missing_ok=True)
        except KeyboardInterrupt:  # before the supervisor takes the signal
            given.endpoint.unlink(missing_ok=True)
            raise

    return do


@command("status", "holdfast status .holdfast/spool --live")
def status(parser: Parser) -> Callable[[Arguments], None]:
    """Say what the pools of a spool do now: devices, jobs, what waits, and how long it will take.

    With --host, which GPUs this host has, and which pool holds each.
    """
    parser.add_argument("spool", type=path, nargs="?", metavar="SPOOL", help="such as .holdfast/spool")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--live", action="store_true", help="go on until interrupted")
    how.add_argument("--json", action="store_true", help="as JSON, see docs/watching.md")
    how.add_argument("--prometheus", type=path, metavar="FILE", help="write metrics, see docs/watching.md")
    how.add_argument("--host", action="store_true", help="the GPUs of this host, in place of a spool")

    def do(given: Arguments) -> None:
        if (given.spool is None) != given.host:
            raise ConfigError("holdfast status takes either a SPOOL or --host")
        if given.host:
            from .pool.claims import survey_host
            from .run.screen import print_host

            print_host(survey_host())
            return

        from .spool.metrics import write_prometheus
        from .spool.view import SpoolWatch

        watch = SpoolWatch(given.spool)
        if given.json:
            print(watch.look().json())
            return
        if given.prometheus:
            check_outputs([given.prometheus])
            write_prometheus(watch.look(), given.prometheus)
            return

        from .run.screen import print_spool, watch_spool

        watch_spool(watch) if given.live else print_spool(watch.look())

    return do


@command("forget", "holdfast forget soil_1 soil_2 -d project")
def forget(parser: Parser) -> Callable[[Arguments], None]:
    """Have samples embedded again by the next run: remove their receipts and embeddings, and what the spool keeps."""
    parser.add_argument("samples", nargs="*", metavar="SAMPLE", help="names in the sample sheet")
    parser.add_argument("--all", action="store_true", help="all samples with results")
    parser.add_argument("-d", "--directory", type=Path, default=Path(), metavar="DIR", help="where the workflow ran")

    def do(given: Arguments) -> None:
        from .run.forget import forget_samples

        if bool(given.samples) == given.all:
            raise ConfigError("name the samples to forget, or give --all")
        for name in forget_samples(given.directory, given.samples):
            print(f"{name}: forgotten; the next run embeds it")

    return do


@command("cache", "holdfast cache /shared/vectors --limit 2TB")
def cache(parser: Parser) -> Callable[[Arguments], None]:
    """Say what is in a shared cache of vectors, after doing what the options ask for."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="as `cache` in a config names it")
    parser.add_argument("--limit", metavar="SIZE", help="set the size that it may have, such as 500GB; 100GB at first")
    parser.add_argument("--prune", metavar="SIZE", help="bring it to this size now; what was used last stays")
    parser.add_argument("--verify", action="store_true", help="check every vector, and remove files with damage")

    def do(given: Arguments) -> None:
        from .pool.cache import manage

        for line in manage(given.directory, given.limit, given.prune, given.verify):
            print(line)

    return do


@command("convert-classifier", "holdfast convert-classifier 500_model.pth classifier.safetensors")
def convert_classifier(parser: Parser) -> Callable[[Arguments], None]:
    """Convert VirNucPro's classifier, a pickled .pth, to safetensors; nothing in it is executed."""
    parser.add_argument("classifier", type=path, metavar="PTH", help="VirNucPro's, such as 500_model.pth")
    parser.add_argument("output", type=path, metavar="OUT.safetensors", help="the same network")

    def do(given: Arguments) -> None:
        from .results.classifier import convert_published

        converted = convert_published(given.classifier, given.output)
        say(f"{given.output}: {converted.feature_width} values a frame, from {converted.source}", given.output)

    return do


@command("crate", "holdfast crate results --license https://spdx.org/licenses/CC-BY-4.0")
def crate(parser: Parser) -> Callable[[Arguments], None]:
    """Describe the results of runs as an RO-Crate: ro-crate-metadata.json beside them."""
    parser.add_argument("results", type=path, metavar="RESULTS", help="directory of the results of a run")
    parser.add_argument("--license", required=True, metavar="URL", help="of the results")

    def do(given: Arguments) -> None:
        from .run.crate import write_crate
        from .run.provenance import CRATE

        for name in write_crate(given.results, given.license):
            print(f"left out, changed since its run: {given.results / name}")
        print(given.results / CRATE)

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
