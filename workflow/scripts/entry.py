"""The command ``holdfast`` where the package is not installed: rules run this file by its path."""

from holdfast.cli import main

if __name__ == "__main__":  # a process that the pool spawns reads this file, too
    main()
