"""Fetch the embeddings of a sample from the spool, or say why there are none."""

import argparse
from pathlib import Path

from holdfast import consumer
from holdfast.errors import run


def main() -> None:
    """Exit 2 with the sample's error if its job failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("receipt", type=Path, help="receipt of the sample")
    parser.add_argument("--fasta", type=Path, required=True, help="sequence file of the sample")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.h5")
    arguments = parser.parse_args()
    consumer.collect(arguments.receipt, arguments.fasta, arguments.output)


if __name__ == "__main__":
    run(main)
