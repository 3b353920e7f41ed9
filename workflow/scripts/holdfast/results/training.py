"""Training: a new classifier from the embeddings of labelled samples, and how well it does on what it has not seen.

All labelled frames are held at once, in float32; a fifth of the contigs is held out.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, WeightsError
from ..files import atomic_text
from .calibration import Calibration, calibrate
from .classifier import (
    BATCH_NORM_EPSILON,
    CLASSES,
    Classifier,
    FeatureModel,
    describe_file,
    features,
    matrices_of,
)
from .embeddings import BLOCK_ROWS, EmbeddingsFile
from .presets import PRESETS
from .votes import score_contigs

HIDDEN_WIDTH = 512
DROPOUT = 0.5
EPOCHS = 30
BATCH_FRAMES = 64
LEARNING_RATE = 1e-3
HELD_OUT_SHARE = 0.2
SEVERAL_SAMPLES = 3
"""Samples of each label from which whole ones are held out; of two, training would lose half."""


class Network(torch.nn.Module):
    """The classifier while it learns; its arrays have the names of :attr:`.Classifier.state`."""

    def __init__(self, feature_width: int, hidden_width: int = HIDDEN_WIDTH) -> None:
        super().__init__()
        self.hidden_layer = torch.nn.Linear(feature_width, hidden_width)
        self.bn1 = torch.nn.BatchNorm1d(hidden_width, BATCH_NORM_EPSILON)
        self.dropout = torch.nn.Dropout(DROPOUT)
        self.output_layer = torch.nn.Linear(hidden_width, len(CLASSES))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [k, 2], of features, float32 [k, feature_width]."""
        hidden = torch.relu(self.bn1(self.hidden_layer(features)))
        return self.output_layer(self.dropout(hidden))

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Logits without dropout and with the learned statistics, in blocks; float32 [k, 2]."""
        self.eval()
        with torch.inference_mode():
            return torch.cat([self(block) for block in features.split(BLOCK_ROWS)])

    def classifier(self, models: Mapping[str, FeatureModel], source: str) -> Classifier:
        """What has been learned, as a classifier; see there."""
        return Classifier({name: tensor.numpy().copy() for name, tensor in self.state_dict().items()}, models, source)


@dataclass(frozen=True)
class Training:
    """What training gave.

    Attributes:
        classifier: The network.
        metrics: Figures on the held-out contigs, and what was trained on.
        history: For each epoch ``epoch``, ``loss``, ``held_out_loss``, ``held_out_accuracy``.
        score: Of the held-out contigs, float64 [n].
        label: Of the same, int64 [n], 1 for a virus, 0 otherwise.
    """

    classifier: Classifier
    metrics: dict[str, Any]
    history: list[dict[str, float]]
    score: np.ndarray
    label: np.ndarray

    def summary(self) -> str:
        """One line for people."""
        figures = "held-out accuracy {accuracy:.3f} (frames), {contig_accuracy:.3f} (contigs), AUC {auc:.3f}"
        note = "; the models have synthetic weights, so this says nothing about biology"
        return figures.format_map(self.metrics) + (note if self.metrics["synthetic"] else "")

    def write(self, directory: str | Path) -> Calibration:
        """Write ``classifier.safetensors`` and, in text, what is known of it.

        ``calibration.json`` is made of the held-out contigs, see :mod:`.calibration`. ``metrics.json`` has the metrics,
        ``history.tsv`` a row for each epoch, ``confusion.tsv`` a row for each label: its held-out frames by their
        prediction.

        Returns:
            What ``calibration.json`` holds.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "classifier.safetensors"
        self.classifier.save(path)
        split, margin = self.metrics["split"], self.metrics["margin"]
        calibration = calibrate(self.score, self.label, split, margin, path)
        calibration.write(directory / "calibration.json")
        with atomic_text(directory / "metrics.json") as file:
            file.write(json.dumps(self.metrics, indent=2, ensure_ascii=False) + "\n")
        with atomic_text(directory / "history.tsv") as table:
            table.write("\t".join(self.history[0]) + "\n")
            table.writelines("\t".join(f"{value:.9g}" for value in epoch.values()) + "\n" for epoch in self.history)
        with atomic_text(directory / "confusion.tsv") as table:
            table.write("\t".join(("label", *CLASSES)) + "\n")
            for label, predictions in self.metrics["confusion"].items():
                table.write("\t".join((label, *(str(predictions[name]) for name in CLASSES))) + "\n")
        return calibration


@dataclass(frozen=True)
class _Frames:
    """All labelled frames.

    float32 [N, F], then int64 [N] each: label, number of the file, contig over all files, chunk in its contig.
    """

    features: np.ndarray
    label: np.ndarray
    file: np.ndarray
    contig: np.ndarray
    chunk: np.ndarray


def train(
    files: Sequence[tuple[str | Path, str]],
    seed: int,
    epochs: int = EPOCHS,
    margin: float = PRESETS["relaxed"].margin,
    method: Mapping[str, str | None] | None = None,
) -> Training:
    """Train the classifier on labelled samples; on one kind of CPU, equal arguments give an equal network.

    A fifth is held out of each class and plays no part in training: of its samples, where each class has at least
    :data:`SEVERAL_SAMPLES`, otherwise of its contigs, with all their frames. The number of epochs is fixed, so that
    nothing is chosen by looking at them either. The loss weighs both classes alike, however many frames they have.
    Adam, batches of 64 frames; all of this is our choice, not VirNucPro's.

    Args:
        files: Results file and label (``virus`` or ``non-viral``) of each sample.
        seed: For the split, the initial weights, the order and the dropout.
        epochs: Passes over the data.
        margin: From which a chunk is confident, see :mod:`.votes`; for the scores of held-out contigs.
        method: Names of the models by role; None where there is only one.

    Raises:
        ConfigError: one class only, too few contigs of one, or a sample that is given twice.
        InputError: a file that cannot be read, or holds other embeddings than these need.
        WeightsError: samples of different models.
    """
    models, rows = _check_files(files, method or {})
    frames = _load_frames(files, rows, models)
    split, contigs = _hold_out(frames, seed)
    held_out = np.isin(frames.contig, contigs)
    with _reproducible(seed):
        network = Network(frames.features.shape[1])
        history = _fit(network, frames, held_out, epochs)
    classifier = network.classifier(models, f"trained on {len(files)} samples, seed {seed}")
    score, label = _score_contigs(classifier, frames, held_out, margin)
    metrics = {
        **_measure(classifier, frames, held_out),
        "contig_accuracy": float(np.mean((score >= 0.5) == label)),
        "train": _count(frames, ~held_out),
        "held_out": _count(frames, held_out),
        "seed": seed,
        "epochs": epochs,
        "margin": margin,
        "split": split,
        "models": {role: asdict(model) for role, model in models.items()},
        "synthetic": any(model.synthetic for model in models.values()),
    }
    return Training(classifier, metrics, history, score, label)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed torch and leave it one thread, whose sums do not depend on the machine's cores; restore both afterwards.

    One thread costs little here: a batch is small, and two threads on two busy cores took six times as long as one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _check_files(
    files: Sequence[tuple[str | Path, str]], method: Mapping[str, str | None]
) -> tuple[dict[str, FeatureModel], int]:
    """Return the models that all files share, and their rows together."""
    labels = {label for _, label in files}
    if labels != set(CLASSES):
        found = ", ".join(sorted(labels)) or "none"
        wanted = " and ".join(reversed(CLASSES))
        raise ConfigError(f"samples: training needs the labels {wanted}, found {found}; label more samples")
    described: dict[str, dict[str, FeatureModel]] = {}
    rows = 0
    for path, _ in files:
        with EmbeddingsFile(path) as reader:
            if reader.sample in described:
                raise ConfigError(f"sample '{reader.sample}' is given twice for training; name each sample once")
            described[reader.sample] = describe_file(reader, method)
            rows += reader.row_count
    (first, models), *others = described.items()
    for sample, other_models in others:
        if other_models != models:
            raise WeightsError(f"samples '{first}' and '{sample}' were made with different models; compute them again")
    return models, rows


def _load_frames(files: Sequence[tuple[str | Path, str]], rows: int, models: Mapping[str, FeatureModel]) -> _Frames:
    """Read all files, block by block, into arrays that are made once."""
    feature_width = sum(model.width for model in models.values())
    columns = (np.empty(rows, np.int64) for _ in range(4))
    frames = _Frames(np.empty((rows, feature_width), np.float32), *columns)
    start = first_contig = 0
    for number, (path, label) in enumerate(files):
        with EmbeddingsFile(path) as reader:
            for block in reader.blocks(matrices_of(models)):
                place = slice(start, start + len(block.ids))
                frames.features[place] = features(block)
                frames.label[place] = CLASSES.index(label)
                frames.file[place] = number
                frames.contig[place] = first_contig + block.record
                frames.chunk[place] = block.chunk
                start = place.stop
            first_contig += reader.record_count
    return frames


def _hold_out(frames: _Frames, seed: int) -> tuple[str, np.ndarray]:
    """What is split, ``samples`` or ``contigs``, and the contigs that are held out, int64 [n]."""
    generator = np.random.default_rng(seed)
    samples = [np.unique(frames.file[frames.label == code]) for code in range(len(CLASSES))]
    if min(map(len, samples)) >= SEVERAL_SAMPLES:
        chosen = np.concatenate([_choose(generator, files) for files in samples])
        return "samples", np.unique(frames.contig[np.isin(frames.file, chosen)])
    held_out = []
    for code, label in enumerate(CLASSES):
        contigs = np.unique(frames.contig[frames.label == code])
        if len(contigs) < 2:
            raise ConfigError(
                f"samples: label {label} has {len(contigs)} contigs with a stop-free frame; "
                "training needs at least 2, one to learn from and one to hold out; label more samples"
            )
        held_out.append(_choose(generator, contigs))
    return "contigs", np.concatenate(held_out)


def _choose(generator: np.random.Generator, numbers: np.ndarray) -> np.ndarray:
    """A share of some numbers, by chance, at least one."""
    return generator.permutation(numbers)[: max(1, round(HELD_OUT_SHARE * len(numbers)))]


def _fit(network: Network, frames: _Frames, held_out: np.ndarray, epochs: int) -> list[dict[str, float]]:
    features, labels = torch.from_numpy(frames.features), torch.from_numpy(frames.label)
    chosen, held = torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))
    held_features, held_labels = features[held], labels[held]
    counts = labels[chosen].bincount(minlength=len(CLASSES))
    loss_function = torch.nn.CrossEntropyLoss(weight=len(chosen) / (len(CLASSES) * counts))
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    history = []
    for epoch in range(1, epochs + 1):
        network.train()
        batches = chosen[torch.randperm(len(chosen))].tensor_split(math.ceil(len(chosen) / BATCH_FRAMES))
        total_loss = 0.0
        for batch in batches:
            loss = loss_function(network(features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(batch)
        logits = network.predict(held_features)
        history.append(
            {
                "epoch": epoch,
                "loss": total_loss / len(chosen),
                "held_out_loss": loss_function(logits, held_labels).item(),
                "held_out_accuracy": (logits.argmax(dim=1) == held_labels).double().mean().item(),
            }
        )
    return history


def _score_contigs(
    classifier: Classifier, frames: _Frames, held_out: np.ndarray, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the held-out contigs, float64 [n], and their labels, int64 [n]."""
    probabilities = classifier.predict(frames.features[held_out])
    contig, label = frames.contig[held_out], frames.label[held_out]
    _, score = score_contigs(contig, frames.chunk[held_out], probabilities, margin)
    return score, label[np.unique(contig, return_index=True)[1]]


def _measure(classifier: Classifier, frames: _Frames, held_out: np.ndarray) -> dict[str, Any]:
    """Accuracy, AUC and confusion table of held-out frames."""
    probabilities = classifier.predict(frames.features[held_out])
    label = frames.label[held_out]
    predicted = (probabilities[:, 1] > probabilities[:, 0]).astype(int)
    confusion = np.bincount(label * len(CLASSES) + predicted, minlength=len(CLASSES) ** 2).tolist()
    return {
        "accuracy": float(np.mean(predicted == label)),
        "auc": area_under_curve(probabilities[:, 1], label),
        "confusion": {
            actual: dict(zip(CLASSES, confusion[row * len(CLASSES) :], strict=False))
            for row, actual in enumerate(CLASSES)
        },
    }


def area_under_curve(score: np.ndarray, label: np.ndarray) -> float:
    """Area under the ROC curve, by ranks: the chance that a virus scores above what is none, ties counting half.

    Args:
        score: float [n].
        label: int [n], 1 for a virus, 0 otherwise; both occur.
    """
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    viruses = int(np.sum(label == 1))
    non_viral = len(label) - viruses
    return float((rank[label == 1].sum() - viruses * (viruses + 1) / 2) / (viruses * non_viral))


def _count(frames: _Frames, chosen: np.ndarray) -> dict[str, dict[str, int]]:
    """Contigs and frames of each class."""
    return {
        label: {
            "contigs": len(np.unique(frames.contig[chosen & (frames.label == code)])),
            "frames": int(np.sum(chosen & (frames.label == code))),
        }
        for code, label in enumerate(CLASSES)
    }
