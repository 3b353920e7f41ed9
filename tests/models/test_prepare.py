"""Preparation of published checkpoints: what is written, what is replaced, and the hub."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from holdfast.errors import WeightsError
from holdfast.models.prepare import _copy_tokenizer, _scratch, prepare
from holdfast.models.registry import open_model, read_prepared
from holdfast.models.synthetic import write_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.models import checkpoints, families
from tests.models.hub import Hub

ENTRY = Path(__file__).parents[2] / "workflow" / "scripts" / "entry.py"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(source: object, output: Path, digest: str | None = None) -> str:
    """Message of a refused preparation that left nothing behind."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(WeightsError) as caught:
        prepare(str(source), output, digest)
    assert sorted(output.parent.iterdir()) == before
    return str(caught.value)


def test_a_prepared_directory_says_what_it_holds(fair_esm: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "prepared"
    returned = prepare(str(fair_esm), output, sha256(fair_esm).upper())
    description = read_prepared(output)
    assert description == returned
    assert sorted(file.name for file in output.iterdir()) == ["model.json", "model.safetensors"]
    assert description.architecture == {
        "layers": checkpoints.LAYERS,
        "width": checkpoints.WIDTH,
        "heads": checkpoints.HEADS,
        "mlp_width": 4 * checkpoints.WIDTH,
        "vocabulary": 33,
        "token_dropout": True,
        "layer_norm_epsilon": 1e-5,
        "positions": 0,
        "embed_norm": False,
    }
    assert (description.width, description.synthetic, description.source) == (48, False, str(fair_esm))
    assert description.source_sha256 == sha256(fair_esm)
    assert description.weights_sha256 == sha256(output / "model.safetensors")
    assert description.verification["reference"] == "fair-esm"
    checkpoints.require_verified(description)
    with safe_open(output / "model.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["holdfast"])
    assert header == {
        "family": "esm",
        "architecture": description.architecture,
        "synthetic": False,
        "format_version": 2,
    }
    assert (output / "model.safetensors").stat().st_mode == (output / "model.json").stat().st_mode


def test_contact_regression_beside_the_checkpoint_is_not_needed(fair_esm: Path, tmp_path: Path) -> None:
    prepare(str(fair_esm), tmp_path / "with")
    (tmp_path / "esm2_small-contact-regression.pt").unlink()
    prepare(str(fair_esm), tmp_path / "without")
    assert read_prepared(tmp_path / "with").weights_sha256 == read_prepared(tmp_path / "without").weights_sha256


def test_the_digest_depends_on_the_content_alone(fair_esm: Path, tmp_path: Path) -> None:
    elsewhere = fair_esm.rename(tmp_path / "renamed.pt")
    first = prepare(str(elsewhere), tmp_path / "first")
    second = prepare(str(elsewhere.rename(tmp_path / "again.pt")), tmp_path / "second")
    assert first.source != second.source
    assert first.weights_sha256 == second.weights_sha256


def test_what_a_killed_preparation_left_is_removed(fair_esm: Path, tmp_path: Path) -> None:
    left = tmp_path / ".prepared.preparing"
    (left / "prepared").mkdir(parents=True)
    (left / "prepared" / "model.safetensors").write_bytes(b"half")
    prepare(str(fair_esm), tmp_path / "prepared")
    assert not left.exists()
    assert len(load_file(tmp_path / "prepared" / "model.safetensors")) > 10


def test_two_preparations_of_one_directory_do_not_mix(fair_esm: Path, tmp_path: Path) -> None:
    with _scratch(tmp_path / "prepared") as scratch:
        (scratch / "published").mkdir()
        with pytest.raises(WeightsError, match="is being prepared by another process"):
            prepare(str(fair_esm), tmp_path / "prepared")
        assert (scratch / "published").is_dir()
    prepare(str(fair_esm), tmp_path / "prepared")


@pytest.mark.parametrize("header", [None, {"other": "{}"}, {"holdfast": "{"}, {"holdfast": "[]"}])
def test_safetensors_of_others_are_refused_by_the_encoder(
    fair_esm: Path, tmp_path: Path, header: dict[str, str] | None
) -> None:
    prepare(str(fair_esm), tmp_path / "prepared")
    file = tmp_path / "prepared" / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in load_file(file).items()}, file, header)
    with pytest.raises(WeightsError, match=r"not the weights that model\.json describes|not readable \(not JSON"):
        open_model(tmp_path / "prepared")


def test_a_published_tokenizer_that_does_not_fit_is_refused(dnabert: Path, tmp_path: Path) -> None:
    file, output = dnabert / "tokenizer.json", tmp_path / "prepared"
    file.write_text("{}")
    message = refused(dnabert, output)
    assert str(file) in message
    assert message.endswith("download it again")
    write_tokenizer(128, file)
    assert "belongs to another model" in refused(dnabert, output)
    file.unlink()
    assert "the model needs the tokenizer of its checkpoint" in refused(dnabert, output)


def test_a_vocabulary_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    state = checkpoints.fair_esm_state()
    state["embed_tokens.weight"] = state["embed_tokens.weight"][:30].clone()
    path = checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", state)
    assert "its vocabulary has more tokens than the embedding has rows" in refused(path, tmp_path / "prepared")
    directory = families.write_t5(tmp_path / "prostt5")
    (directory / "added_tokens.json").write_text(json.dumps({"<AA2fold>": 150}))
    assert "its vocabulary has more tokens than the embedding has rows" in refused(directory, tmp_path / "prepared")


def test_parts_of_a_tokenizer_that_nobody_reads_need_not_be_right(dnabert: Path, tmp_path: Path) -> None:
    published = dnabert / "tokenizer.json"
    published.write_text(json.dumps(json.loads(published.read_text()) | {"added_tokens": 5, "decoder": "none"}))
    _copy_tokenizer(published, 64, tmp_path / "copied.json")
    assert (tmp_path / "copied.json").read_bytes() == published.read_bytes()


def test_the_tokenizer_is_copied_as_published(dnabert: Path, tmp_path: Path) -> None:
    description = prepare(str(dnabert), tmp_path / "prepared")
    assert (tmp_path / "prepared" / "tokenizer.json").read_bytes() == (dnabert / "tokenizer.json").read_bytes()
    assert "none implements" in str(description.verification["reference"])
    assert checkpoints.verified_difference(description) < 1e-5
    own = load_file(tmp_path / "prepared" / "model.safetensors")
    published = checkpoints.golden_weights()
    assert torch.equal(own["layers.1.mlp_gated.weight"], published["encoder.layer.1.mlp.gated_layers.weight"])
    assert len(own) == len(published) - 2  # without the pooler


def test_a_prepared_model_is_replaced_and_anything_else_left_alone(
    fair_esm: Path, dnabert: Path, tmp_path: Path
) -> None:
    output = tmp_path / "prepared"
    output.mkdir()
    prepare(str(dnabert), output)
    prepare(str(fair_esm), output)
    assert sorted(file.name for file in output.iterdir()) == ["model.json", "model.safetensors"]
    (output / "model.json").unlink()
    (output / "model.safetensors").unlink()
    (output / "tokenizer.json").touch()  # no output of the rule, so Snakemake leaves it when it makes the others anew
    prepare(str(fair_esm), output)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    assert "exists and is not a prepared model" in refused(fair_esm, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_link_to_a_prepared_model_stays_and_what_it_leads_to_is_replaced(dnabert: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "prepared").symlink_to("elsewhere/model")
    for _ in range(2):
        prepare(str(dnabert), tmp_path / "prepared")
        assert (tmp_path / "prepared").is_symlink()
        assert (tmp_path / "elsewhere/model/model.json").is_file()
        assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["model"]
        (tmp_path / "elsewhere/model/tokenizer.json").write_text("of yesterday")
    prepare(str(dnabert), tmp_path / "prepared")
    assert (tmp_path / "prepared/tokenizer.json").read_bytes() == (dnabert / "tokenizer.json").read_bytes()


def test_synthetic_checkpoints_are_the_same_every_time(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        assert prepare("synthetic:dnabert_s_tiny", tmp_path / name).synthetic
        digests.add(tuple(sha256(tmp_path / name / file) for file in ("model.safetensors", "tokenizer.json")))
    assert len(digests) == 1
    message = refused("synthetic:esm2_t6_8M", tmp_path / "c")
    assert "synthetic:esm2_t6_8M: no such architecture; did you mean synthetic:esm2_t6_8M_UR50D? Known are" in message
    assert "esm2_t36_3B_UR50D" in message
    assert "dnabert_s_tiny" in message


def test_a_wrong_digest_is_refused_before_anything_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "esm2_small.pt").write_bytes(b"not a checkpoint at all")
    message = refused(tmp_path / "esm2_small.pt", tmp_path / "prepared", "0" * 64)
    assert sha256(tmp_path / "esm2_small.pt") in message
    assert "0" * 64 in message


def test_the_digest_of_shards_is_that_of_their_bytes_in_order(tmp_path: Path) -> None:
    directory = checkpoints.write_by_transformers(tmp_path / "sharded", checkpoints.fair_esm_state(), "100KB")
    shards = sorted(directory.glob("model-*.safetensors"))
    expected = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert prepare(str(directory), tmp_path / "prepared", expected).source_sha256 == expected
    shards[1].unlink()
    assert f"{shards[1]}: the index names it" in refused(directory, tmp_path / "again")


def test_an_encoder_that_differs_from_the_reference_is_refused(tmp_path: Path) -> None:
    state = checkpoints.fair_esm_state()
    state["layers.0.fc1.weight"].fill_(float("nan"))
    path = checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", state)
    assert "differs from the reference (fair-esm) by nan" in refused(path, tmp_path / "prepared")


def command_line(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``holdfast prepare`` with warnings as errors, in an environment that knows no hub but the given one."""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-W", "error", str(ENTRY), "prepare", *map(str, arguments)],
        env={name: value for name, value in clean.items() if not name.startswith("HF_")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_hub_model_is_fetched_without_its_code_and_then_found_offline(dnabert: Path, tmp_path: Path) -> None:
    (dnabert / "pytorch_model.bin").write_bytes(b"the same again")
    with Hub({"someone/DNABERT-S": dnabert}) as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache")}
        arguments = ["someone/DNABERT-S", "--output", tmp_path / "prepared"]
        first = command_line(*arguments, "--sha256", sha256(dnabert / "model.safetensors"), **settings)
        assert first.returncode == 0, first.stderr
        assert sorted(hub.downloaded) == ["config.json", "model.safetensors", "tokenizer.json"]
        absent = command_line("someone/absent", *arguments[1:2], tmp_path / "absent", **settings)
    assert "mosaic_bert from someone/DNABERT-S (2 layers, width 48)" in first.stdout
    assert "largest difference" in first.stdout
    assert absent.returncode == 2
    assert absent.stderr.count("\n") == 1
    assert "someone/absent: no such file or directory, and no model that the Hugging Face hub" in absent.stderr
    arguments[-1] = tmp_path / "offline"
    offline = command_line(*arguments, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"))
    assert offline.returncode == 0, offline.stderr
    digests = {read_prepared(tmp_path / name).weights_sha256 for name in ("prepared", "offline")}
    assert len(digests) == 1


def test_a_hub_model_without_safetensors_is_fetched_as_bin(tmp_path: Path) -> None:
    directory = checkpoints.write_hugging_face_esm(tmp_path / "published", checkpoints.fair_esm_state(), binary=True)
    with Hub({"someone/esm2": directory}) as hub:
        result = command_line(
            "someone/esm2", "--output", tmp_path / "prepared",
            HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "cache"),
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert sorted(hub.downloaded) == ["config.json", "pytorch_model.bin"]
    assert "reference: transformers EsmModel" in result.stdout


@pytest.mark.parametrize(
    ("source", "environment"),
    [
        ("facebook/esm2_t6_8M_UR50D", {"HF_HUB_OFFLINE": "1"}),
        ("facebook/esm2_t6_8M_UR50D", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        ("/no/such/esm2.pt", {"HF_HUB_OFFLINE": "1"}),
    ],
)
def test_a_source_that_is_neither_path_nor_reachable_is_one_line(
    tmp_path: Path, source: str, environment: dict[str, str]
) -> None:
    result = command_line(source, "--output", tmp_path / "prepared", HF_HOME=str(tmp_path / "cache"), **environment)
    assert result.returncode == 2
    assert result.stderr.startswith(f"holdfast: error: {source}: no such file or directory, and no model that")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "prepared").exists()
