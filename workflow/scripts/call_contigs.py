"""Call the chunks and contigs of a sample from the probabilities of its frames."""

import argparse

from holdfast import calls
from holdfast.errors import run


def main() -> None:
    """Read the command line and call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embeddings", help="embeddings of the sample, .h5")
    parser.add_argument("frames", help="its classified frames, TSV")
    parser.add_argument(
        "--threshold",
        type=float,
        default=calls.THRESHOLD,
        help="mean score from which a contig is a virus (%(default)s)",
    )
    parser.add_argument("--chunks", required=True, help="table of chunks, TSV")
    parser.add_argument("--contigs", required=True, help="table of contigs, TSV")
    parser.add_argument("--virnucpro", metavar="DIR", help="also write VirNucPro's own two files there")
    arguments = parser.parse_args()
    calls.write_calls(
        arguments.embeddings,
        arguments.frames,
        arguments.threshold,
        arguments.chunks,
        arguments.contigs,
        arguments.virnucpro,
    )


if __name__ == "__main__":
    run(main)
