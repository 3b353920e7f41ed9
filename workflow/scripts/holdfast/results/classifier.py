"""The classifier: VirNucPro's network over the two embeddings of a frame; read, applied and saved.

A frame's feature is its DNABERT-S embedding followed by its ESM-2 embedding; their widths come from the models
that made them. The network gives the probabilities of ``non-viral`` and ``virus``, in that order, in float32. Features
pass through in blocks.

Networks are kept as safetensors, whose header names the models the features were made with; they come from
:mod:`.training`, or through :func:`load_published` from VirNucPro's own file. Applying one takes numpy alone: to import
torch would take longer than a small sample's work.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..documents import DocumentError, fill, parse_json
from ..errors import InputError, WeightsError
from ..files import temporary_path
from .embeddings import BLOCK_ROWS, EmbeddingsFile, Rows

CLASSES = ("non-viral", "virus")
FEATURE_MODELS = ("dnabert_s", "esm2")
BATCH_NORM_EPSILON = 1e-5  # of torch's BatchNorm1d, and so of VirNucPro's
FORMAT_VERSION = 2
HEADER_KEY = "holdfast_classifier"


class Classifier:
    """VirNucPro's network: Linear, BatchNorm1d, ReLU, Dropout, Linear; H values in between.

    Attributes:
        state: Its arrays by torch's names: ``hidden_layer.weight`` [H, feature_width], ``hidden_layer.bias`` [H],
            ``bn1.weight``, ``bn1.bias``, ``bn1.running_mean``, ``bn1.running_var`` [H], ``output_layer.weight`` [2, H],
            ``output_layer.bias`` [2], all float32, and ``bn1.num_batches_tracked`` [], int64.
        feature_width: Columns of a feature.
        models: For each of :data:`FEATURE_MODELS` the ``width``, ``source`` and ``synthetic`` it was trained with;
            empty when it came from VirNucPro's file, which does not say.
        source: Where it came from, in words.
    """

    def __init__(self, state: Mapping[str, np.ndarray], models: Mapping[str, Mapping[str, Any]], source: str) -> None:
        """Take the arrays of a network.

        Raises:
            ValueError: an array is missing, not known, or of another shape or kind.
        """
        weight = state.get("hidden_layer.weight")
        if weight is None or weight.ndim != 2 or min(weight.shape) < 1:
            raise ValueError("hidden_layer.weight is missing, or no matrix")
        hidden_width, self.feature_width = weight.shape
        shapes: dict[str, tuple[int, ...]] = {
            "hidden_layer.weight": weight.shape,
            **dict.fromkeys(("hidden_layer.bias", "bn1.weight", "bn1.bias"), (hidden_width,)),
            **dict.fromkeys(("bn1.running_mean", "bn1.running_var"), (hidden_width,)),
            "bn1.num_batches_tracked": (),
            "output_layer.weight": (len(CLASSES), hidden_width),
            "output_layer.bias": (len(CLASSES),),
        }
        for name in shapes.keys() ^ state.keys():
            raise ValueError(f"{name[:80]} is {'missing' if name in shapes else 'unknown'}")
        for name, wanted in shapes.items():
            if state[name].shape != wanted or state[name].dtype.kind not in "fiu":
                raise ValueError(f"{name} is {state[name].dtype} {state[name].shape}, not numbers {wanted}")
        self.state = {
            name: np.ascontiguousarray(array, np.float32 if shapes[name] else np.int64).reshape(shapes[name])
            for name, array in state.items()
        }
        self.models = {name: dict(model) for name, model in models.items()}
        self.source = source

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Probabilities, float32 [k, 2]: non-viral, virus; of features, float32 [k, feature_width]."""
        state = self.state
        scale = state["bn1.weight"] / np.sqrt(np.add(state["bn1.running_var"], BATCH_NORM_EPSILON))
        shift = state["bn1.bias"] - state["bn1.running_mean"] * scale
        found = np.empty((len(features), len(CLASSES)), np.float32)
        for start in range(0, len(features), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            hidden = features[block] @ state["hidden_layer.weight"].T + state["hidden_layer.bias"]
            hidden = np.maximum(hidden * scale + shift, 0)
            logits = hidden @ state["output_layer.weight"].T + state["output_layer.bias"]
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            found[block] = powers / powers.sum(axis=1, keepdims=True)
        return found

    def require_fit(self, reader: EmbeddingsFile) -> None:
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
            save_file(self.state, temporary, metadata={HEADER_KEY: json.dumps(header)})


def describe_models(reader: EmbeddingsFile) -> dict[str, dict[str, Any]]:
    """Return ``width``, ``source`` and ``synthetic`` of each of :data:`FEATURE_MODELS` in a results file.

    Raises:
        InputError: a sample of another kind than ``contigs``, or a matrix that is missing.
    """
    if reader.kind != "contigs":
        raise InputError(f"its kind is {reader.kind}; only samples of kind contigs can be classified", reader.path)
    for name in FEATURE_MODELS:
        if name not in reader.models:
            raise InputError(f"holds no embeddings of {name}; compute it again", reader.path)
    return {
        name: {key: reader.models[name][key] for key in ("width", "source", "synthetic")} for name in FEATURE_MODELS
    }


def classify(reader: EmbeddingsFile, classifier: Classifier) -> Iterator[tuple[Rows, np.ndarray]]:
    """Classify the frames of a sample, block by block.

    Yields:
        Rows and their probabilities, float32 [k, 2]: non-viral, virus.

    Raises:
        InputError: see :meth:`Classifier.require_fit`; so is the next.
        WeightsError: the classifier does not fit the embeddings.
    """
    classifier.require_fit(reader)
    for rows in reader.blocks(FEATURE_MODELS):
        yield rows, classifier.predict(features(rows))


def features(rows: Rows) -> np.ndarray:
    """Features of rows, float32 [k, feature_width]."""
    return np.concatenate([rows.matrices[model].astype(np.float32) for model in FEATURE_MODELS], axis=1)


def load_classifier(path: str | Path) -> Classifier:
    """Load a classifier from safetensors.

    Raises:
        WeightsError: no such file, another kind of file, or one that does not hold this network.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; train a classifier, or convert VirNucPro's .pth")
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: must end in .safetensors; holdfast convert-classifier makes one of a .pth")
    return make_classifier(path, *_read_safetensors(path))


def make_classifier(
    path: Path, models: Mapping[str, Mapping[str, Any]], source: str, state: Mapping[str, np.ndarray]
) -> Classifier:
    """Make a classifier of what was read from a file.

    Raises:
        WeightsError: it is not this network, or one that gives no numbers.
    """
    try:
        classifier = Classifier(state, models, source)
    except ValueError as error:
        raise WeightsError(f"{path}: does not hold VirNucPro's network: {error}") from None
    with np.errstate(all="ignore"):
        if not np.isfinite(classifier.predict(np.zeros((1, classifier.feature_width), np.float32))).all():
            raise WeightsError(f"{path}: gives values that are not finite; train it, or download VirNucPro's, again")
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


def _read_safetensors(path: Path) -> tuple[dict[str, dict[str, Any]], str, dict[str, np.ndarray]]:
    try:
        with safe_open(path, "numpy") as file:
            content = parse_json((file.metadata() or {}).get(HEADER_KEY, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, DocumentError, TypeError, AttributeError) as error:  # the last two: a dtype numpy lacks
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from None
    again = "train it, or convert VirNucPro's .pth, again"
    try:
        header = fill(_Header, content)
    except DocumentError as error:
        raise WeightsError(f"{path}: not a classifier of this version ({error}); {again}") from None
    if (
        header.format_version != FORMAT_VERSION
        or header.classes != list(CLASSES)
        or set(header.models) not in (set(), set(FEATURE_MODELS))
    ):
        raise WeightsError(f"{path}: not a classifier of this version; {again}")
    return {name: asdict(model) for name, model in header.models.items()}, header.source, state


# VirNucPro's published classifier: a whole module as torch pickled it

LARGEST_PUBLISHED_BYTES = 2**25  # its own files have 7 million bytes, one for the widest ESM-2 would have 13 million
PUBLISHED_CLASSES = (
    "__main__.MLPClassifier",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.activation.ReLU",
)


def load_published(path: str | Path) -> Classifier:
    """Load VirNucPro's classifier; nothing in the file is executed.

    Raises:
        WeightsError: no such file, or one that is damaged or does not hold this network.
    """
    from ..models.checkpoint import load_torch, require_stored  # imports torch

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; name VirNucPro's classifier, such as 500_model.pth")
    if path.stat().st_size > LARGEST_PUBLISHED_BYTES:
        raise WeightsError(f"{path}: larger than {LARGEST_PUBLISHED_BYTES} bytes, so not a classifier of VirNucPro")
    module = load_torch(path, PUBLISHED_CLASSES)
    try:
        layers = module.state["_modules"]
        state = {
            f"{name}.{key}": require_stored(tensor).numpy().copy()
            for name, layer in layers.items()
            for key, tensor in (layer.state["_parameters"] | layer.state["_buffers"]).items()
        }
        epsilon = layers["bn1"].state["eps"]
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise WeightsError(f"{path}: not a classifier of VirNucPro ({problem}); download it again") from None
    if not isinstance(epsilon, float) or epsilon != BATCH_NORM_EPSILON:
        found = epsilon if isinstance(epsilon, float) else "that is no number"
        raise WeightsError(f"{path}: its BatchNorm1d has eps {found}, VirNucPro's has {BATCH_NORM_EPSILON}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return make_classifier(path, {}, f"{path.name}, sha256 {digest}", state)
