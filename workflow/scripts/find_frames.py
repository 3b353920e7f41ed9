"""Write the open frames of a FASTA or FASTQ file as two FASTA files, byte-equal to VirNucPro's."""

import argparse
from pathlib import Path

from holdfast import frames
from holdfast.errors import run


def main() -> None:
    """Read the command line, write both files, and print how much was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fasta", type=Path, help="FASTA or FASTQ of nucleotides, plain or compressed")
    parser.add_argument(
        "--chunk-length",
        type=int,
        default=frames.CHUNK_LENGTH_BP,
        metavar="BP",
        help="bases in a chunk; VirNucPro's models know 300 and 500 (default: %(default)s)",
    )
    parser.add_argument("--nucleotides", type=Path, required=True, metavar="FASTA", help="output, a frame's bases")
    parser.add_argument("--proteins", type=Path, required=True, metavar="FASTA", help="output, a frame's amino acids")
    arguments = parser.parse_args()
    written = frames.write(arguments.fasta, arguments.chunk_length, arguments.nucleotides, arguments.proteins)
    print(f"{written.records} records, {written.chunks} chunks, {written.frames} open frames")


if __name__ == "__main__":
    run(main)
