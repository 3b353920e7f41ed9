"""Serve a pool: hold the models on the devices and work through the jobs of a spool."""

import argparse
import logging
from pathlib import Path

from holdfast.errors import run
from holdfast.status import Identity, PoolState


def main() -> None:
    """Announce the pool at once (a service that is late with its output hangs Snakemake), then load and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="POOL.yaml", help="settings of the pool")
    parser.add_argument("--spool", type=Path, required=True, metavar="DIR", help="spool to serve; made if missing")
    parser.add_argument("--endpoint", type=Path, required=True, metavar="FILE", help="the pool ends when this goes")
    arguments = parser.parse_args()
    state = PoolState(Identity.own(), str(arguments.spool.absolute()))
    state.announce(arguments.endpoint)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")

    from holdfast import pool

    pool.serve(arguments.config, state, arguments.endpoint)


if __name__ == "__main__":
    run(main)
