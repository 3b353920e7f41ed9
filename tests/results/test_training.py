"""Training on synthetic features: what is learned, what is held out, figures against a recomputation, refusals."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holdfast.errors import ConfigError, WeightsError
from holdfast.results.calibration import read_calibration
from holdfast.results.classifier import load_classifier
from holdfast.results.contigs import read_contigs
from holdfast.results.embeddings import EmbeddingsFile
from holdfast.results.training import _hold_out, _load_frames, area_under_curve, train
from sklearn.metrics import confusion_matrix, roc_auc_score

from tests.results.samples import ESM2_WIDTH, FEATURE_WIDTH, write_features

CALLS = '{"preset": "relaxed", "margin": 0.3}'
ENTRY = Path(__file__).parents[2] / "workflow/scripts/entry.py"
LABELS = ("non-viral", "virus")
KNOWN = {"layer": 2, "pooling": "mean", "source": "facebook/x", "weights_sha256": "cd" * 32, "synthetic": False}
FILES = ["calibration.json", "classifier.safetensors", "confusion.tsv", "history.tsv", "metrics.json"]

Labelled = list[tuple[str | Path, str]]


def labelled(directory: Path, shift: float, contigs: int = 40, frames: int = 5, **options: Any) -> Labelled:
    """Two samples a class with features whose means differ by ``shift`` in every column."""
    random = np.random.default_rng(5)
    files: Labelled = []
    for label, sign in (("virus", 1), ("non-viral", -1)):
        for number in range(2):
            features = random.normal(size=(contigs * frames, FEATURE_WIDTH)) + sign * shift / 2
            records = np.repeat(np.arange(contigs), frames).tolist()
            files.append((write_features(directory / f"{label}{number}", features, records, **options), label))
    return files


def test_a_trained_classifier_separates_what_can_be_separated(tmp_path: Path) -> None:
    trained = train(labelled(tmp_path, shift=1.5), seed=1, epochs=10)
    metrics = trained.metrics
    assert metrics["held_out"] == {label: {"contigs": 16, "frames": 80} for label in LABELS}
    assert metrics["train"] == {label: {"contigs": 64, "frames": 320} for label in LABELS}
    assert metrics["accuracy"] > 0.97
    assert metrics["auc"] > 0.995
    assert metrics["contig_accuracy"] == 1.0
    confusion = metrics["confusion"]
    assert sum(confusion[label][label] for label in LABELS) / 160 == metrics["accuracy"]
    assert [sum(confusion[label].values()) for label in LABELS] == [80, 80]
    assert [epoch["epoch"] for epoch in trained.history] == list(range(1, 11))
    assert trained.history[-1]["loss"] < trained.history[0]["loss"] / 2
    assert trained.history[-1]["held_out_accuracy"] == metrics["accuracy"]
    assert metrics["synthetic"] is False
    assert "synthetic" not in trained.summary()


def test_labels_without_information_are_not_learned(tmp_path: Path) -> None:
    metrics = train(labelled(tmp_path, shift=0.0), seed=1, epochs=5).metrics
    assert 0.35 < metrics["auc"] < 0.65


def test_frames_of_a_contig_stay_on_one_side(tmp_path: Path) -> None:
    """Features that name the contig and nothing else can be learned by heart only if a contig is on both sides."""
    random = np.random.default_rng(2)
    files: Labelled = []
    for label in LABELS:
        centres = random.normal(size=(60, FEATURE_WIDTH)) * 3
        records = np.repeat(np.arange(60), 6)
        features = centres[records] + random.normal(size=(360, FEATURE_WIDTH)) * 0.01
        files.append((write_features(tmp_path / label, features, records.tolist()), label))
    trained = train(files, seed=1, epochs=20)
    assert trained.history[-1]["loss"] < 0.3
    assert 0.2 < trained.metrics["accuracy"] < 0.8


def test_equal_seeds_give_equal_files_whatever_the_threads_and_other_seeds_do_not(tmp_path: Path) -> None:
    files = labelled(tmp_path, shift=1.0, contigs=10)
    written: list[list[bytes]] = []
    threads = torch.get_num_threads()
    for run, (seed, busy) in enumerate(((1, 1), (1, 2), (2, 1))):
        torch.manual_seed(run)
        torch.set_num_threads(busy)
        before = torch.get_rng_state()
        train(files, seed=seed, epochs=3).write(tmp_path / f"run{run}")
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == busy
        written.append([(tmp_path / f"run{run}" / name).read_bytes() for name in FILES])
    torch.set_num_threads(threads)
    assert written[0] == written[1]
    assert written[0][0] != written[2][0]


def test_the_commands_train_write_what_was_learned_and_classify(tmp_path: Path) -> None:
    fasta = tmp_path / "a.fna"
    fasta.write_text("".join(f">r{number}\n{'ACGT' * 500}\n" for number in range(11)))
    digest = hashlib.sha256(fasta.read_bytes()).hexdigest()
    files = labelled(tmp_path, shift=1.5, contigs=10, input_sha256=digest)
    virus, non_viral = ([str(path) for path, label in files if label == wanted] for wanted in ("virus", "non-viral"))
    learn = ["train", "--virus", *virus, "--non-viral", *non_viral, "--seed", "1", "--margin", "0.3"]
    apply = ["classify", virus[0], "--classifier", "trained/classifier.safetensors", "--calls", CALLS, "--output", "."]
    apply += ["--calibration", "trained/calibration.json", "--fasta", str(fasta), "--viruses", "virus.fna.gz"]
    for words in ([*learn, "--output", "trained"], apply):
        command = [sys.executable, str(ENTRY), *words]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert result.stderr == ""
        assert result.stdout.startswith("held-out accuracy " if words[0] == "train" else "")
    written = tmp_path / "trained"
    assert sorted(path.name for path in written.iterdir()) == FILES
    metrics = json.loads((written / "metrics.json").read_text())
    assert (metrics["seed"], metrics["margin"]) == (1, 0.3)
    assert metrics["models"] == {
        "dna": {"model": "dnabert_s", "family": "mosaic_bert", "width": 6, **KNOWN},
        "protein": {"model": "esm2", "family": "esm", "width": 10, **KNOWN},
    }
    confusion = [line.split("\t") for line in (written / "confusion.tsv").read_text().splitlines()]
    assert confusion == [
        ["label", *LABELS],
        *([label, *(str(metrics["confusion"][label][name]) for name in LABELS)] for label in LABELS),
    ]
    history = (written / "history.tsv").read_text().splitlines()
    assert history[0] == "epoch\tloss\theld_out_loss\theld_out_accuracy"
    assert [line.split("\t")[0] for line in history[1:]] == [str(epoch) for epoch in range(1, 31)]
    predictions = [line.split("\t")[4] for line in (tmp_path / "frames.tsv").read_text().splitlines()[1:]]
    assert len(predictions) == 50
    assert predictions.count("virus") > 45
    assert (tmp_path / "contigs.tsv").read_text().count("\tvirus\t") == 10
    with gzip.open(tmp_path / "virus.fna.gz", "rt") as viruses:
        assert sum(line.startswith(">r") for line in viruses) == 10

    calibration = read_calibration(written / "calibration.json", written / "classifier.safetensors", 0.3)
    assert calibration is None  # 4 contigs of each label are held out
    again = ["calibrate", "--virus", *virus, "--non-viral", *non_viral, "--classifier", apply[3], "--margin", "0.3"]
    command = [sys.executable, str(ENTRY), *again, "--output", "calibration.json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("calibrated on 20 virus and 20 non-viral contigs (sigmoid), Brier score 0.0")
    calibration = read_calibration(tmp_path / "calibration.json", written / "classifier.safetensors", 0.3)
    assert calibration is not None
    subprocess.run([sys.executable, str(ENTRY), *[word.replace("trained/cal", "cal") for word in apply]], cwd=tmp_path)
    (*called, empty) = read_contigs(tmp_path / "contigs.tsv")
    assert empty.p_virus is None
    scores = np.array([call.score for call in called])
    np.testing.assert_allclose([call.p_virus for call in called], calibration.apply(scores), rtol=1e-6)
    assert all(call.fdr is not None and 0.02 < call.fdr < 0.2 for call in called)  # 40 contigs show no less than 1/42

    trained = train(files, seed=1).classifier
    loaded = load_classifier(written / "classifier.safetensors")
    assert (loaded.models, loaded.source) == (trained.models, "trained on 4 samples, seed 1")
    for name, array in trained.state.items():
        np.testing.assert_array_equal(loaded.state[name], array)


def test_area_under_the_curve_equals_scikit_learns() -> None:
    random = np.random.default_rng(1)
    for decimals in (0, 1, 2, 8):
        label = random.integers(0, 2, 500)
        score = np.round(random.random(500) * 0.7 + label * 0.3, decimals).astype(np.float32)
        assert area_under_curve(score, label) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert area_under_curve(np.array([0.1, 0.2, 0.2, 0.9]), np.array([0, 0, 1, 1])) == 0.875


def test_metrics_on_frames_and_contigs_equal_a_recomputation(tmp_path: Path) -> None:
    """Two chunks a contig, so that a contig's score is the mean of its chunks and not of its frames."""
    random = np.random.default_rng(4)
    files: Labelled = []
    for label, shift in (("virus", 0.05), ("non-viral", -0.05)):
        records, chunks = np.repeat(np.arange(30), 4), np.tile([1, 1, 1, 2], 30)
        features = random.normal(size=(120, FEATURE_WIDTH)) + shift
        files.append((write_features(tmp_path / label, features, records.tolist(), chunks.tolist()), label))
    trained = train(files, seed=3, epochs=2)
    data = _load_frames(files, 240, trained.classifier.models)
    held = np.isin(data.contig, _hold_out(data, 3)[1])
    probabilities = trained.classifier.predict(data.features[held])
    actual = data.label[held]
    assert trained.metrics["auc"] == pytest.approx(roc_auc_score(actual, probabilities[:, 1]), abs=1e-12)
    found = [list(trained.metrics["confusion"][name].values()) for name in LABELS]
    assert found == confusion_matrix(actual, probabilities.argmax(1)).tolist()
    correct = []
    for first in range(0, len(actual), 4):
        chunks_of_contig = (probabilities[first : first + 3], probabilities[first + 3 : first + 4])
        margins = [float(part.max(0)[1]) - float(part.max(0)[0]) for part in chunks_of_contig]
        weights = [min(1, abs(margin) / 0.2) for margin in margins]
        correct.append((np.average(margins, weights=weights) >= 0) == actual[first])
    assert trained.metrics["contig_accuracy"] == np.mean(correct)
    assert 0 < trained.metrics["contig_accuracy"] < 1
    assert 0 < trained.metrics["accuracy"] < 1


def test_of_several_samples_whole_ones_are_held_out(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    files: Labelled = []
    for label, samples, contigs in (("virus", 3, 4), ("non-viral", 8, 6)):
        for number in range(samples):
            features = random.normal(size=(contigs, FEATURE_WIDTH))
            files.append((write_features(tmp_path / f"{label}{number}", features, list(range(contigs))), label))
    trained = train(files, seed=2, epochs=1)
    assert trained.metrics["split"] == "samples"
    # One of 3, two of 8; a record without a frame has no part in it.
    assert {label: counts["contigs"] for label, counts in trained.metrics["held_out"].items()} == {
        "virus": 4,
        "non-viral": 12,
    }
    assert (len(trained.score), trained.label.tolist().count(1)) == (16, 4)
    data = _load_frames(files, 60, trained.classifier.models)
    held = np.isin(data.contig, _hold_out(data, 2)[1])
    assert all(len(set(held[data.file == number].tolist())) == 1 for number in range(11))
    assert train(files[:2] + files[3:], seed=2, epochs=1).metrics["split"] == "contigs"


def test_rare_classes_are_weighed_alike(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    files: Labelled = []
    for label, contigs, shift in (("virus", 10, 0.6), ("non-viral", 300, -0.6)):
        features = random.normal(size=(contigs * 2, FEATURE_WIDTH)) + shift
        files.append((write_features(tmp_path / label, features, np.repeat(np.arange(contigs), 2).tolist()), label))
    metrics = train(files, seed=1, epochs=5).metrics
    assert metrics["held_out"]["virus"] == {"contigs": 2, "frames": 4}
    assert metrics["confusion"]["virus"]["virus"] >= 3


def test_training_needs_both_classes_and_contigs_to_hold_out(tmp_path: Path) -> None:
    features = np.zeros((4, FEATURE_WIDTH))
    virus = write_features(tmp_path / "virus", features, [0, 0, 1, 1])
    single = write_features(tmp_path / "single", features, [1, 1, 1, 1])
    empty, empty_too = (write_features(tmp_path / name, features[:0], []) for name in ("empty", "empty2"))
    cases: list[tuple[Labelled, str]] = [
        ([], "needs the labels virus and non-viral, found none"),
        ([(virus, "virus")], "needs the labels virus and non-viral, found virus"),
        ([(virus, "virus"), (single, "phage")], "found phage, virus"),
        ([(virus, "virus"), (single, "non-viral")], "label non-viral has 1 contigs with a stop-free frame"),
        ([(virus, "virus"), (empty, "non-viral")], "label non-viral has 0 contigs"),
        ([(empty, "virus"), (empty_too, "non-viral")], "has 0 contigs"),
        ([(virus, "virus"), (virus, "non-viral")], "sample 'virus' is given twice"),
    ]
    for files, problem in cases:
        with pytest.raises(ConfigError, match=problem):
            train(files, seed=1)


def test_samples_of_different_models_are_refused(tmp_path: Path) -> None:
    files = labelled(tmp_path, shift=1.0, contigs=5)
    wider = write_features(tmp_path / "wide", np.zeros((2, FEATURE_WIDTH + 3)), [0, 1])
    synthetic = write_features(tmp_path / "synthetic", np.zeros((2, FEATURE_WIDTH)), [0, 1], synthetic=["esm2"])
    layer = write_features(tmp_path / "layer", np.zeros((2, FEATURE_WIDTH)), [0, 1], layer=1)
    for path in (wider, synthetic, layer):
        with pytest.raises(WeightsError, match=rf"samples 'virus0' and '{path.parent.name}' .* different models"):
            train([*files, (path, "virus")], seed=1)
    with EmbeddingsFile(wider) as reader:
        assert reader.models["esm2"]["width"] == ESM2_WIDTH + 3


def test_synthetic_models_are_named_in_the_summary(tmp_path: Path) -> None:
    trained = train(labelled(tmp_path, shift=0.0, contigs=5, synthetic=["dnabert_s", "esm2"]), seed=1, epochs=1)
    assert trained.metrics["synthetic"] is True
    assert "synthetic weights" in trained.summary()
