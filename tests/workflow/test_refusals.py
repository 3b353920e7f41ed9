"""Mistakes as Snakemake's user meets them: the message on the terminal, no traceback, and no job.

Every message of config, sample sheet and plan has its test in tests/run; here is one real run of each way to them.
"""

from collections.abc import Callable

import pytest

from tests.workflow.conftest import NewProject, Project

ONE = ("a", "data/a.fna")
Change = Callable[[Project], object]
MISTAKES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "config": (
        lambda some: some.configure(precisoin="fp32", pool={"devcie": "cpu"}),
        (
            "the config (config/config.yaml, --config) is not valid:",
            "unknown key 'precisoin'; did you mean 'precision'?",
            "unknown key 'pool.devcie'; did you mean 'device'?",
        ),
    ),
    "no config": (lambda some: some.path("config/config.yaml").unlink(), ("config/config.yaml",)),
    "files of the samples": (
        lambda some: some.write_sheet(("a", "data/missing.fna"), ("b", "data/a.fna"), ("c", "data/gone.fna")),
        ("sample 'a': data/missing.fna", "sample 'c': data/gone.fna"),
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_the_run_before_any_job(project: NewProject, case: str) -> None:
    some = project()
    some.write("data/a.fna", ">r\nACGT\n")
    some.write_sheet(ONE)
    change, expected = MISTAKES[case]
    change(some)
    run = some.run()
    assert run.returncode != 0
    assert "Traceback" not in run.text
    for words in expected:
        assert words in run.text, run.text
    assert run.jobs == []
    assert not some.path("results").exists()


def test_wrong_weights_and_a_file_that_is_no_classifier_end_the_run_before_a_pool_is_started(
    project: NewProject,
) -> None:
    some = project()
    some.write("data/a.fna", ">r\nACGT\n")
    some.write_sheet(ONE)
    some.write("data/500_model.pth", b"not a classifier")
    sources = {
        "esm2": {"weights": "models/esm2_t36_3B_UR50D.pt"},
        "dnabert_s": {"weights": "synthetic:dnabert_s_tiny", "sha256": "0" * 64},
    }
    some.configure(models=sources, classifier="data/500_model.pth")
    run = some.run("--keep-going")
    assert run.returncode != 0
    assert "Traceback" not in run.text
    assert run.jobs == []
    said = [line for line in run.text.splitlines() if line.startswith("holdfast: error: ")]
    assert run.text.rstrip().splitlines()[-3:] == said[-3:], "the last lines repeat the causes"
    assert {line.rpartition(" (logs/")[0] for line in said[-3:]} == set(said[:-3])
    lines = set(said[:-3])
    (path,) = [line for line in lines if "models/esm2_t36_3B_UR50D.pt" in line]
    assert "no such file or directory" in path
    (digest,) = [line for line in lines if "sha256" in line.lower()]
    assert "0" * 64 in digest
    (classifier,) = [line for line in lines if "data/500_model.pth" in line]
    assert len(lines) == 3
    for log, line in (
        ("prepare_weights/esm2", path),
        ("prepare_weights/dnabert_s", digest),
        ("convert_classifier", classifier),
    ):
        assert line in some.read(f"logs/{log}.log")
    for made in ("esm2", "dnabert_s", "classifier.safetensors"):
        assert not some.path(f"resources/{made}").exists()
