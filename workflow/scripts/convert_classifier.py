"""Convert VirNucPro's classifier, a pickled .pth, to safetensors; nothing in it is executed."""

import argparse

from holdfast import pth
from holdfast.errors import run


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("classifier", help="VirNucPro's .pth, such as 500_model.pth")
    parser.add_argument("output", help="the same network as .safetensors")
    arguments = parser.parse_args()
    converted = pth.load(arguments.classifier)
    converted.save(arguments.output)
    print(f"{arguments.output}: {converted.feature_width} values a frame, from {converted.source}")


if __name__ == "__main__":
    run(main)
