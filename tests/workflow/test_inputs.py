"""Inputs at the edge of what there can be, and the formats that say the same."""

import gzip
import os

import numpy as np
from holdfast.results.embeddings import read_embeddings
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records

from tests.workflow.conftest import DEMO, WIDTHS, NewProject, closed_sequence, fasta, jobs, open_sequence

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


def test_samples_without_anything_to_embed_are_finished_samples(
    project: NewProject, classifiers: os.PathLike[str]
) -> None:
    some = project()
    some.configure(classifier=f"{classifiers}/500_model.safetensors")
    closed = fasta({"c1": closed_sequence(1200), "c2": closed_sequence(100)})
    for name, content in (("empty", ""), ("closed", closed), ("tiny", TINY), ("zipped", gzip.compress(b""))):
        some.write(f"data/{name}.fa", content)
    contigs = ("empty", "closed", "tiny", "zipped")
    sheet = [(name, f"data/{name}.fa", "contigs") for name in contigs]
    sheet += [(f"{name}_{kind}", f"data/{name}.fa", kind) for name in ("empty", "tiny") for kind in ("proteins", "dna")]
    some.write_sheet(*sheet)
    run = some.run()
    assert run.returncode == 0, run.text
    samples = [row[0] for row in sheet]
    assert run.jobs == jobs(*samples, called=contigs)

    headers = {
        "frames": "frame_id\tcontig\tchunk\tframe\tprediction\tp_other\tp_virus\n",
        "chunks": "chunk_id\tcontig\tstart\tend\tframes\tstatus\tis_virus\tmax_p_virus\tmax_p_other\n",
        "contigs": "contig\tlength\tchunks\tchunks_with_frames\tstatus\tis_virus\tscore\n",
    }
    for name in ("empty", "zipped"):
        for table, header in headers.items():
            assert some.read(f"results/{name}/{table}.tsv") == header
    assert some.read("results/closed/frames.tsv") == headers["frames"]
    assert some.read("results/closed/chunks.tsv").splitlines()[1:] == [
        "c1_chunk_1\tc1\t0\t500\t0\tno_open_frame\tNA\tNA\tNA",
        "c1_chunk_2\tc1\t399\t899\t0\tno_open_frame\tNA\tNA\tNA",
        "c1_chunk_3\tc1\t798\t1200\t0\tno_open_frame\tNA\tNA\tNA",
        "c2_chunk_1\tc2\t0\t100\t0\tno_open_frame\tNA\tNA\tNA",
    ]
    assert some.read("results/closed/contigs.tsv").splitlines()[1:] == [
        "c1\t1200\t3\t0\tno_open_frame\tNA\tNA",
        "c2\t100\t1\t0\tno_open_frame\tNA\tNA",
    ]
    tiny = some.table("tiny/contigs.tsv")
    assert tiny["contig"].tolist() == ["r0", "r1", "r2", "r3"]
    assert tiny["status"].tolist() == ["too_short"] * 3 + ["called"]
    assert tiny["length"].tolist() == ["0", "1", "2", "3"]
    assert some.table("tiny/frames.tsv")["frame_id"].tolist() == ["r3_chunk_1F1", "r3_chunk_1R1"]

    for name in samples:
        found = read_embeddings(some.path(f"results/{name}/embeddings.h5"))
        assert found.attributes["complete"]
        ids = {"tiny": ["r3_chunk_1F1", "r3_chunk_1R1"]}.get(name, [])
        ids = ["r1", "r2", "r3"] if name in ("tiny_proteins", "tiny_dna") else ids
        assert found.ids == ids
        for model, matrix in found.matrices.items():
            assert matrix.shape == (len(ids), WIDTHS[model])
    summary = some.table("summary.tsv").set_index("sample")
    assert summary.loc[samples, "records"].astype(int).tolist() == [0, 2, 4, 0, 0, 0, 4, 4]
    assert summary.loc[samples, "rows"].astype(int).tolist() == [0, 0, 2, 0, 0, 0, 3, 3]
    assert summary.loc[samples, "too_short"].astype(int).tolist() == [0, 0, 3, 0, 0, 0, 1, 1]
    assert some.run().jobs == []


def test_formats_give_equal_results_and_ids_survive(project: NewProject, classifiers: os.PathLike[str]) -> None:
    some = project()
    some.configure(classifier=f"{classifiers}/500_model.safetensors")
    heldout = list(read_records(DEMO / "data" / "bacterium_heldout.fna", Alphabet.NUCLEOTIDE))[:3]
    records = {record.id: record.sequence for record in heldout}
    plain = fasta(records)
    fastq = "".join(f"@{name} run\n{sequence}\n+\n{'I' * len(sequence)}\n" for name, sequence in records.items())
    wrapped = plain.replace("ACG", "ACG\n").replace("T", "u").lower().replace(">nc", ">NC").replace("\n", "\r\n")
    some.write("data/plain.fna", plain)
    some.write("data/zipped", gzip.compress(plain.encode()))
    some.write("data/reads.fastq", fastq)
    some.write("data/reads.fastq.gz", gzip.compress(fastq.encode()))
    some.write("data/wrapped.txt", wrapped)
    some.write("data/ids.fna", fasta({name: open_sequence(length, 7) for name, length in IDS.items()}))
    names = {"plain": "plain.fna", "zip": "zipped", "fastq": "reads.fastq", "fastq_gz": "reads.fastq.gz"}
    names |= {"wrapped": "wrapped.txt", "ids": "ids.fna"}
    some.write_sheet(*((sample, f"data/{name}") for sample, name in names.items()))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs(*names, called=list(names))

    expected = read_embeddings(some.path("results/plain/embeddings.h5"))
    assert len(expected.ids) > 2
    for sample in set(names) - {"ids"}:
        found = read_embeddings(some.path(f"results/{sample}/embeddings.h5"))
        assert found.ids == expected.ids
        assert found.records.ids == list(records)
        for model in WIDTHS:
            np.testing.assert_array_equal(found.matrices[model], expected.matrices[model])
        for table in ("frames", "chunks", "contigs"):
            assert some.read(f"results/{sample}/{table}.tsv") == some.read(f"results/plain/{table}.tsv")
    distinct = some.table("summary.tsv").set_index("sample")["distinct_sequences"]
    assert distinct.nunique() == 2

    found = read_embeddings(some.path("results/ids/embeddings.h5"))
    assert found.records.ids == list(IDS)
    assert some.table("ids/contigs.tsv")["contig"].tolist() == list(IDS)
    assert some.table("ids/contigs.tsv")["status"].tolist() == ["called"] * len(IDS)
    calls = some.table("ids/frames.tsv")
    assert calls["frame_id"].tolist() == found.ids
    assert list(dict.fromkeys(calls["contig"])) == list(IDS)
    assert len(calls) == 6 * (len(IDS) + 1)
    made = {"figures", "report.html", "run.json", "runs", "summary.tsv"}
    assert {path.name for path in some.path("results").iterdir()} == {*names, *made}
