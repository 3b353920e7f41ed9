"""The classifier: VirNucPro's network over the two embeddings of a frame; read, applied and saved.

A frame's feature is the embedding of its bases followed by that of its protein (DNABERT-S and ESM-2 in VirNucPro): the
means over the last layers; their widths come from the models that made them. The network gives the probabilities of
``non-viral`` and ``virus``, in that order, in float32. Features pass through in blocks.

Networks are kept as safetensors, whose header names the models the features were made with; they come from
:mod:`.training`, or through :func:`load_published` from VirNucPro's own file. Applying one takes numpy alone: to import
torch would take longer than a small sample's work.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..documents import DocumentError, fill, parse_json
from ..errors import ConfigError, InputError, WeightsError
from ..files import check_outputs, temporary_path
from ..models.registry import ROLES, Prepared, choose_method
from .embeddings import BLOCK_ROWS, EmbeddingsFile, Rows

CLASSES = ("non-viral", "virus")
NON_VIRAL, VIRUS = CLASSES
BATCH_NORM_EPSILON = 1e-5  # of torch's BatchNorm1d, and so of VirNucPro's
FORMAT_VERSION = 3
HEADER_KEY = "holdfast_classifier"


class Classifier:
    """VirNucPro's network: Linear, BatchNorm1d, ReLU, Dropout, Linear; H values in between.

    Attributes:
        state: Its arrays by torch's names: ``hidden_layer.weight`` [H, feature_width], ``hidden_layer.bias`` [H],
            ``bn1.weight``, ``bn1.bias``, ``bn1.running_mean``, ``bn1.running_var`` [H], ``output_layer.weight`` [2, H],
            ``output_layer.bias`` [2], all float32, and ``bn1.num_batches_tracked`` [], int64.
        feature_width: Columns of a feature.
        models: For each of :data:`.registry.ROLES` what it was trained with, see :class:`FeatureModel`; empty when it
            came from VirNucPro's file, which does not say.
        source: Where it came from, in words.
    """

    def __init__(self, state: Mapping[str, np.ndarray], models: "Mapping[str, FeatureModel]", source: str) -> None:
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
        self.models = dict(models)
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

    def require_fit(self, models: "Mapping[str, FeatureModel]", where: object) -> None:
        """Refuse embeddings by other models than those the network knows.

        Args:
            models: By role, what the embeddings were or will be made with.
            where: What errors call that.

        Raises:
            WeightsError: other widths, layers or weights.
        """
        width = sum(model.width for model in models.values())
        if width != self.feature_width:
            widths = " + ".join(f"{model.model} {model.width}" for model in models.values())
            raise WeightsError(
                f"the classifier ({self.source}) takes {self.feature_width} values, but {where} gives {width} "
                f"({widths}); use the models it was trained with, or train it again"
            )
        for role, model in self.models.items():
            if not model.is_same(models[role]):
                raise WeightsError(
                    f"the classifier ({self.source}) was trained with {model} for {role}, but {where} has "
                    f"{models[role]}; use the same models, or train it again"
                )

    def save(self, path: str | Path) -> None:
        """Write as safetensors; the same network gives the same bytes."""
        models = {role: asdict(model) for role, model in self.models.items()}
        header = {"format_version": FORMAT_VERSION, "classes": CLASSES, "models": models, "source": self.source}
        with temporary_path(path) as temporary:
            save_file(self.state, temporary, metadata={HEADER_KEY: json.dumps(header)})


@dataclass(frozen=True)
class FeatureModel:
    """One of the two models of a feature.

    Attributes:
        model: Its name in the config.
        family: Its family.
        width: Columns of its embeddings.
        layer: Of the states.
        pooling: Of them.
        source: What it was prepared from.
        weights_sha256: Of the prepared weights.
        synthetic: Whether they are random.
    """

    model: str
    family: str
    width: int
    layer: int
    pooling: str
    source: str
    weights_sha256: str
    synthetic: bool

    def is_same(self, other: "FeatureModel") -> bool:
        """Whether the embeddings of another are those of this one: the same weights, or at least the same source."""
        return (self.family, self.width, self.layer, self.pooling) == (
            *(other.family, other.width, other.layer, other.pooling),
        ) and (self.weights_sha256 == other.weights_sha256 or self.source == other.source)

    def __str__(self) -> str:
        """For errors."""
        return f"{self.family} of {self.source} (layer {self.layer}, {self.pooling}, width {self.width})"


def describe_file(reader: EmbeddingsFile, named: Mapping[str, str | None]) -> dict[str, FeatureModel]:
    """By role, the models of a results file that a feature is made of.

    Args:
        reader: The file.
        named: Names of models by role; None for the only one.

    Raises:
        ConfigError: no such model, or several and none named.
        InputError: a sample of another kind than ``contigs``, or a matrix that is missing.
    """
    if reader.kind != "contigs":
        raise InputError(f"its kind is {reader.kind}; only samples of kind contigs can be classified", reader.path)
    method = choose_method({name: known["alphabet"] for name, known in reader.models.items()}, named)
    found = {}
    for role, model in method.items():
        name = reader.matrix_of(model)
        if name is None:
            raise InputError(f"holds no means of {model}; compute it again with pooling mean", reader.path)
        known = reader.matrices[name]
        kept = {key: known[key] for key in FeatureModel.__dataclass_fields__ if key != "model"}
        found[role] = FeatureModel(model, **kept)
    return found


def describe_prepared(models: Mapping[str, Prepared], method: Mapping[str, str]) -> dict[str, FeatureModel]:
    """By role, what features will be made of, once prepared models have embedded frames."""
    found = {}
    for role in ROLES:
        name = method[role]
        known = models[name]
        told = (known.family, known.width, known.layers, "mean", known.source, known.weights_sha256, known.synthetic)
        found[role] = FeatureModel(name, *told)
    return found


def matrices_of(models: Mapping[str, FeatureModel]) -> list[str]:
    """Names of the matrices that features are made of, in their order."""
    return [f"{models[role].model}/{models[role].layer}/{models[role].pooling}" for role in ROLES]


def classify(
    reader: EmbeddingsFile, classifier: Classifier, named: Mapping[str, str | None]
) -> Iterator[tuple[Rows, np.ndarray]]:
    """Classify the frames of a sample, block by block.

    Args:
        reader: Its embeddings.
        classifier: The network.
        named: Names of models by role; None for the only one.

    Yields:
        Rows and their probabilities, float32 [k, 2]: non-viral, virus.

    Raises:
        InputError: see :func:`describe_file`.
        WeightsError: the classifier does not fit the embeddings.
    """
    models = describe_file(reader, named)
    classifier.require_fit(models, reader.path)
    for rows in reader.blocks(matrices_of(models)):
        yield rows, classifier.predict(features(rows))


def features(rows: Rows) -> np.ndarray:
    """Features of rows that were read with :func:`matrices_of`, float32 [k, feature_width]."""
    return np.concatenate([matrix.astype(np.float32) for matrix in rows.matrices.values()], axis=1)


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
    path: Path, models: Mapping[str, FeatureModel], source: str, state: Mapping[str, np.ndarray]
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
class _Header:
    """What our safetensors say beside the tensors."""

    format_version: int
    classes: list[str]
    models: dict[str, FeatureModel]
    source: str


def _read_safetensors(path: Path) -> tuple[dict[str, FeatureModel], str, dict[str, np.ndarray]]:
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
        or set(header.models) not in (set(), set(ROLES))
    ):
        raise WeightsError(f"{path}: not a classifier of this version; {again}")
    return header.models, header.source, state


# VirNucPro's published classifier: a whole module as torch pickled it

LARGEST_PUBLISHED_BYTES = 2**25  # its own files have 7 million bytes, one for the widest ESM-2 would have 13 million
PUBLISHED_WANTED = "give VirNucPro's whole pickled network as its authors publish it, 300_model.pth or 500_model.pth"
PUBLISHED_CLASSES = (
    "__main__.MLPClassifier",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.activation.ReLU",
)


def convert_published(path: Path, output: Path) -> Classifier:
    """Write VirNucPro's classifier as safetensors.

    Raises:
        ConfigError: an output whose name does not end so, or that is the classifier.
        WeightsError: see :func:`load_published`.
    """
    if output.suffix != ".safetensors":
        raise ConfigError(f"{output}: must end in .safetensors, by which a classifier is known; name it so")
    check_outputs([output], [path])
    converted = load_published(path)
    converted.save(output)
    return converted


def load_published(path: str | Path) -> Classifier:
    """Load VirNucPro's classifier; nothing in the file is executed.

    Raises:
        WeightsError: no such file, or one that is damaged or does not hold this network.
    """
    from ..models.torch_file import StandIn, load_torch, require_stored  # imports torch

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; name VirNucPro's classifier, such as 500_model.pth")
    if path.stat().st_size > LARGEST_PUBLISHED_BYTES:
        raise WeightsError(
            f"{path}: larger than {LARGEST_PUBLISHED_BYTES} bytes, so not a classifier of VirNucPro; {PUBLISHED_WANTED}"
        )
    module = load_torch(path, PUBLISHED_CLASSES, PUBLISHED_WANTED)
    if not isinstance(module, StandIn):
        raise WeightsError(f"{path}: not a classifier of VirNucPro: it holds {_say(module)}; {PUBLISHED_WANTED}")
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
        raise WeightsError(
            f"{path}: not a classifier of VirNucPro, or damaged ({problem}); {PUBLISHED_WANTED}"
        ) from None
    if not isinstance(epsilon, float) or epsilon != BATCH_NORM_EPSILON:
        found = epsilon if isinstance(epsilon, float) else "that is no number"
        raise WeightsError(f"{path}: its BatchNorm1d has eps {found}, VirNucPro's has {BATCH_NORM_EPSILON}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return make_classifier(path, {}, f"{path.name}, sha256 {digest}", state)


def _say(content: object) -> str:
    """What a file of torch holds that is no network, in words."""
    if isinstance(content, dict):
        names = ", ".join(str(name)[:40] for name in list(dict.keys(content))[:3])
        return f"a table of {len(content)} entries ({names}, ...), such as a state_dict()"
    return f"a {type(content).__name__}"
