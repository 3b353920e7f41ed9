"""Sequences of what was called a virus, ``virus.fna``, and the tables and sequences of all samples together.

:func:`write_viruses` walks the sample's FASTA beside ``contigs.tsv``, which has its records in the same order, and
``regions.tsv``; one record is held at a time. :func:`combine` puts the files of the samples one behind the other, with
the sample in a column and before each id. A name that ends in ``.gz`` is written as BGZF, gzip in blocks, which
``samtools faidx`` can index.
"""

import gzip
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat, zip_longest
from pathlib import Path
from typing import IO, Any

from ..errors import InputError
from ..files import atomic_text, temporary_path
from ..sequences import Alphabet
from ..sequences.fasta import read_records
from ..sequences.ids import Ids
from .contigs import CONTIG_COLUMNS, line, number, read_contigs
from .embeddings import EmbeddingsFile
from .regions import read_regions


@contextmanager
def _open_fasta(path: Path) -> Iterator[IO[bytes]]:
    """Open a file of bytes that appears when it is complete; BGZF where its name says so.

    The other of the two forms, which an earlier run may have left, goes then.
    """
    with temporary_path(path) as temporary:
        if path.suffix == ".gz":
            from Bio.bgzf import BgzfWriter

            with BgzfWriter(str(temporary)) as file:
                yield file
        else:
            with open(temporary, "wb") as plain:
                yield plain
    other = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    other.unlink(missing_ok=True)


def write_viruses(path: Path, fasta: str | Path, embeddings: EmbeddingsFile, tables: Path) -> None:
    """Write the contigs that are called virus, and of other called contigs their regions; each on one line.

    A region's id is ``CONTIG|region_START_END``, counted from 1, both included. Behind every id stand tier, score and
    genetic code. The letters are those that were embedded: upper case, T for U. Every record must have the id that the
    table has in its place, and no id is twice in that, so that ids are not kept here.

    Args:
        path: Where; ``.gz`` at its end makes it BGZF.
        fasta: The sample's sequence file, FASTA or FASTQ.
        embeddings: What was made of that file, open; it has the file's digest.
        tables: Directory of the sample's ``contigs.tsv`` and ``regions.tsv``.

    Raises:
        InputError: the file cannot be read, or is not the one that was embedded; or a table that is none.
    """
    sha256, genetic_code = embeddings.input_sha256, embeddings.genetic_code
    digest = hashlib.sha256()
    other = InputError("is not the file that was embedded; bring that back, or run again to embed this one", fasta)
    following = chain(read_regions(tables / "regions.tsv"), repeat(None))
    region = next(following)
    pairs = zip_longest(
        read_records(fasta, Alphabet.NUCLEOTIDE, digest, Ids(only=set())), read_contigs(tables / "contigs.tsv")
    )
    with _open_fasta(path) as file:
        for record, call in pairs:
            if record is None or call is None or (record.id, len(record.sequence)) != (call.contig, call.length_bp):
                raise other
            if call.is_virus:
                _write(file, call.contig, call.tier, call.score, genetic_code, record.sequence)
            while region is not None and region.contig == call.contig:
                if not call.is_virus:
                    sequence = record.sequence[region.start_bp : region.end_bp]
                    _write(file, region.id, region.tier, region.score, genetic_code, sequence)
                region = next(following)
        if sha256 != digest.hexdigest():
            raise other


def _write(file: IO[bytes], identifier: str, tier: str | None, score: float | None, code: int, sequence: str) -> None:
    header = f">{identifier} tier={tier} score={number(score or 0)} genetic_code={code}\n"
    file.write(header.encode() + sequence.encode("ascii") + b"\n")


def combine(samples: Iterable[str], results: Path, contigs: Path, viruses: Path) -> None:
    """Put the tables of contigs of several samples, and their sequences, into one file each.

    Args:
        samples: Their names, in order.
        results: Directory with the results of each.
        contigs: Where the table goes; its first column is the sample.
        viruses: Where the sequences go, as ``SAMPLE|ID``; ``.gz`` at its end makes it BGZF, as those of the samples.

    Raises:
        InputError: a file that is missing, or a table that is none.
    """
    samples = list(samples)
    with atomic_text(contigs) as table:
        table.write(line("sample", *CONTIG_COLUMNS))
        for sample in samples:
            path = results / sample / "contigs.tsv"
            with _opened(path) as part:
                if part.readline() != line(*CONTIG_COLUMNS).encode():
                    raise InputError("not a table of contigs; classify the contigs again", path, 1)
                table.writelines(f"{sample}\t{text.decode('utf-8', 'surrogateescape')}" for text in part)
    with _open_fasta(viruses) as file:
        for sample in samples:
            with _opened(results / sample / viruses.name) as part:
                for text in part:
                    file.write(b">" + sample.encode() + b"|" + text[1:] if text.startswith(b">") else text)


def _opened(path: Path) -> Any:
    """A file of a sample, opened to read its bytes."""
    if not path.is_file():
        raise InputError("no such file; run again", path)
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
