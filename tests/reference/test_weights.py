"""Preparation of published checkpoints: what is written, what is refused, and the hub."""

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from holdfast import esm2, prepared, synthetic, weights
from holdfast.errors import WeightsError
from holdfast.tokens import VOCABULARY
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.reference import checkpoints
from tests.reference.hub import Hub

SCRIPT = Path(__file__).parents[2] / "workflow" / "scripts" / "prepare_weights.py"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def fair_esm(tmp_path: Path) -> Path:
    return checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", checkpoints.fair_esm_state())


@pytest.fixture
def dnabert(tmp_path: Path) -> Path:
    return checkpoints.write_dnabert_s(tmp_path / "published", checkpoints.golden_weights())


def refused(source: object, model: str, output: Path, digest: str | None = None) -> str:
    """Message of a refused preparation that left nothing behind."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(WeightsError) as caught:
        weights.prepare(str(source), model, output, digest)
    assert sorted(output.parent.iterdir()) == before
    return str(caught.value)


def test_a_prepared_directory_says_what_it_holds(fair_esm: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "prepared"
    returned = weights.prepare(str(fair_esm), "esm2", output, sha256(fair_esm).upper())
    description = prepared.read(output)
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
    }
    assert (description.width, description.synthetic, description.source) == (48, False, str(fair_esm))
    assert description.source_sha256 == sha256(fair_esm)
    assert description.weights_sha256 == sha256(output / "model.safetensors")
    assert description.verification["reference"] == "fair-esm ESM2"
    assert 0 < checkpoints.verified_difference(description) < 1e-5
    with safe_open(output / "model.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["holdfast"])
    assert header == {
        "model": "esm2",
        "architecture": description.architecture,
        "source_sha256": sha256(fair_esm),
        "synthetic": False,
        "format_version": 1,
    }
    assert (output / "model.safetensors").stat().st_mode == (output / "model.json").stat().st_mode


def test_contact_regression_beside_the_checkpoint_is_not_needed(fair_esm: Path, tmp_path: Path) -> None:
    weights.prepare(str(fair_esm), "esm2", tmp_path / "with")
    (tmp_path / "esm2_small-contact-regression.pt").unlink()
    weights.prepare(str(fair_esm), "esm2", tmp_path / "without")
    assert prepared.read(tmp_path / "with").weights_sha256 == prepared.read(tmp_path / "without").weights_sha256


def test_the_digest_depends_on_the_content_alone(fair_esm: Path, tmp_path: Path) -> None:
    elsewhere = fair_esm.rename(tmp_path / "renamed.pt")
    first = weights.prepare(str(elsewhere), "esm2", tmp_path / "first")
    second = weights.prepare(str(elsewhere.rename(tmp_path / "again.pt")), "esm2", tmp_path / "second")
    assert first.source != second.source
    assert first.weights_sha256 == second.weights_sha256


def test_what_a_killed_preparation_left_is_removed(fair_esm: Path, tmp_path: Path) -> None:
    left = tmp_path / ".prepared.preparing"
    (left / "prepared").mkdir(parents=True)
    (left / "prepared" / "model.safetensors").write_bytes(b"half")
    weights.prepare(str(fair_esm), "esm2", tmp_path / "prepared")
    assert not left.exists()
    assert len(load_file(tmp_path / "prepared" / "model.safetensors")) > 10


def test_two_preparations_of_one_directory_do_not_mix(fair_esm: Path, tmp_path: Path) -> None:
    with weights._scratch(tmp_path / "prepared") as scratch:
        (scratch / "published").mkdir()
        with pytest.raises(WeightsError, match="is being prepared by another process"):
            weights.prepare(str(fair_esm), "esm2", tmp_path / "prepared")
        assert (scratch / "published").is_dir()
    weights.prepare(str(fair_esm), "esm2", tmp_path / "prepared")


@pytest.mark.parametrize("header", [None, {"other": "{}"}, {"holdfast": "{"}, {"holdfast": "[]"}])
def test_safetensors_of_others_are_refused_by_the_encoder(
    fair_esm: Path, tmp_path: Path, header: dict[str, str] | None
) -> None:
    weights.prepare(str(fair_esm), "esm2", tmp_path / "prepared")
    file = tmp_path / "prepared" / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in load_file(file).items()}, file, header)
    with pytest.raises(WeightsError, match="its header holds no architecture of a prepared model"):
        esm2.load(tmp_path / "prepared")


def test_a_broken_published_tokenizer_is_to_be_downloaded_again(dnabert: Path, tmp_path: Path) -> None:
    (dnabert / "tokenizer.json").write_text("{}")
    message = refused(dnabert, "dnabert_s", tmp_path / "prepared")
    assert str(dnabert / "tokenizer.json") in message
    assert message.endswith("download it again")


def test_parts_of_a_tokenizer_that_nobody_reads_need_not_be_right(dnabert: Path, tmp_path: Path) -> None:
    published = dnabert / "tokenizer.json"
    published.write_text(json.dumps(json.loads(published.read_text()) | {"added_tokens": 5, "decoder": "none"}))
    weights._copy_tokenizer(published, 64, tmp_path / "copied.json")
    assert (tmp_path / "copied.json").read_bytes() == published.read_bytes()


def test_the_tokenizer_is_copied_as_published(dnabert: Path, tmp_path: Path) -> None:
    description = weights.prepare(str(dnabert), "dnabert_s", tmp_path / "prepared")
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
    weights.prepare(str(dnabert), "dnabert_s", output)
    weights.prepare(str(fair_esm), "esm2", output)
    assert sorted(file.name for file in output.iterdir()) == ["model.json", "model.safetensors"]
    (output / "model.json").unlink()
    (output / "model.safetensors").unlink()
    (output / "tokenizer.json").touch()  # no output of the rule, so Snakemake leaves it when it makes the others anew
    weights.prepare(str(fair_esm), "esm2", output)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    assert "exists and is not a prepared model" in refused(fair_esm, "esm2", tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_synthetic_checkpoints_are_the_same_every_time(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        assert weights.prepare("synthetic:dnabert_s_tiny", "dnabert_s", tmp_path / name).synthetic
        digests.add(tuple(sha256(tmp_path / name / file) for file in ("model.safetensors", "tokenizer.json")))
    assert len(digests) == 1
    assert "esm2_t36_3B_UR50D" in refused("synthetic:esm2_t7", "esm2", tmp_path / "c")
    assert "dnabert_s_tiny" in refused("synthetic:esm2_t6_8M_UR50D", "dnabert_s", tmp_path / "c")


def test_a_wrong_digest_is_refused_before_anything_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "esm2_small.pt").write_bytes(b"not a checkpoint at all")
    message = refused(tmp_path / "esm2_small.pt", "esm2", tmp_path / "prepared", "0" * 64)
    assert sha256(tmp_path / "esm2_small.pt") in message
    assert "0" * 64 in message


def test_the_digest_of_shards_is_that_of_their_bytes_in_order(tmp_path: Path) -> None:
    directory = checkpoints.write_by_transformers(tmp_path / "sharded", checkpoints.fair_esm_state(), "100KB")
    shards = sorted(directory.glob("model-*.safetensors"))
    expected = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert weights.prepare(str(directory), "esm2", tmp_path / "prepared", expected).source_sha256 == expected
    shards[1].unlink()
    assert f"{shards[1]}: the index names it" in refused(directory, "esm2", tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.update({"layers.0.extra.weight": torch.ones(3)}), "1 unknown: .*layers.0.extra.weight"),
        (lambda state: state.pop("layers.1.fc2.bias"), "1 missing: layers.1.fc2.bias"),
        (lambda state: state.pop("layers.2.self_attn.rot_emb.inv_freq"), "1 missing: layers.2.*inv_freq"),
        (lambda state: state.update({"layers.1.fc1.weight": torch.ones(192, 47)}), r"1 misshapen: .*fc1.*\[192, 47\]"),
        (lambda state: state.update({"layers.1.fc1.bias": torch.ones(192).int()}), "1 misshapen: .*int32"),
        (lambda state: state.update({"layers.1.self_attn.rot_emb.inv_freq": torch.ones(6)}), "inv_freq differs from"),
        (lambda state: state["layers.0.fc1.weight"].fill_(float("nan")), "differs from the reference .* by nan"),
    ],
)
def test_wrong_tensors_of_esm2_are_listed(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], complaint: str
) -> None:
    state = checkpoints.fair_esm_state()
    change(state)
    path = checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", state)
    with pytest.raises(WeightsError, match=complaint):
        weights.prepare(str(path), "esm2", tmp_path / "prepared")


def test_a_configuration_that_contradicts_the_tensors_is_refused(tmp_path: Path) -> None:
    path = checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", checkpoints.fair_esm_state(), layers=2)
    message = refused(path, "esm2", tmp_path / "prepared")
    assert "unknown" in message
    assert "layers.2.fc1.weight" in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.update({"cls.weight": torch.ones(3)}), "1 unknown: cls.weight"),
        (lambda state: state.pop("encoder.layer.1.mlp.wo.bias"), "1 missing: encoder.layer.1.mlp.wo.bias"),
        (
            lambda state: state.update({"encoder.layer.0.attention.self.Wqkv.weight": torch.ones(96, 48)}),
            r"1 misshapen: .*Wqkv.weight \[96, 48\] torch.float32 instead of \[144, 48\]",
        ),
        (
            lambda state: state.update({"bert.embeddings.LayerNorm.bias": torch.zeros(48)}),
            r"1 unknown: (bert\.)?embeddings.LayerNorm.bias",
        ),
    ],
)
def test_wrong_tensors_of_dnabert_s_are_listed(
    dnabert: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], complaint: str
) -> None:
    state = checkpoints.golden_weights()
    change(state)
    save_file(state, dnabert / "model.safetensors")
    with pytest.raises(WeightsError, match=complaint):
        weights.prepare(str(dnabert), "dnabert_s", tmp_path / "prepared")


def test_truncated_files_are_refused(fair_esm: Path, dnabert: Path, tmp_path: Path) -> None:
    for file, source, model in (
        (fair_esm, fair_esm, "esm2"),
        (dnabert / "model.safetensors", dnabert, "dnabert_s"),
    ):
        file.write_bytes(file.read_bytes()[:5000])
        assert f"{file}: truncated" in refused(source, model, tmp_path / "prepared")
    fair_esm.write_bytes(b"")
    assert f"{fair_esm}: truncated" in refused(fair_esm, "esm2", tmp_path / "prepared")


class Payload:
    """Unpickling it would leave a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(dnabert: Path, tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "payload-ran"
    content = {"cfg": {"model": argparse.Namespace()}, "model": Payload(marker)}
    (dnabert / "model.safetensors").unlink()
    for path, source, model in (
        (tmp_path / "esm2_evil.pt", tmp_path / "esm2_evil.pt", "esm2"),
        (dnabert / "pytorch_model.bin", dnabert, "dnabert_s"),
    ):
        if legacy:
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path)
        message = refused(source, model, tmp_path / "prepared")
        assert str(path) in message
        assert legacy or "refused, it holds posix.mkdir" in message
    assert not marker.exists()


def test_sources_of_another_model_are_refused(fair_esm: Path, dnabert: Path, tmp_path: Path) -> None:
    output = tmp_path / "prepared"
    assert "give a Hugging Face directory" in refused(fair_esm, "dnabert_s", output)
    assert "model_type is 'bert', esm2 has 'esm'" in refused(dnabert, "esm2", output)
    esm_directory = checkpoints.write_hugging_face_esm(tmp_path / "esm", checkpoints.fair_esm_state())
    assert "model_type is 'esm', dnabert_s has 'bert'" in refused(esm_directory, "dnabert_s", output)
    assert "not the contact regression" in refused(tmp_path / "esm2_small-contact-regression.pt", "esm2", output)
    config = json.loads((esm_directory / "config.json").read_text())
    (esm_directory / "config.json").write_text(json.dumps(config | {"position_embedding_type": "absolute"}))
    assert "without rotary positions" in refused(esm_directory, "esm2", output)
    (esm_directory / "config.json").write_text(json.dumps(config))
    (esm_directory / "vocab.txt").write_text("\n".join(sorted(VOCABULARY)))
    assert "not the alphabet of ESM-2" in refused(esm_directory, "esm2", output)
    (esm_directory / "vocab.txt").write_text("\n".join(VOCABULARY))
    assert weights.prepare(str(esm_directory), "esm2", tmp_path / "accepted").width == checkpoints.WIDTH
    assert "model 'esm3': unknown" in refused(fair_esm, "esm3", output)


def test_incomplete_directories_are_refused(dnabert: Path, tmp_path: Path) -> None:
    output = tmp_path / "prepared"
    (dnabert / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "DNABERT-S needs the tokenizer" in refused(dnabert, "dnabert_s", output)
    synthetic.write_tokenizer(128, dnabert / "tokenizer.json")
    assert "belongs to another model" in refused(dnabert, "dnabert_s", output)
    (tmp_path / "tokenizer.json").replace(dnabert / "tokenizer.json")
    config = json.loads((dnabert / "config.json").read_text())
    del config["num_attention_heads"]
    (dnabert / "config.json").write_text(json.dumps(config))
    assert "missing or wrong entry 'num_attention_heads'" in refused(dnabert, "dnabert_s", output)
    (dnabert / "config.json").write_text("{")
    assert "config.json: not JSON" in refused(dnabert, "dnabert_s", output)
    (dnabert / "config.json").unlink()
    assert "not a Hugging Face model directory" in refused(dnabert, "dnabert_s", output)


def test_an_index_may_not_name_files_elsewhere(dnabert: Path, tmp_path: Path) -> None:
    (dnabert / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = dnabert / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    assert "must name weights files beside it" in refused(dnabert, "dnabert_s", tmp_path / "prepared")


def command_line(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run prepare_weights.py with warnings as errors, in an environment that knows no hub but the given one."""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *map(str, arguments)],
        env={name: value for name, value in clean.items() if not name.startswith("HF_")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_hub_model_is_fetched_without_its_code_and_then_found_offline(dnabert: Path, tmp_path: Path) -> None:
    (dnabert / "pytorch_model.bin").write_bytes(b"the same again")
    with Hub({"someone/DNABERT-S": dnabert}) as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache")}
        arguments = ["someone/DNABERT-S", "--model", "dnabert_s", "--output", tmp_path / "prepared"]
        first = command_line(*arguments, "--sha256", sha256(dnabert / "model.safetensors"), **settings)
        assert first.returncode == 0, first.stderr
        assert sorted(hub.downloaded) == ["config.json", "model.safetensors", "tokenizer.json"]
        absent = command_line("someone/absent", *arguments[1:4], tmp_path / "absent", **settings)
    assert "dnabert_s from someone/DNABERT-S (width 48)" in first.stdout
    assert "largest difference" in first.stdout
    assert absent.returncode == 2
    assert absent.stderr.count("\n") == 1
    assert "someone/absent: no such file or directory, and no model that the Hugging Face hub" in absent.stderr
    arguments[-1] = tmp_path / "offline"
    offline = command_line(*arguments, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"))
    assert offline.returncode == 0, offline.stderr
    digests = {prepared.read(tmp_path / name).weights_sha256 for name in ("prepared", "offline")}
    assert len(digests) == 1


def test_a_hub_model_without_safetensors_is_fetched_as_bin(tmp_path: Path) -> None:
    directory = checkpoints.write_hugging_face_esm(tmp_path / "published", checkpoints.fair_esm_state(), binary=True)
    with Hub({"someone/esm2": directory}) as hub:
        result = command_line(
            "someone/esm2", "--model", "esm2", "--output", tmp_path / "prepared",
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
    result = command_line(
        source, "--model", "esm2", "--output", tmp_path / "prepared", HF_HOME=str(tmp_path / "cache"), **environment
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"holdfast: error: {source}: no such file or directory, and no model that")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "prepared").exists()
