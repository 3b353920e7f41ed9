"""``holdfast verify``: what a prepared model computes here, beside values that others published for its weights.

``published_values.yaml`` beside this file has the values, with where they are from. A model is known by the name of
what it was prepared from, so that other weights under that name are found out; it is run as ``holdfast embed`` runs it,
in fp32. Preparation has compared the encoder with a reference on the same weights; this compares the weights, too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..documents import YAML_LIMIT_BYTES, DocumentError, fill, parse_yaml, read_text
from ..errors import ConfigError, WeightsError, listed
from ..models.registry import POOLINGS, Prepared, read_prepared
from ..results.classifier import Classifier, load_classifier, load_published
from .by_hand import embed

PUBLISHED_VALUES = Path(__file__).with_name("published_values.yaml")
HUB_CACHE = re.compile(r"models--[^/]+--([^/]+)/snapshots/[^/]+/?$")
SHOWN = 8


@dataclass(frozen=True)
class Row:
    """Values of one row of a model: of a sequence pooled so, of ``residues`` the row of that number, from 0.

    Attributes:
        begins: Its first values.
        others: Single further values by their index.
        norm: Its Euclidean norm; None where nobody says.
    """

    sequence: str
    pooling: str
    row: int
    begins: list[float]
    others: dict[str, float]
    norm: float | None

    @property
    def wanted(self) -> dict[str, float]:
        """By what they are, its values."""
        wanted = {f"value {index}": value for index, value in enumerate(self.begins)}
        wanted |= {f"value {index}": value for index, value in self.others.items()}
        return wanted | ({} if self.norm is None else {"norm": self.norm})

    def found(self, values: np.ndarray) -> dict[str, float]:
        """The same of what was computed, float32 [width]; NaN for an index beyond its end."""
        indices = [*range(len(self.begins)), *map(int, self.others)]
        found = {f"value {index}": float(values[index]) if index < len(values) else np.nan for index in indices}
        return found | ({} if self.norm is None else {"norm": float(np.linalg.norm(values))})


@dataclass(frozen=True)
class ModelValues:
    """What was published of a model.

    Attributes:
        names: By which it is known, the hub id first.
        family: Its family.
        layers: Its layers.
        width: Columns of an embedding.
        origin: Where the values are from.
        tolerance: What they may be off; relative to values above 1.
        rows: The values.
    """

    names: list[str]
    family: str
    layers: int
    width: int
    origin: str
    tolerance: float
    rows: list[Row]


@dataclass(frozen=True)
class Frame:
    """A stop-free frame, as residues and as bases, and what the classifier says of it."""

    protein: str
    dna: str
    p_non_viral: float
    p_virus: float


@dataclass(frozen=True)
class MethodValues:
    """What a classifier said of frames, by the means of two models, which are named as above."""

    protein: str
    dna: str
    classifier: str
    origin: str
    tolerance: float
    frames: list[Frame]


@dataclass(frozen=True)
class PublishedValues:
    """Values of models, and of whole methods."""

    models: list[ModelValues]
    methods: list[MethodValues]

    def of(self, name: str) -> ModelValues | None:
        """Those of the model with this name, in any case and with or without its publisher; None without."""
        wanted = name.lower()
        for entry in self.models:
            if wanted in {known.lower() for full in entry.names for known in (full, full.rpartition("/")[2])}:
                return entry
        return None


def read_values(path: Path) -> PublishedValues:
    """Read reference values.

    Raises:
        ConfigError: the file cannot be read, or is of another form.
    """
    try:
        values = fill(PublishedValues, parse_yaml(read_text(path, YAML_LIMIT_BYTES)))
        for row in [row for entry in values.models for row in entry.rows]:
            if row.row < 0 or not all(map(str.isdecimal, row.others)) or row.pooling not in POOLINGS:
                raise DocumentError(f"row, others or pooling of {_short(row.sequence)} is none")
        return values
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except DocumentError as error:
        raise ConfigError(f"{path}: not reference values ({error}); take {PUBLISHED_VALUES} for a pattern") from None


def name_of_source(prepared: Prepared) -> str:
    """By which name a model would be known: the last part of a hub id, a file or a directory."""
    if prepared.synthetic:
        return prepared.source
    if cached := HUB_CACHE.search(prepared.source):
        return cached[1]
    return re.sub(r"\.(pt|pth)$", "", prepared.source.rstrip("/").rpartition("/")[2])


def verify_models(
    directories: Sequence[Path],
    name: str | None = None,
    classifier: Path | None = None,
    device: str = "auto",
    values: Path = PUBLISHED_VALUES,
) -> tuple[list[str], bool]:
    """Compare prepared models with what was published of them.

    Args:
        directories: Of the models.
        name: What the only one claims to be; None for what it was prepared from.
        classifier: Of a method whose two models are among them, ``.pth`` or ``.safetensors``; None without.
        device: ``auto``, ``cpu`` or ``cuda``.
        values: The file of values.

    Returns:
        What was found, a line each, and whether there were values for all of them.

    Raises:
        ConfigError: a name that is not known, or a classifier without the models of a method.
        HoldfastError: a model that cannot be run.
        WeightsError: a model or the classifier gives other values; the message has the first of them.
    """
    published = read_values(values)
    known = ", ".join(entry.names[0] for entry in published.models)
    if name is not None and (len(directories) > 1 or published.of(name) is None):
        raise ConfigError(f"--as {name}: takes one DIR, and the name of a model with published values: {known}")
    lines, complete, claimed = [], True, dict[str, Path]()
    wrong: list[str] = []
    for directory in directories:
        prepared = read_prepared(directory)
        claim = name or name_of_source(prepared)
        entry = published.of(claim)
        if entry is None:
            why = "its weights are synthetic, random" if prepared.synthetic else f"it was made from {prepared.source}"
            lines.append(f"{directory}: nothing to compare with: {why}; there are published values for {known}")
            complete = False
            continue
        claimed[entry.names[0]] = directory
        agrees, line = _compare(directory, prepared, entry, device)
        (lines if agrees else wrong).append(line)
    if classifier is not None and not wrong:
        agrees, line = _compare_method(published, claimed, classifier, device)
        (lines if agrees else wrong).append(line)
    if wrong:
        raise WeightsError("\n".join(wrong))
    return lines, complete


def _compare(directory: Path, prepared: Prepared, entry: ModelValues, device: str) -> tuple[bool, str]:
    """Whether a model is the published one that it claims to be, and what is said of it."""
    sizes = (prepared.family, prepared.layers, prepared.width)
    if sizes != (entry.family, entry.layers, entry.width):
        published = f"{entry.family} of {entry.layers} layers, width {entry.width}"
        has = f"{prepared.family} of {prepared.layers} layers, width {prepared.width}"
        return False, f"{directory}: is not the published {entry.names[0]}, which is {published}; this is {has}"
    sequences = list(dict.fromkeys(row.sequence for row in entry.rows))
    poolings = sorted({row.pooling for row in entry.rows})
    vectors = embed(sequences, str(directory), pooling=poolings, device=device, precision="fp32")
    wanted, found = dict[str, float](), dict[str, float]()
    for row in entry.rows:
        rows = np.atleast_2d(vectors[f"{prepared.layers}/{row.pooling}"][sequences.index(row.sequence)])
        if not row.row < len(rows):
            raise ConfigError(f"{entry.names[0]}: its values name row {row.row} of {len(rows)}; correct them")
        where = f"{row.pooling} of {_short(row.sequence)}" + (f", row {row.row}" if row.pooling == "residues" else "")
        wanted |= {f"{where}, {key}": value for key, value in row.wanted.items()}
        found |= {f"{where}, {key}": value for key, value in row.found(rows[row.row]).items()}
    return _judge(f"{directory}", f"the published {entry.names[0]}", wanted, found, entry.tolerance, entry.origin)


def _compare_method(
    published: PublishedValues, claimed: Mapping[str, Path], path: Path, device: str
) -> tuple[bool, str]:
    """As :func:`_compare`, of the classifier of a method whose models were found right."""
    method = next((each for each in published.methods if {each.protein, each.dna} <= claimed.keys()), None)
    if method is None:
        known = "; ".join(f"{each.protein} and {each.dna}" for each in published.methods)
        raise ConfigError(f"{path}: to verify a classifier, name the two models of its method, too: {known}")
    classifier: Classifier = load_classifier(path) if path.suffix == ".safetensors" else load_published(path)
    means = [
        np.asarray(
            embed(
                [getattr(frame, role) for frame in method.frames], str(claimed[model]), device=device, precision="fp32"
            )
        )
        for role, model in (("dna", method.dna), ("protein", method.protein))
    ]
    features = np.concatenate(means, axis=1)
    if features.shape[1] != classifier.feature_width:
        takes = f"takes {classifier.feature_width} values a frame"
        return False, f"{path}: {takes}, {method.classifier} {features.shape[1]}"
    wanted, found = dict[str, float](), dict[str, float]()
    for frame, (p_non_viral, p_virus) in zip(method.frames, classifier.predict(features).tolist(), strict=True):
        where = f"frame {_short(frame.protein)}"
        wanted |= {f"{where}, p_non_viral": frame.p_non_viral, f"{where}, p_virus": frame.p_virus}
        found |= {f"{where}, p_non_viral": p_non_viral, f"{where}, p_virus": p_virus}
    return _judge(f"{path}", method.classifier, wanted, found, method.tolerance, method.origin)


def _judge(
    where: str, what: str, wanted: Mapping[str, float], found: Mapping[str, float], tolerance: float, origin: str
) -> tuple[bool, str]:
    """Whether values, by what they are, agree, and what is said of them."""
    off = {key: abs(found[key] - value) / max(1.0, abs(value)) for key, value in wanted.items()}
    differ = [key for key in off if not off[key] <= tolerance]
    if not differ:
        largest = f"largest difference {max(off.values()):.1e}, allowed {tolerance:.1e}"
        return True, f"{where}: computes {what}: {len(off)} values agree ({largest}; {origin})"
    advice = "download it again and prepare it anew; if that does not help, report this"
    head = f"{where}: is not {what}: {len(differ)} of {len(off)} values differ by more than {tolerance:.1e} ({origin})"
    each = [f"{key}: {found[key]:.6f}, published {wanted[key]:.6f}" for key in differ]
    return False, listed(f"{head}; {advice}:", each, SHOWN)


def _short(sequence: str) -> str:
    return sequence if len(sequence) <= 12 else f"{sequence[:12]}..."
