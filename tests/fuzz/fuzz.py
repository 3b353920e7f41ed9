"""Fuzz one parser with atheris, guided by coverage: ``python tests/fuzz/fuzz.py PARSER --seconds N``.

A finding ends the run with its traceback and leaves the content as ``crash-...`` in the working directory. PARSER is a
name of ``parsers.READERS``.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "workflow/scripts")]

with atheris.instrument_imports(include=["holdfast"]):
    from tests.fuzz import parsers, seeds


def main() -> None:
    """Run until the time is over or something is found; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parser", choices=sorted(parsers.READERS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--memory-mib", type=int, default=4096, help="more than this is a finding")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="holdfast-fuzz-"))
    (directory / "corpus").mkdir()
    for number, content in enumerate(seeds.seeds()[arguments.parser]):
        (directory / "corpus" / str(number)).write_bytes(content)
    parse = parsers.parsers(directory / "files")[arguments.parser]
    limits = [f"-max_total_time={arguments.seconds}", f"-rss_limit_mb={arguments.memory_mib}", "-timeout=30"]
    atheris.Setup([sys.argv[0], *limits, "-max_len=200000", str(directory / "corpus")], parse_bytes(parse))
    atheris.Fuzz()


def parse_bytes(parse: parsers.Parser):
    """The parser as atheris calls it."""

    def test_one_input(content: bytes) -> None:
        parse(content)

    return test_one_input


if __name__ == "__main__":
    main()
