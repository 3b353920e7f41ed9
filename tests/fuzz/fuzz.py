"""Fuzz one parser with atheris, guided by coverage: ``python tests/fuzz/fuzz.py PARSER --seconds N``, or ``--runs N``.

A finding ends the run with its traceback and leaves the content as ``crash-...`` in the working directory. PARSER is a
name of ``parsers.READERS``.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-untyped]

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "workflow/scripts")]

with atheris.instrument_imports(include=["holdfast"]):
    from tests.fuzz import parsers, seeds


def main() -> None:
    """Run until the time is over or something is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parser", choices=sorted(parsers.READERS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="no more than so many inputs; -1 for any number")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs; 0 for others every time")
    parser.add_argument("--memory-mib", type=int, default=4096, help="more than this is a finding")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-fuzz-") as name:
        child = os.fork()  # libFuzzer ends its process at once
        if child == 0:
            fuzz(arguments, Path(name))
        _, status = os.waitpid(child, 0)
    raise SystemExit(os.waitstatus_to_exitcode(status))


def fuzz(arguments: argparse.Namespace, directory: Path) -> None:
    """Fuzz, and end the process."""
    name = arguments.parser
    corpus = directory / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds.seeds()[name]):
        (corpus / str(number)).write_bytes(content)
    limits = [
        *(f"-max_total_time={arguments.seconds}", f"-runs={arguments.runs}", f"-seed={arguments.seed}"),
        *(f"-rss_limit_mb={arguments.memory_mib}", "-timeout=30", "-max_len=200000"),
    ]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], as_test(parsers.parsers(directory / "files")[name]))
    atheris.Fuzz()


def as_test(parse: parsers.Parser) -> Callable[[bytes], None]:
    """The parser as atheris calls it."""

    def test_one_input(content: bytes) -> None:
        parse(content)

    return test_one_input


if __name__ == "__main__":
    main()
