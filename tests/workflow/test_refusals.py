"""Mistakes in config, sample sheet and weights: each ends the run with a clear message and without a traceback."""

from collections.abc import Callable

import pytest

from tests.workflow.conftest import NewProject, Project, Run

ONE = ("a", "data/a.fna")
HEADER = "sample\tfasta\tkind\tlabel\n"


def refuse(project: Project, *expected: str) -> Run:
    """Run a project that must be refused, before any job, with words that stand in its output."""
    run = project.run()
    assert run.returncode != 0
    assert "Traceback" not in run.text
    for words in expected:
        assert words in run.text, run.text
    assert run.jobs == []
    assert not project.path("results").exists()
    return run


Change = Callable[[Project], object]
SHEETS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "missing FASTA": (
        HEADER + "a\tdata/missing.fna\n" + "b\tdata/a.fna\n" + "c\tdata/gone.fna\n",
        ("sample 'a': data/missing.fna", "sample 'c': data/gone.fna"),
    ),
    "duplicated sample": (
        HEADER + "a\tdata/a.fna\na\tdata/b.fna\n",
        ("samples.tsv", "line 3: sample 'a' stands already in line 2"),
    ),
    "unknown kind": (
        HEADER + "a\tdata/a.fna\tgenome\n",
        ("samples.tsv", "line 2: 'kind' must be one of contigs, proteins, dna, is 'genome'"),
    ),
    "unknown label": (
        HEADER + "a\tdata/a.fna\tcontigs\tphage\n",
        ("samples.tsv", "line 2: 'label' must be one of , virus, other, is 'phage'"),
    ),
    "unusable name": (
        HEADER + "../a\tdata/a.fna\n",
        ("samples.tsv", "line 2: 'sample' must start with a letter or digit", "is '../a'"),
    ),
    "taken name": (HEADER + "classifier\tdata/a.fna\n", ("sample 'classifier'", "choose another")),
    "single label": (
        HEADER + "a\tdata/a.fna\tcontigs\tvirus\nb\tdata/b.fna\n",
        ("every labelled sample is 'virus'", "training needs samples of both labels, virus and other"),
    ),
    "label of proteins": (
        HEADER + "a\tdata/a.fna\tproteins\tvirus\n",
        ("sample 'a' has a label, but only samples of kind contigs train",),
    ),
    "commas": ("sample,fasta\na,data/a.fna\n", ("samples.tsv, line 1: the columns must be sample, fasta",)),
    "binary": (b"PK\x03\x04\xff\xfe\x80 a spreadsheet", ("samples.tsv", "not UTF-8 text")),
    "empty": ("", ("samples.tsv, line 1: the columns must be sample, fasta", "found nothing")),
    "no sample": (HEADER, ("samples.tsv: holds no sample",)),
    "too many cells": (HEADER + "a\tdata/a.fna\tcontigs\tvirus\tmore\n", ("line 2: 5 cells",)),
}


@pytest.mark.parametrize("case", SHEETS)
def test_a_wrong_sample_sheet_is_refused(project: NewProject, case: str) -> None:
    some = project()
    for name in ("a", "b"):
        some.write(f"data/{name}.fna", ">r\nACGT\n")
    sheet, expected = SHEETS[case]
    some.write("config/samples.tsv", sheet)
    refuse(some, *expected)


CONFIGS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "unknown key": (
        lambda some: some.configure(precisoin="fp32", pool={"devcie": "cpu"}),
        ("unknown key 'precisoin'; did you mean 'precision'?", "unknown key 'pool.devcie'; did you mean 'device'?"),
    ),
    "wrong type": (
        lambda some: some.configure(chunk_length="many", pool={"threads": 0}),
        ("'chunk_length' must be of type integer, is 'many'", "'pool.threads' must be at least 1, is 0"),
    ),
    "wrong choice": (
        lambda some: some.configure(store_dtype="float64"),
        ("'store_dtype' must be one of float16, float32, is 'float64'",),
    ),
    "no models": (lambda some: some.write("config/config.yaml", "samples: config/samples.tsv\n"), ("'models'",)),
    "missing model": (
        lambda some: some.configure(models={"esm2": some.models["esm2"]}),
        ("sample 'a' is of kind contigs, which needs models.dnabert_s.weights in the config",),
    ),
    "no such classifier": (
        lambda some: some.configure(classifier="models/500_model.pth"),
        ("classifier: models/500_model.pth is not a file",),
    ),
    "no such sheet": (
        lambda some: some.configure(samples="config/sheet.tsv"),
        ("config/sheet.tsv: the sample sheet cannot be read: No such file or directory; set 'samples'",),
    ),
    "no config": (lambda some: some.path("config/config.yaml").unlink(), ("config/config.yaml",)),
    "config is a list": (lambda some: some.write("config/config.yaml", "- samples\n"), ("keys at top level",)),
    "malformed digest": (
        lambda some: some.configure(models={**some.models, "esm2": {"weights": "synthetic:esm2", "sha256": "abc"}}),
        ("'models.esm2.sha256' must be a SHA-256 digest, 64 hexadecimal digits in lower case, is 'abc'",),
    ),
    "other digest of a prepared model": (
        lambda some: some.configure(models={**some.models, "esm2": {**some.models["esm2"], "sha256": "0" * 64}}),
        ("sha256", "0" * 64),
    ),
    "prepared model of another kind": (
        lambda some: some.configure(models={**some.models, "esm2": some.models["dnabert_s"]}),
        ("models.esm2.weights", "dnabert_s"),
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_config_is_refused(project: NewProject, case: str) -> None:
    some = project()
    some.write("data/a.fna", ">r\nACGT\n")
    some.write_sheet(ONE)
    change, expected = CONFIGS[case]
    change(some)
    refuse(some, *expected)


def test_wrong_weights_end_the_run_before_a_pool_is_started(project: NewProject) -> None:
    some = project()
    some.write("data/a.fna", ">r\nACGT\n")
    some.write_sheet(ONE)
    sources = {
        "esm2": {"weights": "models/esm2_t36_3B_UR50D.pt"},
        "dnabert_s": {"weights": "synthetic:dnabert_s_tiny", "sha256": "0" * 64},
    }
    some.configure(models=sources)
    run = some.run("--keep-going")
    assert run.returncode != 0
    assert "Traceback" not in run.text
    assert run.jobs == []
    lines = {line for line in run.text.splitlines() if line.startswith("holdfast: error: ")}
    (path,) = [line for line in lines if "models/esm2_t36_3B_UR50D.pt" in line]
    assert "no such file or directory" in path
    (digest,) = [line for line in lines if "sha256" in line.lower()]
    assert "0" * 64 in digest
    for model, line in (("esm2", path), ("dnabert_s", digest)):
        assert line in some.read(f"logs/prepare_weights/{model}.log")
        assert not some.path(f"resources/{model}").exists()


def test_a_file_that_is_no_classifier_is_refused(project: NewProject) -> None:
    some = project()
    some.write("data/a.fna", ">r\n" + "GCC" * 50 + "\n")
    some.write_sheet(ONE)
    some.write("data/500_model.pth", b"not a classifier")
    some.configure(classifier="data/500_model.pth")
    run = some.run()
    assert run.returncode != 0
    assert "Traceback" not in run.text
    assert "classify a" not in run.jobs
    (line,) = {line for line in run.text.splitlines() if line.startswith("holdfast: error: ")}
    assert "data/500_model.pth" in line
    assert line in some.read("logs/convert_classifier.log")
