"""The classifier: genuine and malicious .pth files, what it makes of a sample, and refusals."""

import json
import pickle
import pickletools
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holdfast.errors import ConfigError, InputError, WeightsError
from holdfast.models.torch_file import TENSOR_NAMES
from holdfast.results import classifier
from holdfast.results.classifier import PUBLISHED_CLASSES, FeatureModel, load_published
from holdfast.results.embeddings import EmbeddingsFile
from holdfast.results.training import Network
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.results.samples import DNABERT_S_WIDTH, ESM2_WIDTH, FEATURE_WIDTH, write_features, write_results

ENTRY = Path(classifier.__file__).parents[2] / "entry.py"
PUBLISH = Path(__file__).with_name("virnucpro.py")
FROM = ("facebook/x", "cd" * 32, False)
MODELS = {
    "dna": FeatureModel("dnabert_s", "mosaic_bert", DNABERT_S_WIDTH, 2, "mean", *FROM),
    "protein": FeatureModel("esm2", "esm", ESM2_WIDTH, 2, "mean", *FROM),
}
"""What samples are made with unless a test says otherwise."""


@pytest.fixture(scope="module", params=["function", "relu"])
def published(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A directory with the files of a genuine torch.save, and what that module computes."""
    directory = tmp_path_factory.mktemp("published")
    command = [sys.executable, "-W", "ignore", PUBLISH, str(FEATURE_WIDTH), directory, request.param]
    subprocess.run(command, check=True)
    return directory


def test_virnucpros_pickled_module_is_read_and_converted(published: Path, tmp_path: Path) -> None:
    expected = np.load(published / "expected.npz")
    sample = write_features(tmp_path / "s", expected["features"], list(range(50)))
    converted = tmp_path / "converted.safetensors"
    command = [sys.executable, ENTRY, "convert-classifier", published / "500_model.pth", converted]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "16 values a frame, from 500_model.pth, sha256 " in result.stdout
    found = []
    for network in (load_published(published / "500_model.pth"), classifier.load_classifier(converted)):
        with EmbeddingsFile(sample) as reader:
            ((rows, probabilities),) = classifier.classify(reader, network, {})
        assert rows.ids[49] == "r49_chunk_1F2"
        np.testing.assert_allclose(probabilities, expected["probabilities"], rtol=0, atol=1e-6)
        found.append(probabilities)
    np.testing.assert_array_equal(found[0], found[1])
    assert expected["probabilities"][:, 1].std() > 0.01


def test_the_published_module_holds_the_names_that_are_allowed_and_no_others(published: Path) -> None:
    with zipfile.ZipFile(published / "500_model.pth") as archive:
        pickled = archive.read("500_model/data.pkl")
    opcodes = list(pickletools.genops(pickled))
    names = {str(argument).replace(" ", ".") for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}
    assert set(PUBLISHED_CLASSES) - {"torch.nn.modules.activation.ReLU"} <= names <= TENSOR_NAMES | {*PUBLISHED_CLASSES}


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def hidden_in_a_module(payload: object) -> object:
    module = torch.nn.Linear(2, 2)
    module.__dict__["_modules"] = {"hidden_layer": payload}
    return module


def payloads(marker: Path) -> dict[str, tuple[object, str]]:
    """Objects that would create ``marker`` if simply loaded, and the name each asks for, in Python 2's words."""
    command, program = f"touch '{marker}'", f"open({str(marker)!r}, 'w')"
    system, evaluate = Call(__import__("os").system, command), Call(eval, program)
    return {
        "system": (system, "posix.system"),
        "eval": (evaluate, "__builtin__.eval"),
        "exec": (Call(exec, program), "__builtin__.exec"),
        "run": (Call(subprocess.check_call, ["touch", str(marker)]), "commands.check_call"),
        "open": (Call(open, str(marker), "w"), "io.open"),
        "nested": (hidden_in_a_module({"a": [evaluate]}), "__builtin__.eval"),
        "getattr": (Call(getattr, "load", "upper"), "__builtin__.getattr"),
        "load": (Call(torch.load, str(marker)), "torch.serialization.load"),
        "storage": (Call(torch.storage._load_from_bytes, b""), "torch.storage._load_from_bytes"),
    }


@pytest.mark.parametrize("name", list(payloads(Path("marker"))))
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "500_model.pth"
    payload, asked = payloads(marker)[name]
    torch.save(payload, path)
    with pytest.raises(WeightsError, match=f"500_model.pth: refused, it holds {asked}, not only tensors, and reading"):
        load_published(path)
    torch.save(payload, path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        WeightsError, match=r"500_model.pth: saved by torch before 1\.6, which is not read; save it again"
    ):
        load_published(path)
    assert not marker.exists()


def test_the_payloads_are_live(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name in ("system", "eval", "run", "open"):
        opened = pickle.loads(pickle.dumps(payloads(marker)[name][0], protocol=2))
        if hasattr(opened, "close"):
            opened.close()
        assert marker.exists()
        marker.unlink()


EVIL = """
import os, torch
class MLPClassifier(torch.nn.Module):
    def __METHOD__(self, *state):
        return os.system, ("touch marker",)
class Evil(MLPClassifier):
    pass
torch.save(NAME(), "500_model.pth")
"""


@pytest.mark.parametrize(
    ("method", "name", "problem"),
    [
        ("reduce", "MLPClassifier", "refused, it holds posix.system, "),
        ("setstate", "Evil", "refused, it holds __main__.Evil, "),
        ("setstate", "MLPClassifier", "not a classifier of VirNucPro"),
    ],
)
def test_a_malicious_class_under_main_is_refused(tmp_path: Path, method: str, name: str, problem: str) -> None:
    (tmp_path / "evil.py").write_text(EVIL.replace("METHOD", method).replace("NAME", name))
    subprocess.run([sys.executable, "-W", "ignore", "evil.py"], cwd=tmp_path, check=True)
    with pytest.raises(WeightsError, match=problem):
        load_published(tmp_path / "500_model.pth")
    assert not (tmp_path / "marker").exists()


def zipped(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/version", "3\n")


def reference(kind: bytes, count: bytes) -> bytes:
    """A pickle of one reference to a storage of ``count`` numbers."""
    return b"\x80\x02(" + kind + b"ctorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpu" + count + b"tQ."


NO_TORCH_FILE = "truncated or not a torch checkpoint"
NO_CLASSIFIER = "not a classifier of VirNucPro"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.write_bytes(b""), NO_TORCH_FILE),
        (lambda path: path.write_bytes(b"\x89PNG\r\n" * 100), NO_TORCH_FILE),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 2)), "a pickle that torch.save has not written"),
        (lambda path: path.write_bytes(bytes(2**25 + 1)), "larger than 33554432 bytes, so not a classifier"),
        (lambda path: zipped(path, pickle.dumps([1, 2], 2)), NO_CLASSIFIER),
        (lambda path: zipped(path, b"\x80\x02ccollections\nOrderedDict\n}b."), NO_TORCH_FILE),
        (lambda path: zipped(path, b"\x80\x02c__main__\nMLPClassifier\n}b."), NO_TORCH_FILE),
        (lambda path: zipped(path, b"\x80\x02c__main__\nMLPClassifier\n)\x81."), NO_CLASSIFIER),
        (lambda path: zipped(path, reference(b"X\x07\0\0\0storage", b"J\xff\xff\xff\x7f")), NO_TORCH_FILE),
        (lambda path: zipped(path, reference(b"X\x07\0\0\0storage", b"J\xff\xff\xff\xff")), NO_TORCH_FILE),
        (lambda path: zipped(path, reference(b"X\x04\0\0\0file", b"K\x01")), NO_TORCH_FILE),
    ],
)
def test_a_broken_pth_is_one_clear_error(tmp_path: Path, make: Callable[[Path], object], problem: str) -> None:
    path = tmp_path / "500_model.pth"
    make(path)
    with pytest.raises(WeightsError, match=problem) as refusal:
        load_published(path)
    assert str(path) in str(refusal.value)
    assert "state_dict() of" not in str(refusal.value), "advice for checkpoints of models"
    assert "VirNucPro's whole pickled network as its authors publish it" in str(refusal.value)


def test_a_genuine_pth_that_is_cut_or_changed_is_refused(published: Path, tmp_path: Path) -> None:
    content = (published / "500_model.pth").read_bytes()
    for size in (100, len(content) // 2, len(content) - 100):
        (tmp_path / "500_model.pth").write_bytes(content[:size])
        with pytest.raises(WeightsError, match=r"500_model\.pth: truncated or not a torch checkpoint"):
            load_published(tmp_path / "500_model.pth")
    with pytest.raises(
        WeightsError, match=r"state\.pth: not a classifier .* a table of 9 .* give .* 300_model\.pth or 500_model\.pth"
    ):
        load_published(published / "state.pth")
    with pytest.raises(WeightsError, match=r"old\.pth: saved by torch before 1\.6, which is not read; save it again"):
        load_published(published / "old.pth")
    with pytest.raises(WeightsError, match=r"BatchNorm1d has eps 0\.001"):
        load_published(published / "epsilon.pth")
    with pytest.raises(WeightsError, match=r"it holds torch\.nn\.modules\.linear\.Identity"):
        load_published(published / "identity.pth")


def learned() -> Network:
    """A network with random weights and statistics."""
    torch.manual_seed(0)
    network = Network(FEATURE_WIDTH)
    network(torch.randn(64, FEATURE_WIDTH) * 3 + 1)
    return network


def test_blocks_do_not_change_the_classification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = learned()
    features = np.random.default_rng(0).normal(size=(100, FEATURE_WIDTH)).astype(np.float32)
    with EmbeddingsFile(write_features(tmp_path / "s", features, list(range(100)))) as reader:
        ((_, whole),) = classifier.classify(reader, network.classifier({}, "random"), {})
        blocks = reader.blocks
        monkeypatch.setattr(reader, "blocks", lambda models: blocks(models, block_rows=7))
        parts = list(classifier.classify(reader, network.classifier({}, "random"), {}))
    assert len(parts) == 15
    np.testing.assert_allclose(np.concatenate([part for _, part in parts]), whole, atol=1e-6)
    expected = network.predict(torch.from_numpy(features)).softmax(1)
    np.testing.assert_allclose(whole, expected.numpy(), atol=1e-6)


def test_embeddings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    network = learned().classifier(MODELS, "a test")
    features = np.zeros((2, FEATURE_WIDTH))
    for name in ("proteins", "partial"):
        (tmp_path / name).mkdir()
    write_results(tmp_path / "proteins/embeddings.h5", [("p", 9, "ok")], [], kind="proteins")
    write_results(tmp_path / "partial/embeddings.h5", [("c", 9, "ok")], [], {"esm2": features[:0]})
    write_features(tmp_path / "wide", np.zeros((2, FEATURE_WIDTH + 3)), [0, 1])
    write_features(tmp_path / "synthetic", features, [0, 1], synthetic=["dnabert_s"])
    write_features(tmp_path / "other", features, [0, 1], source="facebook/y", weights_sha256="ef" * 32)
    write_features(tmp_path / "layer", features, [0, 1], layer=1)
    trained = r"was trained with mosaic_bert of facebook/x \(layer 2, mean, width 6\) for dna, but .*"
    cases = {
        "wide": (WeightsError, r"takes 16 values, but .*wide.* gives 19 \(dnabert_s 6 \+ esm2 13\)"),
        "synthetic": (WeightsError, trained + r"mosaic_bert of synthetic:x \(layer 2, mean, width 6\); use the same"),
        "other": (WeightsError, trained + r"mosaic_bert of facebook/y \(layer 2, mean, width 6\); use the same"),
        "layer": (WeightsError, trained + r"mosaic_bert of facebook/x \(layer 1, mean, width 6\); use the same"),
        "proteins": (InputError, "its kind is proteins"),
        "partial": (ConfigError, r"method\.dna: frames are classified with one such model, there are: none"),
    }
    for name, (kind, problem) in cases.items():
        with EmbeddingsFile(tmp_path / name / "embeddings.h5") as reader, pytest.raises(kind, match=problem):
            next(classifier.classify(reader, network, {}))


@pytest.mark.parametrize("known", [{"source": "facebook/a_copy"}, {"weights_sha256": "ef" * 32}])
def test_the_same_weights_from_elsewhere_and_the_same_source_in_another_format_fit(
    tmp_path: Path, known: Mapping[str, Any]
) -> None:
    network = learned().classifier(MODELS, "a test")
    with EmbeddingsFile(write_features(tmp_path / "fits", np.zeros((2, FEATURE_WIDTH)), [0, 1], **known)) as reader:
        assert len(list(classifier.classify(reader, network, {}))) == 1


def test_frames_are_classified_by_the_two_models_that_are_named(tmp_path: Path) -> None:
    """Of two protein models in a sample; the features of the other are not looked at."""
    network = learned().classifier({}, "random")
    random = np.random.default_rng(4)
    dna, protein = random.normal(size=(3, DNABERT_S_WIDTH)), random.normal(size=(3, ESM2_WIDTH))
    matrices = {"dna": dna, "large": protein, "small": np.zeros((3, 4))}
    path = write_results(
        tmp_path / "embeddings.h5", [("c", 900, "ok")], [(0, 1, frame) for frame in range(3)], matrices
    )
    with EmbeddingsFile(path) as reader:
        ((_, found),) = classifier.classify(reader, network, {"protein": "large"})
        np.testing.assert_array_equal(found, network.predict(np.concatenate([dna, protein], axis=1, dtype=np.float32)))
        for named, problem in (
            ({}, "method.protein: frames are classified with one such model, there are: large, small; name it"),
            ({"protein": "dna"}, "method.protein: dna is no model for it; those are: large, small"),
            ({"protein": "large", "dna": "none"}, "method.dna: none is no model for it; those are: dna"),
        ):
            with pytest.raises(ConfigError, match=f"^{re.escape(problem)}$"):
                next(classifier.classify(reader, network, named))


def test_other_widths_of_the_same_sum_are_refused() -> None:
    network = learned().classifier(MODELS, "a test")
    network.require_fit(MODELS, "here")
    swapped = {"dna": replace(MODELS["dna"], width=ESM2_WIDTH), "protein": replace(MODELS["protein"], width=6)}
    with pytest.raises(WeightsError, match=r"trained with .*width 6\) for dna, but here has .*width 10\)"):
        network.require_fit(swapped, "here")


def test_a_saved_classifier_names_its_classes_and_files_that_hold_none_are_refused(tmp_path: Path) -> None:
    network = learned().classifier(MODELS, "random")
    network.save(tmp_path / "saved.safetensors")
    with safe_open(tmp_path / "saved.safetensors", "numpy") as file:
        header = file.metadata()
    known = {"layer": 2, "pooling": "mean", "source": "facebook/x", "weights_sha256": "cd" * 32, "synthetic": False}
    models: dict[str, Any] = {
        "dna": {"model": "dnabert_s", "family": "mosaic_bert", "width": 6, **known},
        "protein": {"model": "esm2", "family": "esm", "width": 10, **known},
    }
    written = {"format_version": 3, "classes": ["non-viral", "virus"], "models": models, "source": "random"}
    assert json.loads(header[classifier.HEADER_KEY]) == written
    assert classifier.load_classifier(tmp_path / "saved.safetensors").models == MODELS
    learned().classifier({}, "VirNucPro's").save(tmp_path / "published.safetensors")
    assert classifier.load_classifier(tmp_path / "published.safetensors").models == {}

    def save(name: str, state: dict[str, np.ndarray], **changed: object) -> None:
        metadata = {classifier.HEADER_KEY: json.dumps(written | changed)} if state else {}
        save_file(state or {"a": np.zeros(1)}, tmp_path / f"{name}.safetensors", metadata=metadata)

    state = network.state
    save("other", {})
    save("old", state, format_version=2, models={})
    save("classes", state, classes=["other", "virus"])
    save("roles", state, models={"dna": models["dna"]})
    save("fields", state, models=models | {"dna": {**models["dna"], "layer": "2"}})
    save("extra", {**state, "extra.weight": np.zeros(1, np.float32)})
    save("missing", {name: state[name] for name in list(state)[1:]})
    save("shape", {**state, "bn1.bias": np.zeros(3, np.float32)})
    save("infinite", {**state, "output_layer.bias": np.full(2, np.inf, np.float32)})
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "model.onnx").write_text("hello")
    problems = {
        "none.safetensors": "no such file",
        "other.safetensors": "not a classifier of this version",
        "old.safetensors": "not a classifier of this version; train it, or convert",
        "classes.safetensors": "not a classifier of this version; train it, or convert",
        "roles.safetensors": "not a classifier of this version; train it, or convert",
        "fields.safetensors": r"this version \(models\.dna\.layer must be a whole number\); train it, or convert",
        "text.safetensors": "not a readable safetensors file",
        "model.onnx": r"must end in \.safetensors; holdfast convert-classifier",
        "extra.safetensors": "extra.weight is unknown",
        "missing.safetensors": "hidden_layer.weight",
        "shape.safetensors": r"bn1\.bias.*3",
        "infinite.safetensors": "gives values that are not finite",
    }
    for name, problem in problems.items():
        with pytest.raises(WeightsError, match=problem) as refusal:
            classifier.load_classifier(tmp_path / name)
        assert str(tmp_path / name) in str(refusal.value)
