"""Inputs at the edge of what there can be, and the formats that say the same."""

import gzip
import os

import numpy as np
from holdfast.results.calls import CHUNK_COLUMNS, FRAME_COLUMNS
from holdfast.results.contigs import CONTIG_COLUMNS
from holdfast.results.embeddings import read_embeddings
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records

from tests.workflow.conftest import (
    DEMO,
    MEANS,
    WIDTHS,
    NewProject,
    Project,
    closed_sequence,
    fasta,
    jobs,
    stop_free_sequence,
)

TINY = "".join(f">r{length_bp}\n{'GCC'[:length_bp]}\n" for length_bp in (0, 1, 2, 3))
LONG = "x" * 300
IDS = {
    LONG: 300,
    "a/b/../c": 500,
    "gi|123|ref|NC_1.1|": 501,
    "\"double\"'single'": 60,
    "größe_δ_病毒_🦠": 60,
    "a,b;c:d$e`f\\g": 60,
    "NA": 60,
    "=1+1": 60,
}


def test_empty_samples_equal_formats_and_odd_ids(project: NewProject, classifiers: os.PathLike[str]) -> None:
    """One run with all of them: what has nothing to embed is finished, formats give equal results, ids survive."""
    some = project()
    some.configure(classifier=f"{classifiers}/500_model.safetensors")
    closed = fasta({"c1": closed_sequence(1200), "c2": closed_sequence(100)})
    for name, content in (("empty", ""), ("closed", closed), ("tiny", TINY), ("zipped", gzip.compress(b""))):
        some.write(f"data/{name}.fa", content)
    small = [(name, f"data/{name}.fa", "contigs") for name in ("empty", "closed", "tiny", "zipped")]
    small += [(f"{name}_{kind}", f"data/{name}.fa", kind) for name in ("empty", "tiny") for kind in ("proteins", "dna")]
    heldout = list(read_records(DEMO / "data" / "bacterium_heldout.fna", Alphabet.NUCLEOTIDE))[:3]
    records = {record.id: record.sequence for record in heldout}
    formats = write_formats(some, records)
    some.write("data/ids.fna", fasta({name: stop_free_sequence(length, 7) for name, length in IDS.items()}))
    some.write_sheet(*small, *((name, path) for name, path in formats.items()), ("ids", "data/ids.fna"))
    run = some.run()
    assert run.returncode == 0, run.text
    called = [name for name, _, kind in small if kind == "contigs"] + [*formats, "ids"]
    assert run.jobs == jobs(*(name for name, *_ in small), *formats, "ids", called=called)
    made = {"contigs.tsv", "failures.tsv", "figures", "report.html", "run.json", "runs", "summary.tsv", "virus.fna"}
    names = {name for name, *_ in small} | {*formats, "ids"}
    assert {path.name for path in some.path("results").iterdir()} == names | made

    check_empty(some, [name for name, *_ in small])
    check_formats(some, formats, list(records))
    check_ids(some)
    assert some.run().jobs == []


def write_formats(some: Project, records: dict[str, str]) -> dict[str, str]:
    """Write the same records in several formats; sample and file of each, the plain one first."""
    plain = fasta(records)
    fastq = "".join(f"@{name} run\n{sequence}\n+\n{'I' * len(sequence)}\n" for name, sequence in records.items())
    wrapped = plain.replace("ACG", "ACG\n").replace("T", "u").lower().replace(">nc", ">NC").replace("\n", "\r\n")
    contents = {
        "plain": ("plain.fna", plain),
        "zip": ("zip", gzip.compress(plain.encode())),
        "fastq": ("reads.fastq", fastq),
        "fastq_gz": ("reads.fastq.gz", gzip.compress(fastq.encode())),
        "wrapped": ("wrapped.txt", wrapped),
    }
    for name, content in contents.values():
        some.write(f"data/{name}", content)
    return {sample: f"data/{name}" for sample, (name, _) in contents.items()}


def check_empty(some: Project, samples: list[str]) -> None:
    headers = {
        "frames": "\t".join(FRAME_COLUMNS) + "\n",
        "chunks": "\t".join(CHUNK_COLUMNS) + "\n",
        "contigs": "\t".join(CONTIG_COLUMNS) + "\n",
    }
    for name in ("empty", "zipped"):
        for table, header in headers.items():
            assert some.read(f"results/{name}/{table}.tsv") == header
    assert some.read("results/closed/frames.tsv") == headers["frames"]
    assert some.read("results/closed/chunks.tsv").splitlines()[1:] == [
        "c1_chunk_1\tc1\t1\t500\t0\tno_stop_free_frame\tNA\tNA\tNA\t1",
        "c1_chunk_2\tc1\t400\t899\t0\tno_stop_free_frame\tNA\tNA\tNA\t1",
        "c1_chunk_3\tc1\t799\t1200\t0\tno_stop_free_frame\tNA\tNA\tNA\t1",
        "c2_chunk_1\tc2\t1\t100\t0\tno_stop_free_frame\tNA\tNA\tNA\t1",
    ]
    assert some.read("results/closed/contigs.tsv").splitlines()[1:] == [
        "c1\t1200\t3\t0\tnot called\tNA\tFalse\tNA\tNA\tNA\tno chunk has a stop-free frame\t1",
        "c2\t100\t1\t0\tnot called\tNA\tFalse\tNA\tNA\tNA\tno chunk has a stop-free frame\t1",
    ]
    tiny = some.table("tiny/contigs.tsv")
    assert tiny["contig"].tolist() == ["r0", "r1", "r2", "r3"]
    assert tiny["reason"].tolist()[:3] == ["shorter than a codon"] * 3
    assert (tiny["decision"] == "not called").tolist() == [True] * 3 + [False]
    assert tiny["length"].tolist() == ["0", "1", "2", "3"]
    assert some.table("tiny/frames.tsv")["frame_id"].tolist() == ["r3_chunk_1F1", "r3_chunk_1R1"]

    for name in samples:
        found = read_embeddings(some.path(f"results/{name}/embeddings.h5"))
        assert found.attributes["complete"]
        ids = {"tiny": ["r3_chunk_1F1", "r3_chunk_1R1"]}.get(name, [])
        ids = ["r1", "r2", "r3"] if name in ("tiny_proteins", "tiny_dna") else ids
        assert found.ids == ids
        for name, matrix in found.matrices.items():
            assert matrix.shape == (len(ids), WIDTHS[name.partition("/")[0]])
    summary = some.table("summary.tsv").set_index("sample")
    assert summary.loc[samples, "records"].astype(int).tolist() == [0, 2, 4, 0, 0, 0, 4, 4]
    assert summary.loc[samples, "rows"].astype(int).tolist() == [0, 0, 2, 0, 0, 0, 3, 3]
    assert summary.loc[samples, "too_short"].astype(int).tolist() == [0, 0, 3, 0, 0, 0, 1, 1]


def check_formats(some: Project, formats: dict[str, str], records: list[str]) -> None:
    expected = read_embeddings(some.path("results/plain/embeddings.h5"))
    assert len(expected.ids) > 2
    for sample in formats:
        found = read_embeddings(some.path(f"results/{sample}/embeddings.h5"))
        assert found.ids == expected.ids
        assert found.records.ids == records
        for name in MEANS.values():
            np.testing.assert_array_equal(found.matrices[name], expected.matrices[name])
        for table in ("frames", "chunks", "contigs"):
            assert some.read(f"results/{sample}/{table}.tsv") == some.read(f"results/plain/{table}.tsv")
    distinct = some.table("summary.tsv").set_index("sample")["distinct_sequences"]
    assert distinct[[*formats]].nunique() == 1


def check_ids(some: Project) -> None:
    found = read_embeddings(some.path("results/ids/embeddings.h5"))
    assert found.records.ids == list(IDS)
    assert some.table("ids/contigs.tsv")["contig"].tolist() == list(IDS)
    assert "not called" not in some.table("ids/contigs.tsv")["decision"].tolist()
    calls = some.table("ids/frames.tsv")
    assert calls["frame_id"].tolist() == found.ids
    assert list(dict.fromkeys(calls["contig"])) == list(IDS)
    assert len(calls) == 6 * (len(IDS) + 1)
