"""Train the classifier on the embeddings of labelled samples."""

import argparse

from holdfast import training
from holdfast.calls import THRESHOLD
from holdfast.errors import run


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--virus", nargs="+", default=[], metavar="H5", help="embeddings of samples labelled virus")
    parser.add_argument("--other", nargs="+", default=[], metavar="H5", help="embeddings of samples labelled other")
    parser.add_argument("--seed", type=int, default=1, help="of split, weights, order and dropout (%(default)s)")
    parser.add_argument("--epochs", type=int, default=training.EPOCHS, help="passes over the data (%(default)s)")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="mean score from which a contig is a virus (%(default)s)"
    )
    parser.add_argument("--output", required=True, help="the classifier, .safetensors")
    parser.add_argument("--metrics", required=True, help="figures on held-out contigs, JSON")
    parser.add_argument("--history", required=True, help="losses by epoch, TSV")
    parser.add_argument("--confusion", required=True, help="held-out frames by label and prediction, TSV")
    arguments = parser.parse_args()
    files = [(path, "virus") for path in arguments.virus] + [(path, "other") for path in arguments.other]
    trained = training.train(files, arguments.seed, arguments.epochs, arguments.threshold)
    trained.classifier.save(arguments.output)
    trained.write_metrics(arguments.metrics)
    trained.write_history(arguments.history)
    trained.write_confusion(arguments.confusion)
    print(trained.summary())


if __name__ == "__main__":
    run(main)
