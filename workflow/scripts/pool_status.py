"""Say what the pools of a spool are doing now: devices, jobs, what waits, and how long it will take."""

import argparse
from pathlib import Path

from holdfast import overview
from holdfast.errors import run


def main() -> None:
    """Show it once, as JSON, or until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spool", type=Path, help="the spool, such as .holdfast/spool")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--live", action="store_true", help="go on until interrupted")
    how.add_argument("--json", action="store_true", help="as JSON, see docs/watching.md")
    arguments = parser.parse_args()
    spyglass = overview.Spyglass(arguments.spool)
    if arguments.json:
        print(spyglass.look().json())
        return

    from holdfast import screen

    if arguments.live:
        screen.watch(spyglass)
    else:
        screen.tell(spyglass.look())


if __name__ == "__main__":
    run(main)
