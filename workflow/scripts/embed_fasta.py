"""Embed one FASTA or FASTQ file with one model, without Snakemake and without a pool."""

import argparse
from pathlib import Path

from holdfast import embedder, worker
from holdfast.errors import run
from holdfast.manifest import PRECISIONS


def main() -> None:
    """Write an embeddings file and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fasta", type=Path, help="FASTA or FASTQ, proteins for esm2, DNA for dnabert_s")
    parser.add_argument("--model", required=True, choices=embedder.KIND_OF_MODEL)
    parser.add_argument("--weights", type=Path, required=True, metavar="DIR", help="prepared model")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.h5")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one, otherwise cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    arguments = parser.parse_args()
    device = arguments.device or ("cuda" if worker.count_devices() else "cpu")
    counts, model = embedder.embed_file(
        arguments.fasta, arguments.model, arguments.weights, arguments.output, device, arguments.precision
    )
    print(
        f"{arguments.output}: {counts['rows']} embeddings of {counts['records']} records, "
        f"{'synthetic ' * model.synthetic}{model.model} on {device}"
    )


if __name__ == "__main__":
    run(main)
