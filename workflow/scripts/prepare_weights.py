"""Turn a published checkpoint into a verified prepared model."""

import argparse
from pathlib import Path

from holdfast.errors import run
from holdfast.models import MODELS
from holdfast.weights import prepare


def main() -> None:
    """Read the command line, prepare, and say what was prepared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source",
        help="fair-esm .pt file, Hugging Face directory or hub id, or synthetic:ARCHITECTURE for random weights",
    )
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--output", type=Path, required=True, help="directory to write; complete or absent")
    parser.add_argument("--sha256", help="expected digest (hex) of the weights file; checked before it is parsed")
    arguments = parser.parse_args()
    prepared = prepare(arguments.source, arguments.model, arguments.output, arguments.sha256)
    kind = "synthetic weights, random, " if prepared.synthetic else ""
    verification = prepared.verification
    print(f"{arguments.output}: {prepared.model} from {prepared.source} ({kind}width {prepared.width})")
    print(
        f"largest difference {verification['largest_difference']:.1e} over {verification['sequences']} sequences; "
        f"reference: {verification['reference']}"
    )


if __name__ == "__main__":
    run(main)
