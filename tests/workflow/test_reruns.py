"""What runs again, and what does not: jobs are counted after every kind of change."""

import os
import shutil

from holdfast.results.embeddings import read_embeddings

from tests.workflow.conftest import NewProject, fasta, jobs, open_sequence


def test_only_what_a_change_concerns_runs_again(project: NewProject, classifiers: os.PathLike[str]) -> None:
    some = project()
    classifier = f"{classifiers}/500_model.safetensors"
    some.configure(classifier=classifier)
    first, second = ("a", "data/a.fna"), ("b", "data/b.faa", "proteins")
    some.write("data/a.fna", fasta({"a1": open_sequence(501, 1)}))
    some.write("data/b.faa", fasta({"b1": "MKV"}))
    some.write_sheet(first, second)
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("a", "b", called=["a"])

    # A sample more.
    some.write("data/c.fna", fasta({"c1": open_sequence(300, 3)}))
    some.write_sheet(first, ("c", "data/c.fna"), second)
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("c", called=["c"])
    assert some.table("summary.tsv")["sample"].tolist() == ["a", "c", "b"]

    # One FASTA changed.
    some.write("data/a.fna", fasta({"a1": open_sequence(501, 1), "a2": open_sequence(300, 2)}))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("a", called=["a"])
    assert some.table("a/contigs.tsv")["contig"].tolist() == ["a1", "a2"]

    # Another chunk length concerns every sample that is cut, and no other.
    some.configure(classifier=classifier, chunk_length=300)
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("a", "c", called=["a", "c"])
    chunks = some.table("a/chunks.tsv")
    assert list(zip(chunks["start"], chunks["end"], strict=True)) == [("0", "300"), ("250", "501"), ("0", "300")]
    assert read_embeddings(some.path("results/a/embeddings.h5")).attributes["chunk_length_bp"] == 300

    # A sample less.
    some.write_sheet(first, second)
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == ["all", "draw", "summarize"]
    assert some.run().jobs == []


def test_lost_results_come_back_from_the_spool_or_are_computed_again(project: NewProject) -> None:
    some = project()
    some.write("data/a.fna", fasta({"a1": open_sequence(300, 1)}))
    some.write("data/b.faa", fasta({"b1": "MKV", "b2": "MKVLAAGG"}))
    some.write_sheet(("a", "data/a.fna"), ("b", "data/b.faa", "proteins"))
    assert some.run().returncode == 0
    lost = some.path("results/b/embeddings.h5")
    (kept,) = some.path(".holdfast/spool/done").glob("b-*/embeddings.h5")
    assert lost.samefile(kept)
    before = lost.read_bytes()

    lost.unlink()
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == ["all", "collect b", "draw", "summarize"]
    assert lost.samefile(kept)

    shutil.rmtree(lost.parent)
    shutil.rmtree(some.path(".holdfast/spool"))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("b")
    found = read_embeddings(lost)
    assert found.ids == ["b1", "b2"]
    assert lost.read_bytes() == before
    assert some.run().jobs == []


def test_a_file_replaced_by_an_older_one_of_the_same_size_is_noticed(project: NewProject) -> None:
    some = project()
    path = some.write("data/b.faa", fasta({"b1": "MKV"}))
    some.write_sheet(("b", "data/b.faa", "proteins"))
    assert some.run().jobs == jobs("b")
    time_ns = path.stat().st_mtime_ns - 10**12
    path.write_text(fasta({"b1": "GKV"}))
    os.utime(path, ns=(time_ns, time_ns))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("b")


def test_a_dry_run_says_what_would_run_and_leaves_nothing(project: NewProject) -> None:
    some = project()
    some.write("data/b.faa", ">p\nMKV\n")
    some.write_sheet(("b", "data/b.faa", "proteins"))
    run = some.run("--dry-run")
    assert (run.returncode, run.jobs) == (0, [])
    for rule in ("pool", "embed_0", "collect", "summarize"):
        assert f"rule {rule}:" in run.text
    assert not some.path("results").exists()
    assert not some.path(".holdfast").exists()
