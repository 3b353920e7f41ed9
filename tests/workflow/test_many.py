"""Many small samples of contigs: the consumers, which run one Python for several, call them; what changed does not."""

import sys
from pathlib import Path

import pytest
from holdfast.run.calling import CALLED

from tests.workflow.conftest import NewProject, Project, fasta, jobs, stop_free_sequence

SAMPLES = [f"s{number}" for number in range(20)]
TABLES = ("frames.tsv", "chunks.tsv", "contigs.tsv", "regions.tsv", "regions.bed", "virus.fna")


def content(some: Project, sample: str) -> dict[str, bytes]:
    """What was called of a sample."""
    return {name: some.path(f"results/{sample}/{name}").read_bytes() for name in TABLES}


def times(some: Project) -> dict[Path, int]:
    """When each table was written."""
    return {path: path.stat().st_mtime_ns for path in some.path("results").glob("s*/contigs.tsv")}


@pytest.fixture
def many(project: NewProject, classifiers: Path) -> Project:
    """A project of many small samples and a classifier."""
    some = project()
    for number, name in enumerate(SAMPLES):
        some.write(f"data/{name}.fna", fasta({f"{name}|1": stop_free_sequence(600 + number, number)}))
    some.configure(classifier=str(classifiers / "500_model.pth"))
    some.write_sheet(*((name, f"data/{name}.fna", "contigs") for name in SAMPLES))
    return some


def test_consumers_call_many_samples_and_no_process_is_started_for_one(many: Project) -> None:
    # What counts as a process of a sample: the command `classify`, which this python would note down.
    noted = many.path("noted.txt")
    shell = many.write("python.sh", f'#!/bin/bash\n[[ $2 == classify ]] && echo "$3" >> {noted}\nexec "$REAL" "$@"\n')
    shell.chmod(0o755)
    python = {"HOLDFAST_PYTHON": str(shell), "REAL": sys.executable}
    run = many.run(**python)
    assert run.returncode == 0, run.text
    assert run.jobs == jobs(*SAMPLES, called=SAMPLES, once=["convert_classifier"])
    assert not noted.exists()
    assert not [*many.path("results").rglob(f"{CALLED}*")]
    before = {name: content(many, name) for name in SAMPLES}
    written = times(many)
    assert many.run("-n").jobs == []
    assert "Nothing to be done" in many.run("-n").text

    # One more sample, in a group of its own, leaves the others alone.
    many.write("data/more.fna", fasta({"more": stop_free_sequence(900, 99)}))
    sheet = many.read("config/samples.tsv")
    many.write("config/samples.tsv", f"{sheet}more\tdata/more.fna\tcontigs\n")
    run = many.run(**python)
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("more", called=["more"])
    assert times(many) == written
    assert not noted.exists()

    # Called anew, by a process of its own, the tables are the same; what an earlier run left there is not used.
    some = "s3"
    many.path(f"results/{some}/contigs.tsv").unlink()
    left = many.path(f"results/{some}/{CALLED}")
    left.mkdir()
    (left / "contigs.tsv").write_text("of another run\n")
    (left / ".settings").write_text("{}")
    run = many.run(**python)
    assert run.returncode == 0, run.text
    assert noted.read_text() == f"results/{some}/embeddings.h5\n"
    assert content(many, some) == before[some]
