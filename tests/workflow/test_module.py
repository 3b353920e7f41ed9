"""Holdfast as a module of other workflows: the worked example, a module from a tag on GitHub, and mistakes."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from holdfast.results.embeddings import read_embeddings

from tests.workflow.conftest import AFTERWARDS, DEMO, MEANS, REPOSITORY, Project, fasta, jobs, stop_free_sequence

EXAMPLE = REPOSITORY / "examples" / "module"
GITHUB = 'github("OWNER/holdfast", path="workflow/Snakefile", tag="v0.2.0")'
NOTHING = "Nothing to be done"

# Two modules with the same sample's name and different models; the sequence files are temporary. A rule with `run` is a
# job that reads the Snakefile anew, as jobs on a cluster do, and finds the plans of both modules.
TWO = """
module first:
    snakefile:
        {source}
    config:
        {first}
    prefix:
        "first"

module second:
    snakefile:
        {source}
    config:
        {second}
    prefix:
        "second"

use rule * from first as first_*
use rule * from second exclude all as second_*

rule all:
    default_target: True
    input:
        rules.first_all.input,
        rules.second_all.input,

rule make:
    input:
        "data/{{name}}",
    output:
        temp("made/{{name}}"),
    run:
        import shutil

        assert not workflow.is_main_process
        assert "/first/" in first.PLAN.path and "/second/" in second.PLAN.path
        shutil.copy(input[0], output[0])
"""

ONE = """
module holdfast:
    snakefile: "{source}"
    config: {config}

use rule * from holdfast

rule everything:
    default_target: True
    input:
        rules.all.input,

rule make:
    input:
        "data/c.fna",
    output:
        temp("made/c.fna"),
    shell:
        "cp {{input}} {{output}}"
"""


def afterwards(module: str) -> list[str]:
    """The jobs of a module that run once when all samples have a receipt."""
    return [f"{module}_{rule}" for rule in AFTERWARDS if rule != "all"]


def lengths(path: Path) -> dict[str, int]:
    """Length of each record of a FASTA file, by id."""
    records = [record.split("\n", 1) for record in path.read_text().split(">")[1:]]
    return {head.split()[0]: len(letters.replace("\n", "")) for head, letters in records}


def test_the_example_embeds_what_its_own_rule_filters_and_notices_what_that_makes_anew(
    tmp_path: Path, models: Path
) -> None:
    for name in ("workflow", "envs", "demo"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    some = Project(tmp_path / "examples" / "module", models)
    shutil.copytree(EXAMPLE, some.directory, dirs_exist_ok=True)
    prepared = json.dumps({"models": some.models})
    arguments = ("-s", str(some.path("Snakefile")), "--config", f"holdfast={prepared}")
    run = some.run(*arguments)
    assert run.returncode == 0, run.text
    assert run.jobs == sorted(
        ["all", "holdfast_pool", "holdfast_embed_0", "holdfast_embed_1", *afterwards("holdfast")]
        + [f"holdfast_collect {name}" for name in ("long_pieces", "long_proteins")]
        + [f"filter {name}" for name in ("pieces.fna", "proteins.faa")]
    )
    proteins = read_embeddings(some.path("holdfast/results/long_proteins/embeddings.h5"))
    wanted = [name for name, length in lengths(DEMO / "data/phage_proteins.faa").items() if length >= 150]
    assert 0 < len(wanted) < 20
    assert (proteins.ids, list(proteins.matrices)) == (wanted, [MEANS["esm2"]])
    pieces = read_embeddings(some.path("holdfast/results/long_pieces/embeddings.h5"))
    assert (pieces.ids, list(pieces.matrices)) == (
        list(lengths(DEMO / "data/bacterium_heldout.fna")),
        [MEANS["dnabert_s"]],
    )
    summary = some.read("holdfast/results/summary.tsv").splitlines()
    assert [line.split("\t")[:2] for line in summary[1:]] == [["long_proteins", "proteins"], ["long_pieces", "dna"]]
    for name in ("results", "logs/pool.0.log", "benchmarks", ".holdfast"):
        assert not some.path(name).exists()
    for name in ("logs/pool.0.log", "logs/embed/1.log", ".holdfast/spool/done"):
        assert some.path(f"holdfast/{name}").exists()
    assert not some.path("holdfast/.holdfast/runs").exists()

    text = some.read("config.yaml")
    assert text.count("shortest: 150") == 1
    some.write("config.yaml", text.replace("shortest: 150", "shortest: 500"))
    run = some.run(*arguments)
    assert run.returncode != 0
    assert run.jobs == ["filter proteins.faa"]
    assert "sample 'long_proteins': filtered/proteins.faa was made anew or changed during this run" in run.text
    run = some.run(*arguments)
    assert run.returncode == 0, run.text
    again = ["holdfast_collect long_proteins", "holdfast_embed_0", "holdfast_pool"]
    assert run.jobs == sorted(["all", *again, *afterwards("holdfast")])
    longer = read_embeddings(some.path("holdfast/results/long_proteins/embeddings.h5"))
    assert 0 < len(longer.ids) < len(wanted)
    assert set(longer.ids) < set(wanted)
    np.testing.assert_array_equal(
        longer.matrices[MEANS["esm2"]][0], proteins.matrices[MEANS["esm2"]][wanted.index(longer.ids[0])]
    )
    assert some.processes_left() == []


@pytest.fixture
def two(tmp_path: Path, models: Path, publish: Callable[[Path], None]) -> Iterator[Project]:
    """A workflow with two modules, and a repository on GitHub as git finds it: elsewhere."""
    source = tmp_path / "source"
    for name in ("workflow", "envs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    publish(source)
    some = Project(tmp_path / "project", models)
    some.write("data/p.faa", fasta({"p1": "MKVLAAGGIVA", "p2": "MKV"}))
    some.write("data/d.fna", fasta({"d1": "ACGTNACGT"}))
    yield some
    assert some.processes_left() == []


def failures(some: Project, module: str) -> list[str]:
    """Lines of a module's table of failures, without the heading."""
    return some.read(f"{module}/results/failures.tsv").splitlines()[1:]


def write_two(some: Project, source: str, second_fasta: str = "made/d.fna") -> None:
    """Write the Snakefile with the two modules."""
    first = {"sample": "s", "fasta": "made/p.faa", "kind": "proteins"}
    second = {"sample": "s", "fasta": second_fasta, "kind": "dna"}
    configs = {
        name: repr({"models": {model: some.models[model]}, "samples": [row], "precision": "fp32"})
        for name, model, row in (("first", "esm2", first), ("second", "dnabert_s", second))
    }
    some.write("Snakefile", TWO.format(source=source, **configs))


def test_two_modules_from_github_with_models_of_their_own(two: Project, tmp_path: Path) -> None:
    """A broken record in the first harms the second as little as the first's files are the second's.

    The first has a report of its own, of no sample that was done, and its last job fails; without --keep-going that may
    be before the second has had its turn.
    """
    write_two(two, GITHUB)
    two.write("data/p.faa", fasta({"p1": "MKVLAAGGIVA", "p1 ": "MK"}))
    arguments = ("-s", str(two.path("Snakefile")))
    run = two.run(*arguments, "--keep-going")
    assert run.returncode != 0
    second = ["second_collect s", "second_embed_0", "second_pool", *afterwards("second")]
    first = ["first_embed_0", "first_pool", *afterwards("first")]
    first.remove("first_check_samples")
    assert run.jobs == sorted([*second, *first, "make d.fna", "make p.faa"])
    assert "error: 1 sample has failed: s; first/results/failures.tsv says why" in run.text
    (failure,) = failures(two, "first")
    assert "line 3, record 'p1': the id is that of line 1 too" in failure
    assert f"  s: {failure.split(chr(9))[2]}" in run.text
    assert failures(two, "second") == []

    # Mended, the first runs alone.
    two.write("data/p.faa", fasta({"p1": "MKVLAAGGIVA", "p2": "MKV"}))
    run = two.run(*arguments)
    assert run.returncode == 0, run.text
    first = ["first_collect s", "first_embed_0", "first_pool", *afterwards("first")]
    assert run.jobs == sorted([*first, "all", "make p.faa"])
    for name, model, ids in (("first", "esm2", ["p1", "p2"]), ("second", "dnabert_s", ["d1"])):
        found = read_embeddings(two.path(f"{name}/results/s/embeddings.h5"))
        assert (found.ids, list(found.matrices)) == (ids, [MEANS[model]])
        assert f"loading {model} on cpu" in two.read(f"{name}/logs/pool.0.log")
        record = json.loads(two.read(f"{name}/results/run.json"))
        assert (record["results"], list(record["models"])) == (f"{name}/results", [model])
        assert f"{name}/results/summary.tsv" in record["outputs"]
        assert all(path.startswith(f"{name}/results/") for path in record["outputs"])
        assert record["samples"]["s"]["run"] == record["run"]
    assert failures(two, "first") == []
    assert not two.path("made").exists()
    records = {name: len(list(two.path(f"{name}/results/runs").iterdir())) for name in ("first", "second")}
    assert records == {"first": 2, "second": 1}, "a run leaves a record where it did something"

    # Nothing runs again from a clone in another place, whose files are newer.
    clone = tmp_path / "clone"
    shutil.copytree(tmp_path / "source", clone, copy_function=shutil.copyfile)
    write_two(two, f'"{clone}/workflow/Snakefile"')
    run = two.run(*arguments)
    assert NOTHING in run.text, run.text


def test_mistakes_are_said_with_the_name_of_the_module(two: Project, tmp_path: Path) -> None:
    arguments = ("-s", str(two.path("Snakefile")))
    write_two(two, f'"{tmp_path}/source/workflow/Snakefile"', "nowhere/d.fna")
    run = two.run(*arguments)
    assert (run.returncode, run.jobs) == (1, [])
    assert "MissingInputException in rule second_" in run.text
    assert "affected files:\n        nowhere/d.fna" in run.text

    two.write("Snakefile", two.read("Snakefile").replace("'kind': 'dna'", "'kind': 'genes'"))
    run = two.run(*arguments)
    assert (run.returncode, run.jobs) == (1, [])
    assert "module 'second': the list 'samples' of the config is not valid:\n  entry 1: " in run.text, run.text
    assert "Traceback" not in run.text


def test_a_temporary_file_lives_until_its_viruses_are_written(tmp_path: Path, models: Path, classifiers: Path) -> None:
    some = Project(tmp_path / "project", models)
    records = {f"c{number}": stop_free_sequence(900, number) for number in range(6)}
    some.write("data/c.fna", fasta(records))
    config = {
        "models": some.models,
        "samples": [{"sample": "c", "fasta": "made/c.fna"}],
        "classifier": str(classifiers / "500_model.pth"),
        "calls": {"virus_score": 0.0, "non_viral_score": 0.0},
    }
    some.write("Snakefile", ONE.format(source=REPOSITORY / "workflow/Snakefile", config=config))
    run = some.run("-s", str(some.path("Snakefile")))
    assert run.returncode == 0, run.text
    wanted = [job for job in jobs("c", called=["c"], once=["convert_classifier", "everything", "make"]) if job != "all"]
    assert run.jobs == wanted
    assert not some.path("made/c.fna").exists()
    lines = some.read("results/c/virus.fna").splitlines()
    assert {head.split()[0][1:]: letters for head, letters in zip(lines[::2], lines[1::2], strict=True)} == records
    assert some.read("results/virus.fna").startswith(">c|c0 ")
    run = some.run("-s", str(some.path("Snakefile")))
    assert NOTHING in run.text, run.text
    assert some.processes_left() == []
