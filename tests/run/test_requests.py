"""Which models embed a sample and what is asked of them; the classifier and the disk, before anything is computed."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from holdfast.errors import ConfigError, ResourceError, WeightsError
from holdfast.models.registry import Output, Prepared, choose_method
from holdfast.results.classifier import Classifier, FeatureModel, describe_prepared
from holdfast.run import requests
from holdfast.run.config import Sample, check_config
from holdfast.run.plan import jobs_of, make_plan
from holdfast.run.requests import check_classifier, check_room, job_settings, make_job, models_in_use, models_of
from holdfast.spool.job import Request

from tests.results.samples import DNA, describe_model
from tests.run.plans import CONFIG, SAMPLES, prepare

KNOWN = {
    "large": describe_model(8, 33, weights_sha256="1" * 64),
    "small": describe_model(4, 6, weights_sha256="2" * 64, source="facebook/small"),
    "dna": describe_model(6, 12, **DNA, weights_sha256="3" * 64, source="zhihan1996/dna"),
}


def config(**changed: Any) -> dict[str, Any]:
    models = {name: {"weights": f"hub/{name}"} for name in KNOWN}
    return check_config({"samples": "samples.tsv", "models": models, **changed})


def sample(kind: str, models: str = "", label: str = "") -> Sample:
    return Sample("s", "s.fa", kind, label, models)


@pytest.mark.parametrize(
    ("kind", "named", "wanted"),
    [
        ("proteins", "", ["large", "small"]),
        ("dna", "", ["dna"]),
        ("contigs", "", ["large", "small", "dna"]),
        ("proteins", "small", ["small"]),
        ("contigs", "dna, large", ["dna", "large"]),
        ("contigs", "dna", ["dna"]),
    ],
)
def test_a_sample_uses_the_models_whose_alphabet_fits_or_those_that_it_names(
    kind: str, named: str, wanted: list[str]
) -> None:
    assert models_of(sample(kind, named), KNOWN, KNOWN) == wanted
    asked = make_job(job_settings(config(), []), sample(kind, named), KNOWN)
    assert list(asked.models) == wanted
    assert asked.weights == {KNOWN[name].weights_sha256 for name in wanted}


def test_a_model_of_which_nobody_knows_the_alphabet_may_fit() -> None:
    known = {"dna": KNOWN["dna"]}
    assert models_of(sample("proteins"), ["dna", "new"], known) == ["new"]
    assert models_of(sample("proteins", "new"), ["dna", "new"], known) == ["new"]
    several = [sample("dna"), sample("dna", "dna")]
    assert models_in_use(["new", "dna"], several, known) == ["new", "dna"]
    assert models_in_use(["new", "dna"], several[1:], known) == ["dna"]
    assert models_in_use(["new", "dna"], [], known) == []


@pytest.mark.parametrize(
    ("asked", "models", "problem"),
    [
        (
            sample("proteins", "small,dna"),
            list(KNOWN),
            "sample 's' is of kind proteins, but dna embeds nucleotide sequences; name another in the column 'models'",
        ),
        (
            sample("dna"),
            ["large", "small"],
            "sample 's' is of kind dna, but no model of the config embeds nucleotide sequences; add one under 'models'",
        ),
        (
            sample("proteins"),
            ["dna"],
            "sample 's' is of kind proteins, but no model of the config embeds protein sequences; add one under "
            "'models'",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_named_with_its_sample(asked: Sample, models: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}$"):
        models_of(asked, models, KNOWN)


def test_frames_that_are_classified_have_the_means_of_the_methods_last_layers_too() -> None:
    models: dict[str, Any] = {name: {"weights": name, "layers": [0], "pooling": ["max"]} for name in KNOWN}
    method = {"protein": "large"}
    asked = [Output(0, "max")]
    plain = make_job(job_settings(config(models=models, method=method), []), sample("contigs"), KNOWN)
    assert [request.outputs for request in plain.models.values()] == [asked] * 3
    for settings in (
        job_settings(config(models=models, method=method, classifier="c.safetensors"), []),
        job_settings(config(models=models, method=method), [sample("contigs", label="virus")]),
    ):
        job = make_job(settings, sample("contigs"), KNOWN)
        assert {name: request.outputs for name, request in job.models.items()} == {
            "large": [*asked, Output(33, "mean")],
            "small": asked,
            "dna": [*asked, Output(12, "mean")],
        }
        proteins = make_job(settings, sample("proteins"), KNOWN)
        assert [request.outputs for request in proteins.models.values()] == [asked] * 2
    with pytest.raises(ConfigError, match=r"method\.protein: .* there are: large, small; name it"):
        make_job(job_settings(config(classifier="c.safetensors"), []), sample("contigs"), KNOWN)


def test_what_is_asked_of_a_model_is_that_of_the_config() -> None:
    models = {
        "large": {"weights": "a", "layers": ["last", 33, 20], "pooling": ["residues", "mean"]},
        "small": {"weights": "b", "long": "truncate", "max_length": 50},
    }
    job = make_job(job_settings(config(models=models), []), sample("proteins"), KNOWN)
    outputs = [Output(layer, pooling) for layer in (20, 33) for pooling in ("mean", "residues")]
    assert job.models == {
        "large": Request("1" * 64, outputs, "whole", 0),
        "small": Request("2" * 64, [Output(6, "mean")], "truncate", 50),
    }


@pytest.mark.parametrize(
    ("alphabets", "named", "wanted"),
    [
        ({"p": "protein", "d": "nucleotide"}, {}, {"dna": "d", "protein": "p"}),
        ({"p": "protein", "q": "protein", "d": "nucleotide"}, {"protein": "q"}, {"dna": "d", "protein": "q"}),
        ({"p": "protein", "d": "nucleotide"}, {"protein": None, "dna": None}, {"dna": "d", "protein": "p"}),
        (
            {"p": "protein", "q": "protein", "d": "nucleotide"},
            {"dna": "d"},
            "method.protein: frames are classified with one such model, there are: p, q; name it",
        ),
        ({"p": "protein"}, {}, "method.dna: frames are classified with one such model, there are: none; name it"),
        ({"p": "protein", "d": "nucleotide"}, {"dna": "p"}, "method.dna: p is no model for it; those are: d"),
    ],
)
def test_the_method_has_a_model_of_each_alphabet(
    alphabets: dict[str, str], named: Mapping[str, str | None], wanted: dict[str, str] | str
) -> None:
    if isinstance(wanted, dict):
        assert choose_method(alphabets, named) == wanted
        return
    with pytest.raises(ConfigError, match=f"^{re.escape(wanted)}$"):
        choose_method(alphabets, named)


def write_classifier(path: Path, models: Mapping[str, FeatureModel], width: int = 10) -> Path:
    """A network that knows nothing, of these models."""
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    state = {
        "hidden_layer.weight": np.zeros((4, width), np.float32),
        "hidden_layer.bias": zeros,
        "bn1.weight": ones,
        "bn1.bias": zeros,
        "bn1.running_mean": zeros,
        "bn1.running_var": ones,
        "bn1.num_batches_tracked": np.array(1),
        "output_layer.weight": np.zeros((2, 4), np.float32),
        "output_layer.bias": zeros[:2],
    }
    Classifier(state, models, "a test").save(path)
    return path


METHOD = {"protein": "small", "dna": "dna"}


def trained_with(known: Mapping[str, Prepared]) -> dict[str, FeatureModel]:
    return describe_prepared(known, METHOD)


def test_a_classifier_of_other_models_is_refused(tmp_path: Path) -> None:
    settings = job_settings(config(method=METHOD), [])
    here = trained_with(KNOWN)
    elsewhere = replace(here["protein"], model="renamed", source="a/copy")
    converted = replace(here["protein"], weights_sha256="9" * 64)
    for fitting in ({}, here, here | {"protein": elsewhere}, here | {"protein": converted}):
        check_classifier(write_classifier(tmp_path / "c.safetensors", fitting), settings, KNOWN)
    fine_tuned = replace(here["protein"], weights_sha256="9" * 64, source="me/fine_tuned")
    asked = "the config has esm of facebook/small (layer 6, mean, width 4); use the same models, or train it again"
    for other, problem in (
        (fine_tuned, f"was trained with esm of me/fine_tuned (layer 6, mean, width 4) for protein, but {asked}"),
        (
            replace(here["protein"], layer=5),
            f"was trained with esm of facebook/small (layer 5, mean, width 4) for protein, but {asked}",
        ),
    ):
        with pytest.raises(WeightsError) as refused:
            check_classifier(write_classifier(tmp_path / "c.safetensors", here | {"protein": other}), settings, KNOWN)
        assert str(refused.value) == f"the classifier (a test) {problem}"
    with pytest.raises(WeightsError, match=r"takes 14 values, but the config gives 10 \(dna 6 \+ small 4\); use"):
        check_classifier(write_classifier(tmp_path / "c.safetensors", {}, width=14), settings, KNOWN)
    with pytest.raises(ConfigError, match=r"method\.protein: .* there are: large, small; name it"):
        check_classifier(tmp_path / "c.safetensors", job_settings(config(), []), KNOWN)


def test_a_run_with_a_classifier_of_other_models_does_not_begin(project: Path) -> None:
    """Where weights are to be prepared first, no consumer hands anything in."""
    known = {"small": describe_model(8, 1), "dna": describe_model(8, 1, **DNA)}
    other = {role: replace(model, source="x", weights_sha256="9" * 64) for role, model in trained_with(known).items()}
    classifier = write_classifier(project / "c.safetensors", other, width=16)
    entries = {entry.sample: entry for entry in SAMPLES}
    settings = {**CONFIG, "classifier": str(classifier)}
    with pytest.raises(WeightsError, match=r"was trained with mosaic_bert of x .* for dna, but the config has"):
        make_plan(settings, entries, gpu=None, cores=2)
    assert not Path(".holdfast").exists()
    assert make_plan(settings, {"p": entries["p"]}, gpu=None, cores=2).models == ["esm2"]  # which is not classified
    (project / "resources/esm2/model.json").unlink()
    made = make_plan(settings, entries, gpu=None, cores=2)
    assert "a" in [name for share in made.consumers for name in share.samples]
    prepare("resources/esm2", "esm2", "x", "a" * 64)
    directories = [project / "resources" / name for name in made.models]
    assert len(list(jobs_of(Path(made.path), 0, directories))) == 1
    with pytest.raises(WeightsError, match=r"was trained with mosaic_bert of x .* for dna, but the config has"):
        jobs_of(Path(made.path), 0, directories, classifier)


class Disk(NamedTuple):
    """What ``shutil.disk_usage`` gives, of a disk with so much room."""

    free: int


@pytest.mark.parametrize(
    ("fasta", "dtype", "layers", "needed"),
    [
        ("s.faa", "float16", ["last"], 1_000_000_000 * 8 * 2),
        ("s.faa", "float32", [0, 20, "last"], 1_000_000_000 * 8 * 4 * 3),
        ("s.faa.gz", "float16", ["last"], 2_000_000_000 * 8 * 2),
    ],
)
def test_vectors_of_residues_that_the_disk_has_no_room_for_are_refused(
    fasta: str,
    dtype: str,
    layers: list[int | str],
    needed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A GB of letters with a model of width 8; the means of another take no room to speak of."""
    models = {
        "large": {"weights": "a", "layers": layers, "pooling": ["residues", "mean"]},
        "small": {"weights": "b"},
        "unknown": {"weights": "c", "pooling": ["residues"]},
    }
    settings = job_settings(config(models=models, store_dtype=dtype), [])
    asked = (settings, [Sample("s", fasta, "proteins", "", "")], {"s": 10**9}, KNOWN, tmp_path / "not/made/yet")
    looked_at = []

    def has(free: int) -> None:
        def disk_usage(path: Path) -> Disk:
            looked_at.append(path)
            return Disk(free)

        monkeypatch.setattr(requests.shutil, "disk_usage", disk_usage)

    has(2 * needed)
    check_room(*asked)
    amount = f"about {needed / 1e9:.1f} GB of vectors of residues, {2 * needed / 1e9:.1f} GB at the peak"
    assert capsys.readouterr().err == f"holdfast: {amount} will be written, {2 * needed / 1e9:.1f} GB are free\n"
    has(2 * needed - 1)
    with pytest.raises(ResourceError) as refused:
        check_room(*asked)
    assert str(refused.value).startswith(f"{tmp_path}/not/made/yet: {amount} would be written, ")
    assert str(refused.value).endswith("or set pool.spool to a larger disk; nothing has been started")
    assert looked_at == [tmp_path] * 2
    has(0)
    check_room(settings, [], {}, *asked[3:])
    check_room(job_settings(config(), []), *asked[1:])


def test_a_run_that_the_disk_has_no_room_for_does_not_begin(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {entry.sample: entry for entry in SAMPLES}
    models: dict[str, Any] = {**CONFIG["models"], "esm2": {**CONFIG["models"]["esm2"], "pooling": ["residues"]}}
    monkeypatch.setattr(requests.shutil, "disk_usage", lambda path: Disk(100))
    with pytest.raises(ResourceError, match="nothing has been started"):
        make_plan({**CONFIG, "models": models}, entries, gpu=None, cores=2)
    assert not Path(".holdfast").exists()
