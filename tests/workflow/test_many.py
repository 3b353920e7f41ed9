"""Many small samples of contigs: one process calls them; which of them are called is for Snakemake to say."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workflow.conftest import NewProject, Project, Run, fasta, jobs, stop_free_sequence

SAMPLES = [f"s{number}" for number in range(15)]
TABLES = ("frames.tsv", "chunks.tsv", "contigs.tsv", "regions.tsv", "regions.bed", "virus.fna")


def content(some: Project, sample: str) -> dict[str, bytes]:
    """What was called of a sample."""
    return {name: some.path(f"results/{sample}/{name}").read_bytes() for name in TABLES}


def times(some: Project) -> dict[Path, int]:
    """When each table was written."""
    return {path: path.stat().st_mtime_ns for path in some.path("results").glob("s*/contigs.tsv")}


@pytest.fixture
def many(project: NewProject) -> Project:
    """A project of many small samples."""
    some = project()
    for number, name in enumerate(SAMPLES):
        some.write(f"data/{name}.fna", fasta({f"{name}|1": stop_free_sequence(600 + number, number)}))
    some.write_sheet(*((name, f"data/{name}.fna", "contigs") for name in SAMPLES))
    return some


@pytest.fixture
def called_alone(many: Project) -> Callable[[], list[str]]:
    """Samples that have had a process of their own, the command ``classify``, since this was asked before."""
    noted = many.write("noted.txt", "")
    shell = many.write("python.sh", f'#!/bin/bash\n[[ $2 == classify ]] && echo "$3" >> {noted}\nexec "$REAL" "$@"\n')
    shell.chmod(0o755)

    def ask() -> list[str]:
        found = [line.split("/")[1] for line in noted.read_text().splitlines()]
        noted.write_text("")
        return found

    return ask


def run(many: Project, *options: str) -> Run:
    """Run it with a python that notes what it is asked."""
    ended = many.run(*options, HOLDFAST_PYTHON=str(many.path("python.sh")), REAL=sys.executable)
    assert ended.returncode == 0, ended.text
    assert not [*many.path(".holdfast").rglob("called/*")]
    return ended


def test_one_process_calls_many_samples_and_those_that_stay_as_they_are_are_left(
    many: Project, classifiers: Path, called_alone: Callable[[], list[str]]
) -> None:
    many.configure(classifier=str(classifiers / "500_model.pth"))
    assert run(many).jobs == jobs(*SAMPLES, called=SAMPLES, once=["convert_classifier"])
    assert called_alone() == []
    before = {name: content(many, name) for name in SAMPLES}
    written = times(many)
    assert "Nothing to be done" in many.run("-n").text

    # One more sample.
    many.write("data/more.fna", fasta({"more": stop_free_sequence(900, 99)}))
    sheet = many.read("config/samples.tsv")
    many.write("config/samples.tsv", f"{sheet}more\tdata/more.fna\tcontigs\n")
    assert run(many).jobs == sorted([*jobs("more", called=["more"]), "classify_small"])
    assert times(many) == written
    assert called_alone() == []

    # A sample that is called again, without anything new to embed, has a process of its own, and the same tables.
    many.path("results/s3/contigs.tsv").unlink()
    run(many)
    assert called_alone() == ["s3"]
    assert content(many, "s3") == before["s3"]

    # Other rules: one process calls all of them.
    many.configure(classifier=str(classifiers / "500_model.pth"), calls={"virus_score": 0.99})
    again = run(many)
    assert "classify_small" in again.jobs
    assert {f"classify_contigs {name}" for name in SAMPLES} < set(again.jobs)
    assert called_alone() == []
    changed = {name: content(many, name) for name in SAMPLES}
    assert all(changed[name]["frames.tsv"] == before[name]["frames.tsv"] for name in SAMPLES)
    assert any(changed[name]["contigs.tsv"] != before[name]["contigs.tsv"] for name in SAMPLES)
    assert "Nothing to be done" in many.run("-n").text


def test_one_process_calls_many_samples_with_a_classifier_that_others_train(
    many: Project, called_alone: Callable[[], list[str]]
) -> None:
    labels = {"s0": "virus", "s1": "virus", "s2": "non-viral", "s3": "non-viral"}
    many.write_sheet(*((name, f"data/{name}.fna", "contigs", labels.get(name, "")) for name in SAMPLES))
    left = [name for name in SAMPLES if name not in labels]
    assert run(many).jobs == jobs(*SAMPLES, called=left, once=["train"])
    assert called_alone() == []

    # A label more, and the classifier is another one.
    labels["s4"] = "virus"
    many.write_sheet(*((name, f"data/{name}.fna", "contigs", labels.get(name, "")) for name in SAMPLES))
    again = run(many)
    assert {f"classify_contigs {name}" for name in left if name != "s4"} < set(again.jobs)
    assert called_alone() == []


MODULE = """
module below:
    snakefile: "{repository}/workflow/Snakefile"
    config: {config}
    prefix: "below"

use rule * from below as below_*

rule all:
    default_target: True
    input: rules.below_all.input
"""


@pytest.mark.thorough
def test_one_process_calls_many_samples_of_a_module_with_a_prefix(
    many: Project, classifiers: Path, called_alone: Callable[[], list[str]]
) -> None:
    config = {"samples": "config/samples.tsv", "models": many.models, "classifier": str(classifiers / "500_model.pth")}
    snakefile = many.write("Snakefile", MODULE.format(repository=many.repository, config=config))
    ended = run(many, "-s", str(snakefile))
    assert {"below_classify_small", *(f"below_classify_contigs {name}" for name in SAMPLES)} < set(ended.jobs)
    assert called_alone() == []
    assert many.path("below/results/s3/contigs.tsv").exists()
    assert not [*many.path("below/.holdfast").rglob("called/*")]
    assert "Nothing to be done" in many.run("-n", "-s", str(snakefile)).text
