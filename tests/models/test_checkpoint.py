"""Published checkpoints: torch's files against torch itself, which tensors are accepted, and what is refused."""

import argparse
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from holdfast.errors import WeightsError
from holdfast.models.checkpoint import read_checkpoint
from holdfast.models.esm import VOCABULARY
from holdfast.models.torch_file import StandIn, load_torch, only_tensors
from safetensors.torch import save_file
from torch import Tensor

from tests.models import checkpoints

Change = Callable[[dict[str, Tensor]], object]


def refusal(source: Path) -> str:
    """Why a checkpoint is refused."""
    with pytest.raises(WeightsError) as caught:
        dict(read_checkpoint(source, None).own_tensors())
    return str(caught.value)


def zipped(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A file of torch with this pickle and one storage of two numbers."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", torch.tensor([1.0, 2.0]).numpy().tobytes())
        archive.writestr("x/version", "3\n")
    return path


# Files of torch


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    matrix = torch.arange(24.0).reshape(4, 6)
    return {
        "matrix": matrix,
        "the same": matrix,
        "a part": matrix[1:3, 2:],
        "transposed": matrix.T,
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "three": torch.rand(2, 3, 4, dtype=torch.float64),
        "half": torch.tensor([1.5, -2]).half(),
        "bfloat16": torch.tensor([1.5, -2]).bfloat16(),
        "bool": torch.tensor([True, False]),
        **{str(kind): torch.tensor([1, 2], dtype=kind) for kind in (torch.int32, torch.int16, torch.int8, torch.uint8)},
    }


def test_tensors_are_those_that_torch_reads(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save(OrderedDict(tensors), path)
    found = only_tensors(path, load_torch(path))
    assert list(found) == list(tensors)
    for name, expected in torch.load(path, weights_only=True).items():
        assert found[name].dtype == expected.dtype
        assert found[name].stride() == expected.stride()
        assert not found[name].requires_grad
        assert torch.equal(found[name], expected.detach())
    assert found["matrix"].untyped_storage().data_ptr() == found["a part"].untyped_storage().data_ptr()


def test_objects_of_the_given_classes_are_their_state_alone(tmp_path: Path) -> None:
    values = {"none": None, "list": [1, [2.5]], "tuple": (1, "a", True), "set": {1, "a"}, 7: 2**70, "long": -(2**40)}
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    assert state._metadata  # type: ignore[attr-defined]
    torch.save({"cfg": {"model": argparse.Namespace(inner=values)}, "model": state}, tmp_path / "a.pt")
    found = load_torch(tmp_path / "a.pt", ["argparse.Namespace"])
    assert type(found["cfg"]["model"]) is StandIn
    assert found["cfg"]["model"].state == {"inner": values}
    assert only_tensors(tmp_path, found["model"]).keys() == state.keys()
    with pytest.raises(WeightsError, match=r"refused, it holds argparse\.Namespace"):
        load_torch(tmp_path / "a.pt")


def test_a_large_file_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    def anonymous_bytes() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    torch.save({"large": torch.arange(2**24)}, tmp_path / "a.bin")
    before = anonymous_bytes()
    found = load_torch(tmp_path / "a.bin")["large"]
    assert int(found.sum()) == 2**23 * (2**24 - 1)
    assert anonymous_bytes() - before < 2**24
    found[0] = 1  # of this process alone
    assert int(load_torch(tmp_path / "a.bin")["large"][0]) == 0


class Payload:
    """Unpickling it would leave a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_checkpoint_is_refused_and_not_run(dnabert: Path, tmp_path: Path) -> None:
    marker = tmp_path / "payload-ran"
    content = {"cfg": {"model": argparse.Namespace()}, "model": Payload(marker)}
    (dnabert / "model.safetensors").unlink()
    for path, source in ((tmp_path / "evil.pt", tmp_path / "evil.pt"), (dnabert / "pytorch_model.bin", dnabert)):
        torch.save(content, path)
        assert refusal(source).startswith(f"{path}: refused, it holds ")
        torch.save(content["model"], path)
        assert f"{path}: refused, it holds posix.mkdir, not only tensors, and reading it could run" in refusal(source)
        path.write_bytes(pickle.dumps(content))
        assert f"{path}: a pickle that torch.save has not written, and reading it could run code" in refusal(source)
    assert not marker.exists()


def test_what_torch_saves_but_no_table_of_tensors_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "esm2.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    assert "it holds torch.nn.modules.linear.Linear" in refusal(path)
    assert "save the state_dict() of a model alone" in refusal(path)
    for protocol in (2, 3, 4):
        torch.save({"model": {}}, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
        assert "saved by torch before 1.6" in refusal(path)
        assert refusal(path).endswith("save it again with a newer torch: torch.save(torch.load(FILE), FILE)")
    torch.save({"cfg": {"model": argparse.Namespace(layers=1)}, "model": {}}, path)
    assert "not an ESM-2, ESM-1b or ESM-1v of fair-esm (KeyError: 'embed_dim')" in refusal(path)


def test_what_is_no_weights_is_told_by_its_name(dnabert: Path, tmp_path: Path) -> None:
    pointer, page = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"<!DOCTYPE html>\n<html>"
    for path, source in ((dnabert / "model.safetensors", dnabert), (tmp_path / "esm2.pt", tmp_path / "esm2.pt")):
        path.write_bytes(pointer)
        assert refusal(source) == f"{path}: is a pointer of Git LFS; fetch the file itself: git lfs pull"
        path.write_bytes(page)
        assert refusal(source) == f"{path}: is a web page; download the file itself"
    alone = dnabert / "model.safetensors"
    assert refusal(alone) == f"{alone}: says nothing of its model; give its directory, with config.json in it"
    (dnabert / "model.json").write_text("{}")
    assert refusal(dnabert).startswith(f"{dnabert}: is prepared already; use it as it is")


def nested(depth: int) -> bytes:
    """A pickle of a table whose key is a tuple in a tuple in a tuple."""
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."


def doubled(times: int) -> bytes:
    """A pickle of a list of one list twice, which holds one list twice, and so on; called, it would be shown."""
    return b"\x80\x02]q\x00" + b"]q\x01(h\x00h\x00eq\x00" * times + b")R."


@pytest.mark.parametrize(
    ("pickled", "problem"),
    [
        (nested(2**14 + 1), "nested or repeated more than any checkpoint"),
        (nested(10**6), "nested or repeated more than any checkpoint"),
        (doubled(60), "nested or repeated more than any checkpoint"),
        (b"\x80\x02" + b"}0" * 2**19 + b".", "a pickle of more than 1048576 bytes"),
        (b"\x80\x02\x97.", "a pickle that torch.save does not write"),
        (b"\x80\x02s.", "IndexError"),
        (b"\x80\x02X\xff\xff\xff\x7fx.", "ValueError"),
    ],
)
def test_a_pickle_of_no_checkpoint_is_one_line(tmp_path: Path, pickled: bytes, problem: str) -> None:
    message = refusal(zipped(tmp_path / "a.pt", pickled))
    assert f"a.pt: truncated or not a torch checkpoint ({problem}" in message or f": {problem})" in message
    assert "\n" not in message


@pytest.mark.parametrize(("shape", "stride", "fits"), [(2, 1, True), (1, 0, True), (3, 0, False), (2**30, 0, False)])
def test_a_tensor_is_no_larger_than_its_numbers(tmp_path: Path, shape: int, stride: int, fits: bool) -> None:
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02tQ"
    place = b"K\0J" + shape.to_bytes(4, "little") + b"\x85K%c\x85" % stride
    pickled = b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"\x89}tRs."
    path = zipped(tmp_path / "a.bin", pickled)
    content = load_torch(path)
    if fits:
        assert only_tensors(path, content)["a"].tolist() == [1.0, 2.0][:shape]
    else:
        with pytest.raises(WeightsError, match="holds no plain table of tensors"):
            only_tensors(path, content)


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.pt", b"\x80\x02" + b"}" * 1000 + b".", zipfile.ZIP_DEFLATED)
    assert "compressed, which torch.save never does" in refusal(path)


def test_truncated_files_are_refused(fair_esm: Path, dnabert: Path) -> None:
    weights = dnabert / "model.safetensors"
    for file, source in ((fair_esm, fair_esm), (weights, dnabert)):
        for size in (len(file.read_bytes()) // 2, 5000, 0):
            file.write_bytes(file.read_bytes()[:size])
            assert f"{file}: truncated" in refusal(source)


# Tensors


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.update({"layers.0.extra.weight": torch.ones(3)}), "1 unknown: encoder.*layers.0.extra"),
        (lambda state: state.pop("layers.1.fc2.bias"), "1 missing: layers.1.fc2.bias"),
        (lambda state: state.pop("layers.2.self_attn.rot_emb.inv_freq"), "1 missing: layers.2.*inv_freq"),
        (lambda state: state.update({"layers.1.fc1.weight": torch.ones(192, 47)}), r"1 misshapen: .*fc1.*\[192, 47\]"),
        (lambda state: state.update({"layers.1.fc1.bias": torch.ones(192).int()}), "1 misshapen: .*int32"),
        (lambda state: state.update({"layers.1.self_attn.rot_emb.inv_freq": torch.ones(6)}), "inv_freq differs from"),
    ],
)
def test_wrong_tensors_of_esm2_are_listed(tmp_path: Path, change: Change, complaint: str) -> None:
    state = checkpoints.fair_esm_state()
    change(state)
    with pytest.raises(WeightsError, match=complaint):
        dict(read_checkpoint(checkpoints.write_fair_esm(tmp_path / "esm2.pt", state), None).own_tensors())


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
def test_wrong_tensors_of_dnabert_s_are_listed(dnabert: Path, change: Change, complaint: str) -> None:
    state = checkpoints.golden_weights()
    change(state)
    save_file(state, dnabert / "model.safetensors")
    with pytest.raises(WeightsError, match=complaint):
        dict(read_checkpoint(dnabert, None).own_tensors())


def test_a_configuration_that_contradicts_the_tensors_is_refused(tmp_path: Path) -> None:
    path = checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", checkpoints.fair_esm_state(), layers=2)
    assert "unknown: encoder.sentence_encoder.layers.2." in refusal(path)
    assert "layers must be a whole number" in refusal(
        checkpoints.write_fair_esm(path, checkpoints.fair_esm_state(), layers=10**9)
    )


# Sources


def test_the_family_is_recognised(fair_esm: Path, dnabert: Path, tmp_path: Path) -> None:
    directory = checkpoints.write_hugging_face_esm(tmp_path / "esm", checkpoints.fair_esm_state())
    found = [read_checkpoint(path, None) for path in (fair_esm, directory, dnabert)]
    assert [checkpoint.family for checkpoint in found] == ["esm", "esm", "mosaic_bert"]
    assert [checkpoint.letters is None for checkpoint in found] == [False, False, True]


def test_sources_of_other_models_are_refused(fair_esm: Path, tmp_path: Path) -> None:
    regression = tmp_path / "esm2_small-contact-regression.pt"
    assert refusal(regression).startswith(f"{regression}: not a checkpoint of fair-esm or of the esm package; give")
    torch.save({"args": argparse.Namespace(arch="msa_transformer"), "model": {}}, fair_esm)
    assert "arch is 'msa_transformer', ESM-1b and ESM-1v have 'roberta_large'" in refusal(fair_esm)
    directory = checkpoints.write_hugging_face_esm(tmp_path / "esm", checkpoints.fair_esm_state())
    config = json.loads((directory / "config.json").read_text())

    def changed(**entries: object) -> str:
        (directory / "config.json").write_text(json.dumps(config | entries))
        return refusal(directory)

    assert "model_type is 'gpt2', known are 'esm', 'esmc', 't5', 'bert'; give such a model" in changed(
        model_type="gpt2"
    )
    assert "model_type is ['esm']" in changed(model_type=["esm"])
    positions = changed(position_embedding_type="relative_key")
    assert "positions of type 'relative_key'; rotary and absolute ones are known" in positions
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text("\n".join(token for token in VOCABULARY if token not in "WC"))
    assert f"{vocabulary}: the vocabulary has no token for C, W; give a model of proteins" in changed()


def test_incomplete_directories_are_refused(dnabert: Path) -> None:
    config = json.loads((dnabert / "config.json").read_text())
    del config["num_attention_heads"]
    (dnabert / "config.json").write_text(json.dumps(config))
    assert "missing or wrong entry 'num_attention_heads'" in refusal(dnabert)
    (dnabert / "config.json").write_text("{")
    assert "config.json: not JSON" in refusal(dnabert)
    (dnabert / "config.json").unlink()
    assert "not a Hugging Face model directory" in refusal(dnabert)
    (dnabert / "model.safetensors").unlink()
    (dnabert / "adapter_config.json").write_text("{}")
    assert "a LoRA adapter; merge it into its model" in refusal(dnabert)


def test_an_index_may_not_name_files_elsewhere(dnabert: Path, tmp_path: Path) -> None:
    (dnabert / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = dnabert / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    assert "must name weights files beside it" in refusal(dnabert)
