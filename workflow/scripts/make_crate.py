"""Make an RO-Crate of the results of runs: ro-crate-metadata.json beside them."""

import argparse
from pathlib import Path

from holdfast import provenance
from holdfast.errors import run


def main() -> None:
    """Write into the directory of the results, and name what was left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="directory of the results")
    parser.add_argument(
        "--license", required=True, metavar="URL", help="of the results, such as https://spdx.org/licenses/CC-BY-4.0"
    )
    arguments = parser.parse_args()
    from holdfast import crate  # here, for a clear message where rocrate is missing

    for name in crate.write(arguments.results, arguments.license):
        print(f"left out, changed since its run: {arguments.results / name}")
    print(arguments.results / provenance.CRATE)


if __name__ == "__main__":
    run(main)
