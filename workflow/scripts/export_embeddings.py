"""Write embeddings as UniProt publishes them: one HDF5 dataset an id."""

import argparse
from pathlib import Path

from holdfast import uniprot
from holdfast.errors import run
from holdfast.models import MODELS


def main() -> None:
    """Export the matrix of one model and say how many embeddings there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embeddings", type=Path, help="embeddings.h5 of a sample")
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.h5")
    arguments = parser.parse_args()
    count = uniprot.write(arguments.embeddings, arguments.model, arguments.output)
    print(f"{arguments.output}: {count} embeddings of {arguments.model}")


if __name__ == "__main__":
    run(main)
