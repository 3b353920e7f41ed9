"""Which samples are pending: those without a receipt for exactly this work, or without its embeddings."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from holdfast.errors import ConfigError
from holdfast.run.config import Sample, check_config
from holdfast.run.pending import find_pending, known_models
from holdfast.run.plan import make_plan
from holdfast.spool.job import read_receipt

from tests.run.plans import CONFIG, MODELS, SAMPLES, asked, finish, prepare, replace_receipt

ABP = ["a", "b", "p"]


def pending(**changed: Any) -> list[str]:
    return list(found_pending({**CONFIG, **changed}, SAMPLES))


def found_pending(config: dict[str, Any], samples: list[Sample]) -> dict[str, int]:
    """As the main process finds them; what is asked of models has its defaults."""
    config = check_config(config)
    return find_pending(config, samples, known_models(config))


def test_all_is_pending_where_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pending() == ["a", "b", "p", "d"]


def test_nothing_is_pending_where_all_is_done(project: Path) -> None:
    assert pending() == []


def test_a_new_sample_alone_is_pending(project: Path) -> None:
    assert found_pending(CONFIG, [Sample("n", "n.fna", "contigs", "", ""), *SAMPLES]) == {"n": 0}


def write(path: str, text: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(text)


def fail(name: str) -> None:
    (sample,) = (sample for sample in SAMPLES if sample.sample == name)
    finish(sample, CONFIG, "failed")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (write("a.fna", ">x\nACGTA\n"), ["a"]),
        (lambda: os.utime("b.fna", ns=(1, 1)), []),
        (lambda: os.remove("p.faa"), []),
        (lambda: fail("d"), ["d"]),
        (lambda: os.remove("results/a/receipt.json"), ["a"]),
        (write("results/a/receipt.json", "{"), ["a"]),
        (write("results/a/receipt.json", "{}"), ["a"]),
        (lambda: os.remove("results/b/embeddings.h5"), ["b"]),
        (lambda: replace_receipt("a", job="a-0123456789abcdef"), ["a"]),
        (lambda: prepare("resources/esm2", "esm2", MODELS["esm2"], "c" * 64), ["a", "b", "p"]),
        (lambda: prepare("resources/dnabert_s", "dnabert_s", MODELS["dnabert_s"], "c" * 64), ["a", "b", "d"]),
        # nobody knows now whether it embeds DNA, as sample d needs
        (lambda: os.remove("resources/esm2/model.json"), ["a", "b", "p", "d"]),
        (write("resources/esm2/model.json", "{"), ["a", "b", "p", "d"]),
    ],
)
def test_what_changed_is_pending_and_nothing_else(
    project: Path, change: Callable[[], object], wanted: list[str]
) -> None:
    change()
    assert pending() == wanted


def test_a_sequence_file_that_is_gone_does_not_hide_what_else_has_changed(project: Path) -> None:
    for sample in SAMPLES:
        os.remove(sample.fasta)
    assert pending() == []
    assert pending(chunk_length=300) == ["a", "b"]
    os.remove("results/p/embeddings.h5")
    assert found_pending(CONFIG, SAMPLES) == {"p": 0}


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"chunk_length": 300}, ["a", "b"]),
        ({"precision": "fp32"}, ["a", "b", "p", "d"]),
        ({"store_dtype": "float32"}, ["a", "b", "p", "d"]),
        ({"pool": {"threads": 1, "tokens_per_batch": 64}, "seed": 7}, []),
        ({"models": asked(esm2={"weights": "synthetic:esm2_t12_35M_UR50D"})}, ["a", "b", "p", "d"]),
        ({"models": asked(esm2={"weights": MODELS["esm2"], "layers": ["last"], "pooling": ["mean"]})}, []),
        ({"models": asked(esm2={"weights": MODELS["esm2"], "layers": [1]})}, []),  # of one layer
        ({"models": asked(esm2={"weights": MODELS["esm2"], "layers": [0, 1]})}, ["a", "b", "p"]),
        ({"models": asked(dnabert_s={"weights": MODELS["dnabert_s"], "pooling": ["mean", "max"]})}, ["a", "b", "d"]),
        ({"models": asked(esm2={"weights": MODELS["esm2"], "long": "truncate", "max_length": 500})}, ["a", "b", "p"]),
        ({"models": {"renamed": {"weights": "resources/esm2"}, "dnabert_s": {"weights": MODELS["dnabert_s"]}}}, ABP),
        (
            {"models": {**asked(), "more": {"weights": "resources/dnabert_s"}}, "method": {"dna": "more"}},
            ["a", "b", "d"],
        ),
    ],
)
def test_a_changed_config_makes_pending_what_depends_on_it(
    project: Path, changed: dict[str, Any], wanted: list[str]
) -> None:
    assert pending(**changed) == wanted


def test_embeddings_that_are_still_in_the_spool_are_not_computed_again(project: Path) -> None:
    os.remove("results/a/embeddings.h5")
    outcome = read_receipt("results/a/receipt.json")
    assert outcome is not None
    Path(outcome.embeddings).parent.mkdir()
    Path(outcome.embeddings).touch()
    assert pending() == []
    os.remove(outcome.embeddings)
    assert pending() == ["a"]


def test_a_prepared_directory_is_used_where_it_is(project: Path) -> None:
    prepare("elsewhere/esm2", "esm2", "facebook/esm2_t6_8M_UR50D", "a" * 64)
    models = {**CONFIG["models"], "esm2": {"weights": "elsewhere/esm2"}}
    assert pending(models=models) == []
    prepare("elsewhere/esm2", "esm2", "facebook/esm2_t6_8M_UR50D", "c" * 64)
    assert pending(models=models) == ["a", "b", "p"]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            {"weights": "elsewhere/esm2", "sha256": "f" * 64},
            f"models.esm2.sha256: elsewhere/esm2 was made from a checkpoint with digest {'0' * 64}, not {'f' * 64}; "
            "prepare the right one, or correct the digest",
        ),
        (
            {"weights": "elsewhere/dna"},
            "sample 'p' is of kind proteins, but no model of the config embeds protein sequences; "
            "add one under 'models'",
        ),
        (
            {"weights": "elsewhere/esm2", "layers": [2]},
            "models.esm2.layers: 2 is beyond the model, whose layers are 0 to 1",
        ),
    ],
)
def test_a_prepared_directory_that_does_not_fit_is_refused(project: Path, entry: dict[str, str], problem: str) -> None:
    for name, model in (("esm2", "esm2"), ("dna", "dnabert_s")):
        prepare(f"elsewhere/{name}", model, MODELS[model], "a" * 64)
    config = check_config({**CONFIG, "models": asked(esm2=entry)})
    with pytest.raises(ConfigError) as raised:
        make_plan(config, {sample.sample: sample for sample in SAMPLES}, gpu=None, cores=2)
    assert str(raised.value) == problem
    assert not Path(".holdfast").exists()


def test_a_sample_that_names_its_models_waits_for_no_other(project: Path) -> None:
    """Two models of which nobody knows the alphabet yet."""
    for name in ("esm2", "dnabert_s"):
        os.remove(f"resources/{name}/model.json")
    prepare("elsewhere/dna", "dnabert_s", "x", "b" * 64)
    config = check_config({**CONFIG, "models": {**asked(), "dna": {"weights": "elsewhere/dna"}}})
    named, unnamed = Sample("n", "d.fna", "dna", "", "dna"), Sample("u", "d.fna", "dna", "", "")
    finish(named, check_config({**CONFIG, "models": {"dna": {"weights": "elsewhere/dna"}}}))
    assert list(found_pending(config, [named, unnamed])) == ["u"]
    made = make_plan(config, {"n": named}, gpu=None, cores=2)
    assert (made.models, made.consumers) == (["dna"], [])
    assert make_plan(config, {"u": unnamed}, gpu=None, cores=2).models == ["esm2", "dnabert_s", "dna"]


def test_a_checkpoint_newer_than_what_was_made_of_it_makes_its_samples_pending(project: Path) -> None:
    Path("esm2.pt").write_text("weights")
    prepare("resources/esm2", "esm2", "esm2.pt", "a" * 64, hashlib.sha256(b"weights").hexdigest())
    made = os.stat("resources/esm2/model.json").st_mtime
    models = {**CONFIG["models"], "esm2": {"weights": "esm2.pt"}}
    os.utime("esm2.pt", (made - 10, made - 10))
    assert pending(models=models) == []
    os.utime("esm2.pt", (made + 10, made + 10))  # the same in spite of its time, and Snakemake must see it so
    assert pending(models=models) == []
    later = time.time() + 10
    Path("esm2.pt").write_text("others")
    os.utime("esm2.pt", (later, later))
    assert pending(models=models) == ["a", "b", "p", "d"]
