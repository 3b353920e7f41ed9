"""The classifier: VirNucPro's network over the two embeddings of a frame; read, trained, applied and saved.

A frame's feature is its DNABERT-S embedding followed by its ESM-2 embedding; their widths come from the models
that made them. The network gives the probabilities of ``other`` and ``virus``, in that order. Features pass
through in blocks when frames are classified; training holds those of all labelled samples, in float32.

Networks come from two kinds of files: our safetensors, whose header names the models the features were made
with, and VirNucPro's ``.pth``, a whole pickled module, which :mod:`.pth` takes apart.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import documents, pth
from .calls import THRESHOLD, require_contigs, score_contigs, vote
from .documents import DocumentError
from .embeddings import BLOCK_ROWS, Reader, Rows
from .errors import ConfigError, InputError, WeightsError
from .files import atomic_text, temporary_path

CLASSES = ("other", "virus")
FEATURE_MODELS = ("dnabert_s", "esm2")
HIDDEN_WIDTH = 512
DROPOUT = 0.5
FORMAT_VERSION = 1
HEADER_KEY = "holdfast_classifier"

EPOCHS = 30
BATCH_FRAMES = 64
LEARNING_RATE = 1e-3
HELD_OUT_SHARE = 0.2


class Classifier(torch.nn.Module):
    """VirNucPro's network: Linear, BatchNorm1d, ReLU, Dropout, Linear.

    Attributes:
        feature_width: Columns of a feature.
        models: For each of :data:`FEATURE_MODELS` the ``width``, ``source`` and ``synthetic`` it was trained with;
            empty when it came from VirNucPro's file, which does not say.
        source: Where it came from, in words.
    """

    def __init__(
        self, feature_width: int, models: Mapping[str, Mapping[str, Any]], source: str, hidden_width: int = HIDDEN_WIDTH
    ) -> None:
        super().__init__()
        self.feature_width = feature_width
        self.models = {name: dict(model) for name, model in models.items()}
        self.source = source
        self.hidden_layer = torch.nn.Linear(feature_width, hidden_width)
        self.bn1 = torch.nn.BatchNorm1d(hidden_width)
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

    def require_fit(self, reader: Reader) -> None:
        """Refuse embeddings of other models than those the network knows.

        Raises:
            InputError: a sample of another kind than ``contigs``, or a matrix that is missing.
            WeightsError: other widths, or synthetic weights on one side and others on the other.
        """
        found = describe_models(reader)
        width = sum(model["width"] for model in found.values())
        if width != self.feature_width:
            widths = " + ".join(f"{name} {model['width']}" for name, model in found.items())
            raise WeightsError(
                f"the classifier ({self.source}) takes {self.feature_width} values, but {reader.path} gives {width} "
                f"({widths}); use the models it was trained with, or train it again"
            )
        for name, model in self.models.items():
            synthetic = model["synthetic"] or found[name]["synthetic"]
            if model["width"] != found[name]["width"] or (synthetic and model["source"] != found[name]["source"]):
                raise WeightsError(
                    f"the classifier ({self.source}) was trained with {name} of {model['source']}, but {reader.path} "
                    f"was made with {found[name]['source']}; use the same models, or train it again"
                )

    def save(self, path: str | Path) -> None:
        """Write as safetensors; the same network gives the same bytes."""
        header = {"format_version": FORMAT_VERSION, "classes": CLASSES, "models": self.models, "source": self.source}
        with temporary_path(path) as temporary:
            save_file(self.state_dict(), temporary, metadata={HEADER_KEY: json.dumps(header)})


def describe_models(reader: Reader) -> dict[str, dict[str, Any]]:
    """Return ``width``, ``source`` and ``synthetic`` of each of :data:`FEATURE_MODELS` in a results file.

    Raises:
        InputError: a sample of another kind than ``contigs``, or a matrix that is missing.
    """
    require_contigs(reader)
    for name in FEATURE_MODELS:
        if name not in reader.models:
            raise InputError(f"holds no embeddings of {name}; compute it again", reader.path)
    return {
        name: {key: reader.models[name][key] for key in ("width", "source", "synthetic")} for name in FEATURE_MODELS
    }


def classify(reader: Reader, classifier: Classifier) -> Iterator[tuple[Rows, np.ndarray]]:
    """Classify the frames of a sample, block by block.

    Yields:
        Rows and their probabilities, float32 [k, 2]: other, virus.

    Raises:
        InputError: see :meth:`Classifier.require_fit`; so is the next.
        WeightsError: the classifier does not fit the embeddings.
    """
    classifier.require_fit(reader)
    for rows in reader.blocks(FEATURE_MODELS):
        yield rows, classifier.predict(torch.from_numpy(_features(rows))).softmax(dim=1).numpy()


def _features(rows: Rows) -> np.ndarray:
    return np.concatenate([rows.matrices[model].astype(np.float32) for model in FEATURE_MODELS], axis=1)


def load(path: str | Path) -> Classifier:
    """Load a classifier, ours (``.safetensors``) or VirNucPro's (``.pth``); nothing in the file is executed.

    Raises:
        WeightsError: no such file, another kind of file, or one that does not hold this network.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; 'classifier' names a .safetensors or VirNucPro's .pth")
    if path.suffix == ".safetensors":
        models, source, state = _read_safetensors(path)
    elif path.suffix == ".pth":
        digest, state = pth.read(path)
        models, source = {}, f"{path.name}, sha256 {digest}"
    else:
        raise WeightsError(f"{path}: a classifier ends in .safetensors, or .pth for VirNucPro's own")
    try:
        hidden_width, feature_width = state["hidden_layer.weight"].shape
        if min(hidden_width, feature_width) < 1:
            raise ValueError("a layer without a neuron")
        classifier = Classifier(feature_width, models, source, hidden_width)
        classifier.load_state_dict(state)
    except (KeyError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path}: does not hold VirNucPro's network: {' '.join(str(error).split())}") from None
    if not all(tensor.isfinite().all() for tensor in classifier.state_dict().values()):
        raise WeightsError(f"{path}: holds values that are not finite; train it, or download VirNucPro's, again")
    return classifier


@dataclass(frozen=True)
class _TrainedWith:
    width: int
    source: str
    synthetic: bool


@dataclass(frozen=True)
class _Header:
    """What our safetensors say beside the tensors."""

    format_version: int
    classes: list[str]
    models: dict[str, _TrainedWith]
    source: str


def _read_safetensors(path: Path) -> tuple[dict[str, dict[str, Any]], str, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            content = documents.parse_json((file.metadata() or {}).get(HEADER_KEY, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, DocumentError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from None
    again = "train it, or convert VirNucPro's .pth, again"
    try:
        header = documents.fill(_Header, content)
    except DocumentError as error:
        raise WeightsError(f"{path}: not a classifier of this version ({error}); {again}") from None
    if (
        header.format_version != FORMAT_VERSION
        or header.classes != list(CLASSES)
        or set(header.models) not in (set(), set(FEATURE_MODELS))
    ):
        raise WeightsError(f"{path}: not a classifier of this version; {again}")
    return {name: asdict(model) for name, model in header.models.items()}, header.source, state


@dataclass(frozen=True)
class Training:
    """What training gave.

    Attributes:
        classifier: The network.
        metrics: Figures on the held-out contigs, and what was trained on.
        history: For each epoch ``epoch``, ``loss``, ``held_out_loss``, ``held_out_accuracy``.
    """

    classifier: Classifier
    metrics: dict[str, Any]
    history: list[dict[str, float]]

    def summary(self) -> str:
        """One line for people."""
        figures = "held-out accuracy {accuracy:.3f} (frames), {contig_accuracy:.3f} (contigs), AUC {auc:.3f}"
        note = "; the models have synthetic weights, so this says nothing about biology"
        return figures.format_map(self.metrics) + (note if self.metrics["synthetic"] else "")

    def write_metrics(self, path: str | Path) -> None:
        """Write the metrics as JSON."""
        with atomic_text(path) as file:
            file.write(json.dumps(self.metrics, indent=2, ensure_ascii=False) + "\n")

    def write_history(self, path: str | Path) -> None:
        """Write the history as TSV."""
        with atomic_text(path) as table:
            table.write("\t".join(self.history[0]) + "\n")
            table.writelines("\t".join(f"{value:.9g}" for value in epoch.values()) + "\n" for epoch in self.history)

    def write_confusion(self, path: str | Path) -> None:
        """Write the confusion table as TSV: a row for each label, held-out frames by their prediction."""
        with atomic_text(path) as table:
            table.write("\t".join(("label", *CLASSES)) + "\n")
            for label in CLASSES:
                counts = (str(self.metrics["confusion"][label][prediction]) for prediction in CLASSES)
                table.write("\t".join((label, *counts)) + "\n")


@dataclass(frozen=True)
class _Frames:
    """All labelled frames: float32 [N, F], then int64 [N] each: label, contig over all files, chunk in its contig."""

    features: np.ndarray
    label: np.ndarray
    contig: np.ndarray
    chunk: np.ndarray


def train(
    files: Sequence[tuple[str | Path, str]], seed: int, epochs: int = EPOCHS, threshold: float = THRESHOLD
) -> Training:
    """Train the classifier on labelled samples; on one kind of CPU, equal arguments give an equal network.

    A fifth of the contigs of each class, with all their frames, is held out, and plays no part in training. The
    number of epochs is fixed, so that nothing is chosen by looking at them either. The loss weighs both classes
    alike, however many frames they have. Adam, batches of 64 frames; all of this is our choice, not VirNucPro's.

    Args:
        files: Results file and label (``other`` or ``virus``) of each sample.
        seed: For the split, the initial weights, the order and the dropout.
        epochs: Passes over the data.
        threshold: From which mean score on a contig counts as a virus, for ``contig_accuracy``.

    Raises:
        ConfigError: one class only, too few contigs of one, or a sample that is given twice.
        InputError: a file that cannot be read, or holds other embeddings than these need.
        WeightsError: samples of different models.
    """
    models, rows = _check_files(files)
    frames = _load_frames(files, rows, sum(model["width"] for model in models.values()))
    held_out = np.isin(frames.contig, _held_out_contigs(frames, seed))
    with _reproducible(seed):
        classifier = Classifier(frames.features.shape[1], models, f"trained on {len(files)} samples, seed {seed}")
        history = _fit(classifier, frames, held_out, epochs)
        measured = _measure(classifier, frames, held_out, threshold)
    metrics = {
        **measured,
        "train": _count(frames, ~held_out),
        "held_out": _count(frames, held_out),
        "seed": seed,
        "epochs": epochs,
        "threshold": threshold,
        "models": models,
        "synthetic": any(model["synthetic"] for model in models.values()),
    }
    return Training(classifier, metrics, history)


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


def _check_files(files: Sequence[tuple[str | Path, str]]) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the models that all files share, and their rows together."""
    labels = {label for _, label in files}
    if labels != set(CLASSES):
        found = ", ".join(sorted(labels)) or "none"
        raise ConfigError(
            f"samples: training needs the labels {' and '.join(CLASSES)}, found {found}; label more samples"
        )
    described: dict[str, dict[str, dict[str, Any]]] = {}
    rows = 0
    for path, _ in files:
        with Reader(path) as reader:
            if reader.sample in described:
                raise ConfigError(f"sample '{reader.sample}' is given twice for training; name each sample once")
            described[reader.sample] = describe_models(reader)
            rows += reader.row_count
    (first, models), *others = described.items()
    for sample, other_models in others:
        if other_models != models:
            raise WeightsError(f"samples '{first}' and '{sample}' were made with different models; compute them again")
    return models, rows


def _load_frames(files: Sequence[tuple[str | Path, str]], rows: int, feature_width: int) -> _Frames:
    """Read all files, block by block, into arrays that are made once."""
    columns = (np.empty(rows, np.int64) for _ in range(3))
    frames = _Frames(np.empty((rows, feature_width), np.float32), *columns)
    start = first_contig = 0
    for path, label in files:
        with Reader(path) as reader:
            for block in reader.blocks(FEATURE_MODELS):
                place = slice(start, start + len(block.ids))
                frames.features[place] = _features(block)
                frames.label[place] = CLASSES.index(label)
                frames.contig[place] = first_contig + block.record
                frames.chunk[place] = block.chunk
                start = place.stop
            first_contig += reader.record_count
    return frames


def _held_out_contigs(frames: _Frames, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    held_out = []
    for code, label in enumerate(CLASSES):
        contigs = generator.permutation(np.unique(frames.contig[frames.label == code]))
        if len(contigs) < 2:
            raise ConfigError(
                f"samples: label {label} has {len(contigs)} contigs with an open frame; "
                "training needs at least 2, one to learn from and one to hold out; label more samples"
            )
        held_out.append(contigs[: max(1, round(HELD_OUT_SHARE * len(contigs)))])
    return np.concatenate(held_out)


def _fit(classifier: Classifier, frames: _Frames, held_out: np.ndarray, epochs: int) -> list[dict[str, float]]:
    features, labels = torch.from_numpy(frames.features), torch.from_numpy(frames.label)
    chosen, held = torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))
    held_features, held_labels = features[held], labels[held]
    counts = labels[chosen].bincount(minlength=len(CLASSES))
    loss_function = torch.nn.CrossEntropyLoss(weight=len(chosen) / (len(CLASSES) * counts))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=LEARNING_RATE)
    history = []
    for epoch in range(1, epochs + 1):
        classifier.train()
        batches = chosen[torch.randperm(len(chosen))].tensor_split(math.ceil(len(chosen) / BATCH_FRAMES))
        total_loss = 0.0
        for batch in batches:
            loss = loss_function(classifier(features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(batch)
        logits = classifier.predict(held_features)
        history.append(
            {
                "epoch": epoch,
                "loss": total_loss / len(chosen),
                "held_out_loss": loss_function(logits, held_labels).item(),
                "held_out_accuracy": (logits.argmax(dim=1) == held_labels).double().mean().item(),
            }
        )
    return history


def _measure(classifier: Classifier, frames: _Frames, held_out: np.ndarray, threshold: float) -> dict[str, Any]:
    """Accuracy, AUC and confusion table of held-out frames, and accuracy of their contigs."""
    probabilities = classifier.predict(torch.from_numpy(frames.features[held_out])).softmax(dim=1).numpy()
    label, contig, chunk = frames.label[held_out], frames.contig[held_out], frames.chunk[held_out]
    predicted = (probabilities[:, 1] > probabilities[:, 0]).astype(int)
    confusion = np.bincount(label * len(CLASSES) + predicted, minlength=len(CLASSES) ** 2).tolist()
    (chunk_contig, _), chunk_index = np.unique(np.stack([contig, chunk]), axis=1, return_inverse=True)
    contigs, first_row = np.unique(contig, return_index=True)
    votes = vote(chunk_index, len(chunk_contig), probabilities)
    _, score = score_contigs(np.searchsorted(contigs, chunk_contig), len(contigs), votes)
    return {
        "accuracy": float(np.mean(predicted == label)),
        "auc": area_under_curve(probabilities[:, 1], label),
        "confusion": {
            actual: dict(zip(CLASSES, confusion[row * len(CLASSES) :], strict=False))
            for row, actual in enumerate(CLASSES)
        },
        "contig_accuracy": float(np.mean((score >= threshold) == label[first_row])),
    }


def area_under_curve(score: np.ndarray, label: np.ndarray) -> float:
    """Area under the ROC curve, by ranks: the chance that a virus scores above another, ties counting half.

    Args:
        score: float [n].
        label: int [n], 1 for a virus, 0 otherwise; both occur.
    """
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    viruses = int(np.sum(label == 1))
    others = len(label) - viruses
    return float((rank[label == 1].sum() - viruses * (viruses + 1) / 2) / (viruses * others))


def _count(frames: _Frames, chosen: np.ndarray) -> dict[str, dict[str, int]]:
    """Contigs and frames of each class."""
    return {
        label: {
            "contigs": len(np.unique(frames.contig[chosen & (frames.label == code)])),
            "frames": int(np.sum(chosen & (frames.label == code))),
        }
        for code, label in enumerate(CLASSES)
    }
