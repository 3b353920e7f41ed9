"""Classify the frames of a sample as virus or other, from its embeddings."""

import argparse

from holdfast import calls, classifier
from holdfast.embeddings import Reader
from holdfast.errors import run


def main() -> None:
    """Read the command line and classify."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embeddings", help="embeddings of the sample, .h5")
    parser.add_argument("--classifier", required=True, help="a .safetensors")
    parser.add_argument("--output", required=True, help="table of frames, TSV")
    arguments = parser.parse_args()
    with Reader(arguments.embeddings) as reader:
        calls.write_frames(arguments.output, classifier.classify(reader, classifier.load(arguments.classifier)))


if __name__ == "__main__":
    run(main)
