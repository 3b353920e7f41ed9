"""The classifier: genuine and malicious .pth files, training on synthetic features, and refusals."""

import json
import pickle
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from holdfast import classifier, pth, training
from holdfast.embeddings import Reader, Writer
from holdfast.errors import ConfigError, HoldfastError, InputError, WeightsError
from holdfast.frames import frame_id
from holdfast.prepared import Prepared
from holdfast.training import Network

SCRIPTS = Path(classifier.__file__).parents[1]
DNABERT_S_WIDTH, ESM2_WIDTH = 6, 10
FEATURE_WIDTH = DNABERT_S_WIDTH + ESM2_WIDTH

PUBLISH = Path(__file__).parents[1] / "reference" / "virnucpro.py"


@pytest.fixture(scope="module", params=["function", "relu"])
def published(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A directory with the files of a genuine torch.save, and what that module computes."""
    directory = tmp_path_factory.mktemp("published")
    command = [sys.executable, "-W", "ignore", PUBLISH, str(FEATURE_WIDTH), directory, request.param]
    subprocess.run(command, check=True)
    return directory


def sample_prepared(model: str, width: int, source: str = "facebook/x", synthetic: bool = False) -> Prepared:
    return Prepared(model, {"layers": 2}, width, source, "", "", synthetic, {})


def write_sample(
    path: Path,
    features: np.ndarray,
    records: Sequence[int],
    chunks: Sequence[int] | None = None,
    source: str = "facebook/x",
    synthetic: bool = False,
    esm2_width: int = ESM2_WIDTH,
) -> Path:
    """Write a results file of kind contigs: the record of each frame, and DNABERT-S before ESM-2 in the features."""
    count = max(records, default=-1) + 2
    numbers = [1] * len(records) if chunks is None else list(chunks)
    names = [
        frame_id(f"r{record}", chunk, row % 6) for row, (record, chunk) in enumerate(zip(records, numbers, strict=True))
    ]
    with Writer.create(path, path.stem, "contigs", 500) as writer:
        writer.append_records([f"r{record}" for record in range(count)], [2000] * count, ["ok"] * count)
        zeros = [0] * len(records)
        writer.append_rows(names, zeros, [bytes(32)] * len(records), list(records), numbers, zeros)
    with Writer.reopen(path, {}) as writer:
        for model, matrix in (("esm2", features[:, DNABERT_S_WIDTH:]), ("dnabert_s", features[:, :DNABERT_S_WIDTH])):
            width = esm2_width if model == "esm2" else DNABERT_S_WIDTH
            writer.write_matrix(sample_prepared(model, width, source, synthetic), [matrix], "float32", "fp32")
    return path


def labelled(
    directory: Path, shift: float, contigs: int = 40, frames: int = 5, seed: int = 5
) -> list[tuple[str | Path, str]]:
    """Two samples a class with synthetic features whose means differ by ``shift`` in every column."""
    random = np.random.default_rng(seed)
    files: list[tuple[str | Path, str]] = []
    for label, sign in (("virus", 1), ("other", -1)):
        for number in range(2):
            features = random.normal(size=(contigs * frames, FEATURE_WIDTH)) + sign * shift / 2
            records = np.repeat(np.arange(contigs), frames).tolist()
            path = directory / f"{label}{number}.h5"
            files.append((write_sample(path, features.astype(np.float32), records), label))
    return files


@pytest.mark.parametrize("name", ["500_model.pth", "old.pth"])
def test_virnucpros_pickled_module_is_read_and_converted(published: Path, tmp_path: Path, name: str) -> None:
    expected = np.load(published / "expected.npz")
    sample = write_sample(tmp_path / "s.h5", expected["features"], list(range(50)))
    converted = tmp_path / "converted.safetensors"
    command = [sys.executable, str(SCRIPTS / "convert_classifier.py"), str(published / name), str(converted)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"16 values a frame, from {name}, sha256 " in result.stdout
    found = []
    for network in (pth.load(published / name), classifier.load(converted)):
        with Reader(sample) as reader:
            ((rows, probabilities),) = classifier.classify(reader, network)
        assert rows.ids[49] == "r49_chunk_1F2"
        np.testing.assert_allclose(probabilities, expected["probabilities"], rtol=0, atol=1e-6)
        found.append(probabilities)
    np.testing.assert_array_equal(found[0], found[1])
    assert expected["probabilities"][:, 1].std() > 0.01


def test_pickle_holds_only_the_names_that_the_unpickler_knows(published: Path) -> None:
    with zipfile.ZipFile(published / "500_model.pth") as archive:
        pickled = archive.read("500_model/data.pkl")
    opcodes = list(pickletools.genops(pickled))
    names = {str(argument).replace(" ", ".") for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}
    assert names - {"torch.nn.modules.activation.ReLU"} == set(pth.NAMES) - {
        "torch.nn.modules.activation.ReLU",
        "builtins.set",
    }


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


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", list(payloads(Path("marker"))))
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(
    tmp_path: Path, name: str, new_format: bool
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "500_model.pth"
    payload, asked = payloads(marker)[name]
    torch.save(payload, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(WeightsError, match=f"500_model.pth: refused, it asks for {asked}, "):
        pth.load(path)
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
        ("reduce", "MLPClassifier", "refused, it asks for posix.system, "),
        ("setstate", "Evil", "refused, it asks for __main__.Evil, "),
        ("setstate", "MLPClassifier", "not a classifier of VirNucPro"),
    ],
)
def test_a_malicious_class_under_main_is_refused(tmp_path: Path, method: str, name: str, problem: str) -> None:
    (tmp_path / "evil.py").write_text(EVIL.replace("METHOD", method).replace("NAME", name))
    subprocess.run([sys.executable, "-W", "ignore", "evil.py"], cwd=tmp_path, check=True)
    with pytest.raises(WeightsError, match=problem):
        pth.load(tmp_path / "500_model.pth")
    assert not (tmp_path / "marker").exists()


def zipped(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)


def reference(kind: bytes, count: bytes) -> bytes:
    """A pickle of one reference to a storage of ``count`` numbers."""
    return b"\x80\x02(" + kind + b"ctorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpu" + count + b"tQ."


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.write_bytes(b""), "not a classifier of VirNucPro"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n" * 100), "not a classifier of VirNucPro"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 2)), "not a classifier of VirNucPro"),
        (lambda path: zipped(path, pickle.dumps([1, 2], 2)), "not a classifier of VirNucPro"),
        (lambda path: zipped(path, b"\x80\x02ccollections\nOrderedDict\n}b."), "not a classifier of VirNucPro"),
        (lambda path: zipped(path, b"\x80\x02c__main__\nMLPClassifier\n}b."), "not a classifier of VirNucPro"),
        (lambda path: zipped(path, b"\x80\x02c__main__\nMLPClassifier\n)\x81."), "not a classifier of VirNucPro"),
        (lambda path: zipped(path, reference(b"X\x07\0\0\0storage", b"J\xff\xff\xff\x7f")), "unknown reference"),
        (lambda path: zipped(path, reference(b"X\x07\0\0\0storage", b"J\xff\xff\xff\xff")), "unknown reference"),
        (lambda path: zipped(path, reference(b"X\x04\0\0\0file", b"K\x01")), "unknown reference"),
    ],
)
def test_a_broken_pth_is_one_clear_error(tmp_path: Path, make: Callable[[Path], object], problem: str) -> None:
    path = tmp_path / "500_model.pth"
    make(path)
    with pytest.raises(WeightsError, match=problem) as refusal:
        pth.load(path)
    assert str(path) in str(refusal.value)


def test_a_genuine_pth_that_is_cut_or_changed_is_refused(published: Path, tmp_path: Path) -> None:
    for name in ("500_model.pth", "old.pth"):
        content = (published / name).read_bytes()
        for size in (100, len(content) // 2, len(content) - 100):
            (tmp_path / name).write_bytes(content[:size])
            with pytest.raises(WeightsError, match=r"\.pth: not a classifier of VirNucPro"):
                pth.load(tmp_path / name)
    with pytest.raises(WeightsError, match=r"state\.pth: not a classifier"):
        pth.load(published / "state.pth")
    with pytest.raises(WeightsError, match=r"BatchNorm1d has eps 0\.001"):
        pth.load(published / "epsilon.pth")
    with pytest.raises(WeightsError, match=r"it asks for torch\.nn\.modules\.linear\.Identity"):
        pth.load(published / "identity.pth")


def test_a_trained_classifier_separates_what_can_be_separated(tmp_path: Path) -> None:
    files = labelled(tmp_path, shift=1.5)
    trained = training.train(files, seed=1, epochs=10)
    metrics = trained.metrics
    assert metrics["held_out"] == {label: {"contigs": 16, "frames": 80} for label in ("other", "virus")}
    assert metrics["train"] == {label: {"contigs": 64, "frames": 320} for label in ("other", "virus")}
    assert metrics["accuracy"] > 0.97
    assert metrics["auc"] > 0.995
    assert metrics["contig_accuracy"] == 1.0
    confusion = metrics["confusion"]
    assert sum(confusion[label][label] for label in ("other", "virus")) / 160 == metrics["accuracy"]
    assert sum(confusion["virus"].values()) == sum(confusion["other"].values()) == 80
    assert [epoch["epoch"] for epoch in trained.history] == list(range(1, 11))
    assert trained.history[-1]["loss"] < trained.history[0]["loss"] / 2
    assert trained.history[-1]["held_out_accuracy"] == metrics["accuracy"]
    assert metrics["synthetic"] is False
    assert "synthetic" not in trained.summary()


def test_labels_without_information_are_not_learned(tmp_path: Path) -> None:
    metrics = training.train(labelled(tmp_path, shift=0.0), seed=1, epochs=5).metrics
    assert 0.35 < metrics["auc"] < 0.65


def test_frames_of_a_contig_stay_on_one_side(tmp_path: Path) -> None:
    """Features that name the contig and nothing else can be learned by heart only if a contig is on both sides."""
    random = np.random.default_rng(2)
    files: list[tuple[str | Path, str]] = []
    for label in ("virus", "other"):
        centres = random.normal(size=(60, FEATURE_WIDTH)) * 3
        records = np.repeat(np.arange(60), 6)
        features = centres[records] + random.normal(size=(360, FEATURE_WIDTH)) * 0.01
        files.append((write_sample(tmp_path / f"{label}.h5", features.astype(np.float32), records.tolist()), label))
    trained = training.train(files, seed=1, epochs=20)
    assert trained.history[-1]["loss"] < 0.3
    assert 0.2 < trained.metrics["accuracy"] < 0.8


def test_equal_seeds_give_equal_files_whatever_the_threads_and_other_seeds_do_not(tmp_path: Path) -> None:
    files = labelled(tmp_path, shift=1.0, contigs=10)
    written: list[list[bytes]] = []
    threads = torch.get_num_threads()
    for seed, busy in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(len(written))
        torch.set_num_threads(busy)
        before = torch.get_rng_state()
        trained = training.train(files, seed=seed, epochs=3)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == busy
        outputs = [tmp_path / name for name in ("c.safetensors", "metrics.json", "history.tsv", "confusion.tsv")]
        trained.classifier.save(outputs[0])
        trained.write_metrics(outputs[1])
        trained.write_history(outputs[2])
        trained.write_confusion(outputs[3])
        written.append([path.read_bytes() for path in outputs])
    torch.set_num_threads(threads)
    assert written[0] == written[1]
    assert written[0][0] != written[2][0]


def test_a_saved_classifier_is_the_same_and_trained_and_classified_by_the_scripts(tmp_path: Path) -> None:
    files = [str(path) for path, _ in labelled(tmp_path, shift=1.5, contigs=10)]
    outputs = ["--output", "c.safetensors", "--metrics", "m.json", "--history", "h.tsv", "--confusion", "f.tsv"]
    train = ["train_classifier.py", "--virus", *files[:2], "--other", *files[2:], "--epochs", "8", *outputs]
    classify = ["classify_frames.py", files[0], "--classifier", "c.safetensors", "--output", "frames.tsv"]
    for script, *arguments in (train, classify):
        command = [sys.executable, str(SCRIPTS / script), *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert result.stderr == ""
        if script == "train_classifier.py":
            assert result.stdout.startswith("held-out accuracy ")
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["models"] == {
        "dnabert_s": {"width": 6, "source": "facebook/x", "synthetic": False},
        "esm2": {"width": 10, "source": "facebook/x", "synthetic": False},
    }
    confusion = [line.split("\t") for line in (tmp_path / "f.tsv").read_text().splitlines()]
    assert confusion == [
        ["label", "other", "virus"],
        *(
            [label, *(str(metrics["confusion"][label][name]) for name in ("other", "virus"))]
            for label in ("other", "virus")
        ),
    ]
    history = (tmp_path / "h.tsv").read_text().splitlines()
    assert history[0] == "epoch\tloss\theld_out_loss\theld_out_accuracy"
    assert [line.split("\t")[0] for line in history[1:]] == [str(epoch) for epoch in range(1, 9)]
    predictions = [line.split("\t")[4] for line in (tmp_path / "frames.tsv").read_text().splitlines()[1:]]
    assert len(predictions) == 50
    assert predictions.count("virus") > 45

    trained = training.train([(path, path.split("/")[-1][:5]) for path in files], seed=1, epochs=8).classifier
    loaded = classifier.load(tmp_path / "c.safetensors")
    assert loaded.models == trained.models
    for name, array in trained.state.items():
        np.testing.assert_array_equal(loaded.state[name], array)


def test_blocks_do_not_change_the_classification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    learning = Network(FEATURE_WIDTH)
    learning(torch.randn(64, FEATURE_WIDTH) * 3 + 1)  # so that bn1 has statistics
    network = learning.classifier({}, "random")
    features = np.random.default_rng(0).normal(size=(100, FEATURE_WIDTH)).astype(np.float32)
    with Reader(write_sample(tmp_path / "s.h5", features, list(range(100)))) as reader:
        ((_, whole),) = classifier.classify(reader, network)
        blocks = reader.blocks
        monkeypatch.setattr(reader, "blocks", lambda models: blocks(models, block_rows=7))
        parts = list(classifier.classify(reader, network))
    assert len(parts) == 15
    np.testing.assert_allclose(np.concatenate([part for _, part in parts]), whole, atol=1e-6)
    expected = learning.predict(torch.from_numpy(features)).softmax(1)
    np.testing.assert_allclose(whole, expected.numpy(), atol=1e-6)


def test_area_under_the_curve_equals_scikit_learns() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(1)
    for decimals in (0, 1, 2, 8):
        label = random.integers(0, 2, 500)
        score = np.round(random.random(500) * 0.7 + label * 0.3, decimals).astype(np.float32)
        assert training.area_under_curve(score, label) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert training.area_under_curve(np.array([0.1, 0.2, 0.2, 0.9]), np.array([0, 0, 1, 1])) == 0.875


def test_metrics_on_frames_and_contigs_equal_a_recomputation(tmp_path: Path) -> None:
    """Two chunks a contig, so that a contig's score is the mean of its chunks and not of its frames."""
    from sklearn.metrics import confusion_matrix, roc_auc_score

    random = np.random.default_rng(4)
    files: list[tuple[str | Path, str]] = []
    for label, shift in (("virus", 0.05), ("other", -0.05)):
        records, chunks = np.repeat(np.arange(30), 4), np.tile([1, 1, 1, 2], 30)
        features = (random.normal(size=(120, FEATURE_WIDTH)) + shift).astype(np.float32)
        files.append((write_sample(tmp_path / f"{label}.h5", features, records.tolist(), chunks.tolist()), label))
    trained = training.train(files, seed=3, epochs=2)
    data = training._load_frames(files, 240, FEATURE_WIDTH)
    held = np.isin(data.contig, training._held_out_contigs(data, 3))
    network = trained.classifier
    probabilities = network.predict(data.features[held])
    actual = data.label[held]
    assert trained.metrics["auc"] == pytest.approx(roc_auc_score(actual, probabilities[:, 1]), abs=1e-12)
    found = [list(trained.metrics["confusion"][name].values()) for name in ("other", "virus")]
    assert found == confusion_matrix(actual, probabilities.argmax(1)).tolist()
    correct = []
    for first in range(0, len(actual), 4):
        scores = [
            part.max(0)[1] / part.max(0).sum()
            for part in (probabilities[first : first + 3], probabilities[first + 3 : first + 4])
        ]
        correct.append((np.mean(scores) >= 0.5) == actual[first])
    assert trained.metrics["contig_accuracy"] == np.mean(correct)
    assert 0 < trained.metrics["contig_accuracy"] < 1
    assert 0 < trained.metrics["accuracy"] < 1


def test_rare_classes_are_weighed_alike(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    files: list[tuple[str | Path, str]] = []
    for label, contigs, shift in (("virus", 10, 0.6), ("other", 300, -0.6)):
        features = (random.normal(size=(contigs * 2, FEATURE_WIDTH)) + shift).astype(np.float32)
        files.append(
            (write_sample(tmp_path / f"{label}.h5", features, np.repeat(np.arange(contigs), 2).tolist()), label)
        )
    metrics = training.train(files, seed=1, epochs=5).metrics
    assert metrics["held_out"]["virus"] == {"contigs": 2, "frames": 4}
    assert metrics["confusion"]["virus"]["virus"] >= 3


def test_training_needs_both_classes_and_contigs_to_hold_out(tmp_path: Path) -> None:
    features = np.zeros((4, FEATURE_WIDTH), np.float32)
    virus = write_sample(tmp_path / "virus.h5", features, [0, 0, 1, 1])
    single = write_sample(tmp_path / "single.h5", features, [1, 1, 1, 1])
    empty = write_sample(tmp_path / "empty.h5", features[:0], [])
    cases: list[tuple[list[tuple[str | Path, str]], str]] = [
        ([], "needs the labels other and virus, found none"),
        ([(virus, "virus")], "needs the labels other and virus, found virus"),
        ([(virus, "virus"), (single, "phage")], "found phage, virus"),
        ([(virus, "virus"), (single, "other")], "label other has 1 contigs"),
        ([(virus, "virus"), (empty, "other")], "label other has 0 contigs"),
        ([(empty, "virus"), (write_sample(tmp_path / "empty2.h5", features[:0], []), "other")], "has 0 contigs"),
        ([(virus, "virus"), (virus, "other")], "sample 'virus' is given twice"),
    ]
    for files, problem in cases:
        with pytest.raises(ConfigError, match=problem):
            training.train(files, seed=1)


def test_embeddings_of_other_models_are_refused(tmp_path: Path) -> None:
    files = labelled(tmp_path, shift=1.0, contigs=5)
    network = training.train(files, seed=1, epochs=1).classifier
    wide = np.zeros((2, FEATURE_WIDTH + 3), np.float32)
    wider = write_sample(tmp_path / "wide.h5", wide, [0, 1], esm2_width=ESM2_WIDTH + 3)
    synthetic = write_sample(tmp_path / "syn.h5", wide[:, :-3], [0, 1], source="synthetic:x", synthetic=True)
    cases = [
        (wider, WeightsError, r"takes 16 values, but .*wide.h5 gives 19 \(dnabert_s 6 \+ esm2 13\)"),
        (synthetic, WeightsError, "trained with dnabert_s of facebook/x, but .*syn.h5 was made with synthetic:x"),
    ]
    for path, kind, problem in cases:
        with Reader(path) as reader, pytest.raises(kind, match=problem):
            next(classifier.classify(reader, network))
        with pytest.raises(WeightsError, match="different models"):
            training.train([*files, (path, "virus")], seed=1)
    proteins = tmp_path / "proteins.h5"
    with Writer.create(proteins, "p", "proteins"):
        pass
    with Writer.reopen(proteins, {}):
        pass
    with Reader(proteins) as reader, pytest.raises(InputError, match="its kind is proteins"):
        next(classifier.classify(reader, network))
    partial = tmp_path / "partial.h5"
    with Writer.create(partial, "p", "contigs", 500):
        pass
    with Writer.reopen(partial, {}):
        pass
    with Reader(partial) as reader, pytest.raises(InputError, match="holds no embeddings of dnabert_s"):
        next(classifier.classify(reader, network))


def test_synthetic_models_are_named_in_the_summary(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(20, FEATURE_WIDTH)).astype(np.float32)
    files = [
        (write_sample(tmp_path / f"{label}.h5", features, list(range(20)), source="synthetic:x", synthetic=True), label)
        for label in ("virus", "other")
    ]
    trained = training.train(files, seed=1, epochs=1)
    assert trained.metrics["synthetic"] is True
    assert "synthetic weights" in trained.summary()


def test_a_sample_without_frames_is_classified_as_nothing(tmp_path: Path) -> None:
    network = Network(FEATURE_WIDTH).classifier({}, "random")
    with Reader(write_sample(tmp_path / "s.h5", np.zeros((0, FEATURE_WIDTH), np.float32), [])) as reader:
        assert list(classifier.classify(reader, network)) == []


def test_files_that_hold_no_classifier_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "model.onnx").write_text("hello")
    network = Network(FEATURE_WIDTH).classifier({}, "random")
    header = {
        classifier.HEADER_KEY: json.dumps(
            {"format_version": 1, "classes": ["other", "virus"], "models": {}, "source": ""}
        )
    }
    state = {name: torch.from_numpy(array) for name, array in network.state.items()}
    save_file({**state, "extra.weight": torch.zeros(1)}, tmp_path / "extra.safetensors", metadata=header)
    save_file({name: state[name] for name in list(state)[1:]}, tmp_path / "missing.safetensors", metadata=header)
    save_file({**state, "bn1.bias": torch.zeros(3)}, tmp_path / "shape.safetensors", metadata=header)
    problems = {
        "none.safetensors": "no such file",
        "other.safetensors": "not a classifier of this version",
        "text.safetensors": "not a readable safetensors file",
        "model.onnx": r"ends in \.safetensors; convert",
        "extra.safetensors": "extra.weight",
        "missing.safetensors": "hidden_layer.weight",
        "shape.safetensors": r"bn1\.bias.*3",
    }
    for name, problem in problems.items():
        with pytest.raises(HoldfastError, match=problem) as refusal:
            classifier.load(tmp_path / name)
        assert str(tmp_path / name) in str(refusal.value)
