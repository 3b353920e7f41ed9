"""Say what the pools of a spool are doing now."""

import argparse
from pathlib import Path

from holdfast import status
from holdfast.errors import run


def main() -> None:
    """Print a paragraph for each pool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spool", type=Path, help="the spool, such as .holdfast/spool")
    print("\n".join(status.describe(parser.parse_args().spool)))


if __name__ == "__main__":
    run(main)
