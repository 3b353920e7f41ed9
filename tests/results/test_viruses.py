"""Sequences of viruses: cut as the tables say, in FASTA and BGZF, from the file that was embedded and from no other."""

import gzip
import hashlib
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO, bgzf
from holdfast.errors import InputError
from holdfast.results.calls import call_contigs
from holdfast.results.contigs import CONTIG_COLUMNS
from holdfast.results.embeddings import EmbeddingsFile
from holdfast.results.presets import PRESETS
from holdfast.results.viruses import combine, write_viruses

from tests.results.samples import write_results

# Of each contig the margins of its chunks of 500 bp.
CONTIGS = {
    "virus|1": [1, 1, 1, 1],
    "none": [-1, -1],
    "prophage": [*[-1] * 12, *[1] * 4, *[-1] * 12, *[1] * 3],
    "é": [1, 1, 1, 1, 1],
}


def make_sample(directory: Path, contigs: dict[str, list[int]] = CONTIGS) -> dict[str, str]:
    """Write FASTA, embeddings and tables of a sample; the sequences by id."""
    directory.mkdir(parents=True)
    chance = random.Random(1)
    sequences = {name: "".join(chance.choices("ACGT", k=500 * len(margins))) for name, margins in contigs.items()}
    text = "".join(f">{name} words\n{sequence.lower()}\n" for name, sequence in sequences.items())
    (directory / "a.fna").write_text(text)
    records = [(name, len(sequence), "ok") for name, sequence in sequences.items()]
    rows = [(record, chunk + 1, 0) for record, margins in enumerate(contigs.values()) for chunk in range(len(margins))]
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = write_results(directory / "embeddings.h5", records, rows, input_sha256=digest)
    p_virus = np.array([(1 + margin) / 2 for margins in contigs.values() for margin in margins], np.float32)
    with EmbeddingsFile(path) as reader:
        probabilities = np.stack([1 - p_virus, p_virus], axis=1)
        classified = ((block, probabilities[number * 4096 :][:4096]) for number, block in enumerate(reader.blocks()))
        call_contigs(reader, classified, PRESETS["relaxed"], directory)
    return sequences


def test_viruses_and_regions_are_cut_from_the_file(tmp_path: Path) -> None:
    sequences = make_sample(tmp_path / "s")
    files = (tmp_path / "s/a.fna", EmbeddingsFile(tmp_path / "s/embeddings.h5"), tmp_path / "s")
    (tmp_path / "virus.fna.gz").write_bytes(b"of an earlier run")
    write_viruses(tmp_path / "virus.fna", *files)
    assert not (tmp_path / "virus.fna.gz").exists()
    with open(tmp_path / "virus.fna", encoding="utf-8") as file:
        found = {record.id: record for record in SeqIO.parse(file, "fasta")}
    assert {name: str(record.seq) for name, record in found.items()} == {
        "virus|1": sequences["virus|1"],
        "prophage|region_6001_8000": sequences["prophage"][6000:8000],
        "prophage|region_14001_15500": sequences["prophage"][14000:15500],
        "é": sequences["é"],
    }
    assert [record.description for record in found.values()] == [
        "virus|1 tier=moderate score=1 genetic_code=1",
        "prophage|region_6001_8000 tier=moderate score=1 genetic_code=1",
        "prophage|region_14001_15500 tier=moderate score=1 genetic_code=1",
        "é tier=high score=1 genetic_code=1",
    ]
    content = (tmp_path / "virus.fna").read_bytes()
    write_viruses(tmp_path / "virus.fna.gz", *files)
    assert not (tmp_path / "virus.fna").exists()
    assert gzip.decompress((tmp_path / "virus.fna.gz").read_bytes()) == content
    with open(tmp_path / "virus.fna.gz", "rb") as blocks:  # as BGZF; the last one, which marks the end, is empty
        assert [size for *_, size in bgzf.BgzfBlocks(blocks)] == [len(content), 0]


def test_another_file_is_refused_and_nothing_written(tmp_path: Path) -> None:
    make_sample(tmp_path / "s")
    fasta = tmp_path / "s/a.fna"
    text = fasta.read_text()
    changed = {
        "letter": text[:-2] + ("a" if text[-2] != "a" else "c") + "\n",
        "name": text.replace(">none", ">other"),
        "shorter": text.rpartition(">")[0],
        "longer": text + ">more\nACGT\n",
    }
    for content in changed.values():
        fasta.write_text(content)
        with pytest.raises(InputError, match=r"a\.fna: is not the file that was embedded"):
            write_viruses(tmp_path / "virus.fna", fasta, EmbeddingsFile(tmp_path / "s/embeddings.h5"), tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", ["virus.fna", "virus.fna.gz"])
def test_samples_are_put_together_with_unique_ids(tmp_path: Path, name: str) -> None:
    for sample in ("a", "b"):
        make_sample(tmp_path / sample)
        files = (tmp_path / sample / "a.fna", EmbeddingsFile(tmp_path / sample / "embeddings.h5"), tmp_path / sample)
        write_viruses(tmp_path / sample / name, *files)
    combine(["a", "b"], tmp_path, tmp_path / "contigs.tsv", tmp_path / name)
    content = (tmp_path / name).read_bytes()
    text = (gzip.decompress(content) if name.endswith(".gz") else content).decode()
    ids = [line.split()[0] for line in text.splitlines() if line.startswith(">")]
    assert ids[:2] == [">a|virus|1", ">a|prophage|region_6001_8000"]
    assert len(set(ids)) == len(ids) == 8
    header, *lines = (tmp_path / "contigs.tsv").read_text().splitlines()
    assert header.split("\t") == ["sample", *CONTIG_COLUMNS]
    assert [line.split("\t")[:2] for line in lines] == [[sample, contig] for sample in "ab" for contig in CONTIGS]
    (tmp_path / "b/contigs.tsv").unlink()
    with pytest.raises(InputError, match=r"b/contigs\.tsv: no such file"):
        combine(["a", "b"], tmp_path, tmp_path / "contigs.tsv", tmp_path / name)


def test_many_contigs_pass_through_one_by_one(tmp_path: Path) -> None:
    make_sample(tmp_path / "s", {f"contig_{number}": [1] for number in range(20_000)})
    size_bytes = (tmp_path / "s/a.fna").stat().st_size
    tracemalloc.start()
    write_viruses(
        tmp_path / "virus.fna", tmp_path / "s/a.fna", EmbeddingsFile(tmp_path / "s/embeddings.h5"), tmp_path / "s"
    )
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "virus.fna").stat().st_size > size_bytes
    assert peak_bytes < size_bytes / 2  # most of it the digests of the ids, by which a repeated one is found
