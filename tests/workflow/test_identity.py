"""What a result is: the same work is never done twice, wherever its files lie, and can be forced."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from holdfast.results.embeddings import read_embeddings
from holdfast.spool.job import read_receipt

from tests.workflow.conftest import HOLDFAST, NewProject, Project, fasta, stop_free_sequence

EMBEDS = ("pool", "embed ", "prepare_weights")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, models: Path, classifiers: Path) -> Project:
    """A project that is done: contigs, proteins, and a second sample of the same proteins."""
    some = Project(tmp_path_factory.mktemp("original") / "project", models)
    some.configure(classifier=str(classifiers / "500_model.pth"))
    some.write("data/a.fna", fasta({"a1": stop_free_sequence(501, 1), "a2": stop_free_sequence(300, 2)}))
    some.write("data/b.faa", fasta({"b1": "MKV", "b2": "MKVLAAGG"}))
    shutil.copyfile(some.path("data/b.faa"), some.path("data/c.faa"))
    some.write_sheet(("a", "data/a.fna"), ("b", "data/b.faa", "proteins"), ("c", "data/c.faa", "proteins"))
    run = some.run()
    assert run.returncode == 0, run.text
    return some


@pytest.fixture
def finished(project: NewProject, original: Project) -> Project:
    """A copy of it, its files with their times."""
    some = project()
    shutil.rmtree(some.directory)
    shutil.copytree(original.directory, some.directory)
    return some


def embedded_again(some: Project, *arguments: str) -> list[str]:
    """The jobs of a run that loads models or embeds; tables may be made anew."""
    run = some.run(*arguments)
    assert run.returncode == 0, run.text
    return [job for job in run.jobs if job.startswith(EMBEDS)]


def test_nothing_is_to_be_done_after_a_run(finished: Project) -> None:
    assert "Nothing to be done" in finished.run("--dry-run").text
    for kind in ("code", "input"):  # --list-params-changes of Snakemake 9.27 names files whose parameters are the same
        changes = finished.run("--list-changes", kind)
        found = [line for line in changes.text.splitlines() if line.startswith(("results", "resources"))]
        assert (changes.returncode, found) == (0, [])
    summary = [line.split("\t") for line in finished.run("--summary").text.splitlines()]
    place = summary[next(number for number, line in enumerate(summary) if line[0] == "output_file")]
    rows = [dict(zip(place, line, strict=True)) for line in summary if len(line) == len(place) and line != place]
    files = [row for row in rows if not row["output_file"].endswith("pool.0.json")]
    assert len(files) > 10
    assert {(row["status"], row["plan"]) for row in files} == {("ok", "no update")}


def test_samples_of_one_content_share_their_work(finished: Project) -> None:
    first, second = (read_receipt(finished.path(f"results/{name}/receipt.json")) for name in ("b", "c"))
    assert first is not None
    assert second is not None
    assert first.job.removeprefix("b-") == second.job.removeprefix("c-")
    assert {first.same_as, second.same_as} & {first.job, second.job}
    b, c = (read_embeddings(finished.path(f"results/{name}/embeddings.h5")) for name in ("b", "c"))
    assert (b.attributes["sample"], c.attributes["sample"]) == ("b", "c")
    assert c.attributes["job"] == second.job
    assert (b.matrices["esm2/6/mean"] == c.matrices["esm2/6/mean"]).all()


@pytest.mark.parametrize("way", ["moved", "copied without times", "touched", "linked", "seen by --touch"])
def test_a_project_that_is_elsewhere_or_touched_is_not_computed_again(finished: Project, way: str) -> None:
    before = read_embeddings(finished.path("results/a/embeddings.h5")).ids
    place = finished.directory.with_name(f"{finished.directory.name}-elsewhere")
    if way == "moved":
        finished.directory.rename(place)
        finished.directory = place
    elif way == "copied without times":  # in an order that leaves inputs newer than what was made of them
        for name in ("results", ".snakemake", ".holdfast", "config", "data", "resources"):
            if finished.path(name).exists():
                time.sleep(0.02)
                shutil.copytree(finished.path(name), place / name, copy_function=shutil.copyfile)
        shutil.rmtree(finished.directory)
        finished.directory = place
        for name in ("embeddings.h5", "records.tsv", "receipt.json"):
            time.sleep(0.02)
            for sample in "abc":
                os.utime(place / "results" / sample / name)
    elif way == "linked":
        finished.path("data").rename(place)
        finished.path("data").symlink_to(place)
        for path in place.iterdir():
            path.touch()
    else:
        for path in finished.path("data").iterdir():
            path.touch()
    arguments = ("--touch",) if way == "seen by --touch" else ()
    assert embedded_again(finished, *arguments) == []
    assert "Nothing to be done" in finished.run("--dry-run").text
    assert read_embeddings(finished.path("results/a/embeddings.h5")).ids == before
    receipt = read_receipt(finished.path("results/b/receipt.json"))
    assert receipt is not None
    assert not os.path.isabs(receipt.embeddings)
    if place.exists() and place != finished.directory:
        shutil.rmtree(place)


def test_what_changed_in_truth_is_embedded_again_though_its_size_is_the_same(finished: Project) -> None:
    path = finished.write("data/b.faa", fasta({"b1": "GKV", "b2": "MKVLAAGG"}))
    os.utime(path, (1, 1))
    assert embedded_again(finished) == ["embed b", "pool"]
    assert read_embeddings(finished.path("results/b/embeddings.h5")).sha256.tolist() != (
        read_embeddings(finished.path("results/c/embeddings.h5")).sha256.tolist()
    )


def test_a_sample_is_embedded_again_when_it_was_forgotten(finished: Project) -> None:
    def forget(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [*HOLDFAST, "forget", *words, "-d", str(finished.directory)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    assert (forget("b").returncode, finished.path("results/b/embeddings.h5").exists()) == (0, False)
    assert embedded_again(finished) == ["embed b", "pool"]
    outcome = read_receipt(finished.path("results/b/receipt.json"))
    assert outcome is not None
    assert outcome.counts["computed_tokens"] > 0
    said = forget("b", "x")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == (
        f"holdfast: error: x: no sample of {finished.path('results')} has this name; samples with results are a, b, c\n"
    )
    assert forget().returncode == 2
    assert forget("--all").stdout.count("forgotten") == 3
    run = finished.run()
    assert run.returncode == 0
    assert [job for job in run.jobs if job.startswith("collect")] == ["collect a", "collect b", "collect c"]


def test_outputs_that_were_deleted_come_back_from_the_spool(finished: Project) -> None:
    (kept,) = finished.path(".holdfast/spool/done").glob("b-*/embeddings.h5")
    assert finished.run("--delete-all-output").returncode == 0
    assert not finished.path("results/b/embeddings.h5").exists()
    assert embedded_again(finished) == []
    assert finished.path("results/b/embeddings.h5").samefile(kept)
