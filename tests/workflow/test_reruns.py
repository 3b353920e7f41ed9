"""What runs again, and what does not: one project, whose jobs are counted after every kind of change."""

import os
import shutil

import numpy as np
from holdfast.results.embeddings import read_embeddings

from tests.workflow.conftest import AFTERWARDS, NewProject, fasta, jobs, stop_free_sequence


def test_only_what_a_change_concerns_runs_again(project: NewProject, classifiers: os.PathLike[str]) -> None:
    some = project()
    published, converted = (f"{classifiers}/500_model.{suffix}" for suffix in ("pth", "safetensors"))
    some.configure(classifier=published)
    first, second = ("a", "data/a.fna"), ("b", "data/b.faa", "proteins")
    some.write("data/a.fna", fasta({"a1": stop_free_sequence(501, 1), "a2": stop_free_sequence(300, 2)}))
    proteins = some.write("data/b.faa", fasta({"b1": "MKV", "b2": "MKVLAAGG"}))
    some.write_sheet(first, second)

    # A dry run says what would run, and leaves nothing.
    run = some.run("--dry-run")
    assert (run.returncode, run.jobs) == (0, [])
    for rule in ("rule pool", "rule embed_0", "checkpoint list_failures"):
        assert f"{rule}:" in run.text
    assert "holdfast: " not in run.text
    assert not some.path("results").exists()
    assert not some.path(".holdfast").exists()

    run = some.run("--quiet", "progress")
    assert run.returncode == 0, run.text
    (said,) = [line for line in run.text.splitlines() if line.startswith("holdfast: ")]
    assert said.startswith("holdfast: 2 of 2 contigs called virus (")
    lost = some.path("results/b/embeddings.h5")
    (kept,) = some.path(".holdfast/spool/done").glob("b-*/embeddings.h5")
    assert lost.samefile(kept)

    # A sample more, and a file replaced by an older one of the same size.
    some.write("data/c.fna", fasta({"c1": stop_free_sequence(300, 3)}))
    some.write_sheet(first, ("c", "data/c.fna"), second)
    time_ns = proteins.stat().st_mtime_ns - 10**12
    proteins.write_text(fasta({"b1": "GKV", "b2": "MKVLAAGG"}))
    os.utime(proteins, ns=(time_ns, time_ns))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("b", "c", called=["c"])
    assert some.table("summary.tsv")["sample"].tolist() == ["a", "c", "b"]
    (kept,) = some.path(".holdfast/spool/done").glob("b-*/embeddings.h5")
    assert lost.samefile(kept)
    before = read_embeddings(lost)

    # Another chunk length concerns every sample that is cut, and no other.
    some.configure(classifier=published, chunk_length=300)
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("a", "c", called=["a", "c"])
    chunks = some.table("a/chunks.tsv")
    assert list(zip(chunks["start_1based"], chunks["end_1based"], strict=True)) == [
        ("1", "300"),
        ("251", "501"),
        ("1", "300"),
    ]
    assert read_embeddings(some.path("results/a/embeddings.h5")).attributes["chunk_length_bp"] == 300

    # A sample less, another file with the same classifier, and a lost result that is still in the spool.
    tables = [some.read(f"results/a/{name}.tsv") for name in ("frames", "chunks", "contigs")]
    some.configure(classifier=converted, chunk_length=300)
    some.write_sheet(first, second)
    lost.unlink()
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == sorted(["classify_contigs a", "collect b", "combine", *AFTERWARDS])
    assert [some.read(f"results/a/{name}.tsv") for name in ("frames", "chunks", "contigs")] == tables
    assert lost.samefile(kept)
    assert some.table("summary.tsv")["sample"].tolist() == ["a", "b"]

    # Lost for good.
    shutil.rmtree(lost.parent)
    shutil.rmtree(some.path(".holdfast/spool"))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("b")
    assert read_embeddings(lost).ids == ["b1", "b2"]
    for name, values in read_embeddings(lost).matrices.items():  # float16, of batches of another shape
        np.testing.assert_allclose(values, before.matrices[name], rtol=2e-3, atol=2e-3)
    assert some.run().jobs == []
