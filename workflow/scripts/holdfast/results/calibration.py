"""Calibration: from the score of a contig to the probability that it is a virus, learned from contigs of known label.

:func:`calibrate` fits a curve to scores of contigs that the classifier has not learned from (scikit-learn: isotonic
from :data:`ISOTONIC_CONTIGS` on, below that Platt's sigmoid) and says how well it does on contigs that it was not
fitted to either: in each of :data:`FOLDS` parts by the curve of the others. The curve is kept as points with straight
lines between them, in ``calibration.json`` beside the classifier; to read and apply it takes numpy alone.

With n contigs no probability is below 1 / (n + 2) or above 1 less that (Laplace's rule of succession): so few cannot
show more. A probability holds for samples with the share of viruses of the calibration; :meth:`Calibration.apply`
takes another share (Saerens et al. 2002, doi:10.1162/089976602753284446).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..documents import DocumentError, fill, read_json
from ..errors import ConfigError, WeightsError
from ..files import atomic_text
from .classifier import CLASSES, classify, load_classifier
from .embeddings import EmbeddingsFile
from .votes import score_contigs

FORMAT_VERSION = 1
METHODS = ("none", "sigmoid", "isotonic")
SPLITS = ("contigs", "samples", "all")
LEAST_CONTIGS = 10
"""Contigs of each label below which nothing is calibrated; the choice is ours."""
ISOTONIC_CONTIGS = 1000
"""From scikit-learn's documentation: with much fewer isotonic regression tends to overfit."""
FOLDS = 5
BINS = 10
GRID = 1000
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Bin:
    """Contigs with a probability above ``low``, at most ``high``: their mean probability and their share of viruses."""

    low: float
    high: float
    contigs: int
    p_virus: float
    virus_share: float


@dataclass(frozen=True)
class Threshold:
    """Contigs from a score upward: how many, their estimated and their observed false discovery rate."""

    score: float
    contigs: int
    fdr: float
    observed_fdr: float


@dataclass(frozen=True)
class Calibration:
    """What ``calibration.json`` holds.

    Attributes:
        format_version: Of the file.
        classifier_sha256: Of the classifier's file (hex).
        margin: Of the scores, see :func:`.votes.score_groups`.
        method: One of :data:`METHODS`; ``none`` where contigs were too few, or scores said nothing.
        reason: Why there is none, in words; otherwise empty.
        split: What was held out from training: ``contigs``, ``samples``, or ``all`` where nothing was trained on.
        contigs: How many of each label.
        score: Points of the curve, ascending, from 0 to 1; none without a curve.
        p_virus: Their probabilities, never less for a higher score.
        brier: Mean square of probability less truth, of probabilities by the other folds; 0 without a curve.
        reliability: The same contigs by probability.
        thresholds: The same contigs from several scores upward.
    """

    format_version: int
    classifier_sha256: str
    margin: float
    method: str
    reason: str
    split: str
    contigs: dict[str, int]
    score: list[float]
    p_virus: list[float]
    brier: float
    reliability: list[Bin]
    thresholds: list[Threshold]

    def apply(self, score: np.ndarray, virus_share: float | None = None) -> np.ndarray:
        """Probabilities of a virus, float64 [k].

        Args:
            score: float64 [k]; NaN stays NaN.
            virus_share: Share of viruses among the contigs, above 0 and below 1; None for that of the calibration.
        """
        p_virus = np.interp(score, self.score, self.p_virus)
        if virus_share is None:
            return p_virus
        known = self.contigs["virus"] / sum(self.contigs.values())
        odds = p_virus / (1 - p_virus) * virus_share / (1 - virus_share) * (1 - known) / known
        return odds / (1 + odds)

    def summary(self) -> str:
        """One line for people."""
        counts = " and ".join(f"{self.contigs[name]} {name}" for name in reversed(CLASSES))
        if self.method == "none":
            return f"not calibrated: {self.reason}"
        return f"calibrated on {counts} contigs ({self.method}), Brier score {self.brier:.3f}"

    def write(self, path: str | Path) -> None:
        """Write as JSON."""
        with atomic_text(path) as file:
            file.write(json.dumps(asdict(self)) + "\n")


def calibrate(score: np.ndarray, label: np.ndarray, split: str, margin: float, classifier_path: Path) -> Calibration:
    """Calibrate.

    Args:
        score: Of contigs that the classifier has not learned from, float64 [n].
        label: int [n], 1 for a virus, 0 otherwise.
        split: One of :data:`SPLITS`.
        margin: By which they were scored.
        classifier_path: The classifier's file.
    """
    counts = {name: int(np.sum(label == code)) for code, name in enumerate(CLASSES)}
    method, reason = ("isotonic" if len(score) >= ISOTONIC_CONTIGS else "sigmoid"), ""
    knots = np.union1d(np.linspace(0, 1, GRID + 1), score)
    curve = np.zeros(0)
    if min(counts.values()) < LEAST_CONTIGS:
        told = " and ".join(f"{count} {name}" for name, count in reversed(counts.items()))
        reason = f"{told} contigs with evidence are too few, {LEAST_CONTIGS} of each are needed"
    else:
        curve = _fit(score, label, method, knots)
        if (np.diff(curve) < 0).any() or curve[0] == curve[-1]:
            reason = "higher scores did not mean more viruses among the labelled contigs"
    digest = hashlib.sha256(classifier_path.read_bytes()).hexdigest()
    if reason:
        return Calibration(FORMAT_VERSION, digest, margin, "none", reason, split, counts, [], [], 0.0, [], [])
    p_virus = _predict_by_others(score, label, method)
    turns = np.ones(len(knots), bool)  # a point between two of the same height says nothing
    turns[1:-1] = (curve[1:-1] != curve[:-2]) | (curve[1:-1] != curve[2:])
    return Calibration(
        FORMAT_VERSION,
        digest,
        margin,
        method,
        "",
        split,
        counts,
        knots[turns].tolist(),
        curve[turns].tolist(),
        float(np.mean((p_virus - label) ** 2)),
        _bin(p_virus, label),
        _cut(score, p_virus, label),
    )


def _fit(score: np.ndarray, label: np.ndarray, method: str, at: np.ndarray) -> np.ndarray:
    """Probabilities at some scores, float64 [k], by a curve that is fitted to others; see :func:`calibrate`."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression

    identity = LogisticRegression()  # a classifier whose decision function gives the score back
    identity.classes_, identity.coef_, identity.intercept_ = np.array([0, 1]), np.ones((1, 1)), np.zeros(1)
    fitted = CalibratedClassifierCV(FrozenEstimator(identity), method=method).fit(score[:, None], label)
    least = 1 / (len(score) + 2)
    found: np.ndarray = fitted.predict_proba(at[:, None])[:, 1].clip(least, 1 - least)
    return found


def _predict_by_others(score: np.ndarray, label: np.ndarray, method: str) -> np.ndarray:
    """The probability of each contig by a curve that was fitted to the other folds, float64 [n]."""
    from sklearn.model_selection import StratifiedKFold

    p_virus = np.empty(len(score))
    for others, fold in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(score, label):
        p_virus[fold] = _fit(score[others], label[others], method, score[fold])
    return p_virus


def _bin(p_virus: np.ndarray, label: np.ndarray) -> list[Bin]:
    """The contigs by probability, in those of :data:`BINS` bins of equal width that hold any."""
    place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], p_virus)
    found = []
    for number in np.unique(place).tolist():
        inside = place == number
        means = float(p_virus[inside].mean()), float(label[inside].mean())
        found.append(Bin(number / BINS, (number + 1) / BINS, int(inside.sum()), *means))
    return found


def _cut(score: np.ndarray, p_virus: np.ndarray, label: np.ndarray) -> list[Threshold]:
    """The contigs from each of :data:`THRESHOLDS` upward, where there are any."""
    chosen = [(threshold, score >= threshold) for threshold in THRESHOLDS]
    return [
        Threshold(threshold, int(above.sum()), float(np.mean(1 - p_virus[above])), float(np.mean(1 - label[above])))
        for threshold, above in chosen
        if above.any()
    ]


def calibrate_classifier(
    files: Sequence[tuple[str | Path, str]], classifier_path: Path, method: Mapping[str, str | None], margin: float
) -> Calibration:
    """Calibrate a classifier on labelled samples, from none of which it has learned.

    Args:
        files: Results file and label of each sample.
        classifier_path: The classifier, .safetensors.
        method: Names of the models by role; None where there is only one.
        margin: From which a chunk is confident.

    Raises:
        ConfigError: samples of one label only.
        InputError: embeddings that cannot be read, or are of another kind.
        WeightsError: a file that is no classifier, or one that does not fit the embeddings.
    """
    found = sorted({label for _, label in files})
    if found != sorted(CLASSES):
        told = ", ".join(found) or "none"
        raise ConfigError(f"samples: calibration needs the labels virus and non-viral, found {told}")
    classifier = load_classifier(classifier_path)
    scores, labels = [], []
    for path, label in files:
        with EmbeddingsFile(path) as reader:
            blocks = [(rows.record, rows.chunk, shares) for rows, shares in classify(reader, classifier, method)]
        if blocks:
            record, chunk, probabilities = (np.concatenate(column) for column in zip(*blocks, strict=True))
            score = score_contigs(record, chunk, probabilities, margin)[1]
            scores.append(score)
            labels.append(np.full(len(score), CLASSES.index(label)))
    known = np.concatenate([np.zeros(0, np.int64), *labels])
    return calibrate(np.concatenate([np.zeros(0), *scores]), known, "all", margin, classifier_path)


def read_calibration(path: Path, classifier_path: Path, margin: float) -> Calibration | None:
    """Read what calibrates a classifier; None where its labelled contigs could not.

    Args:
        path: ``calibration.json``.
        classifier_path: The classifier's file.
        margin: By which contigs are scored now.

    Raises:
        ConfigError: it was made for another margin.
        WeightsError: no such file, none of ours, or one of another classifier.
    """
    found = load_calibration(path)
    if found.classifier_sha256 != hashlib.sha256(classifier_path.read_bytes()).hexdigest():
        raise WeightsError(f"{path}: calibrates another classifier than {classifier_path}; calibrate again")
    if found.margin != margin:
        raise ConfigError(
            f"calls.margin: {margin:g}, but {path} was made for {found.margin:g}; set that, or label samples"
        )
    return None if found.method == "none" else found


def load_calibration(path: Path) -> Calibration:
    """Read ``calibration.json``, whatever it calibrates; also one without a curve, which says why.

    Raises:
        WeightsError: no such file, or none of ours.
    """
    try:
        found = fill(Calibration, read_json(path))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; calibrate again") from None
    except DocumentError as error:
        raise WeightsError(f"{path}: not a calibration of this version ({error}); calibrate again") from None
    rising = (np.diff(found.score) > 0).all() and (np.diff(found.p_virus) >= 0).all()
    inside = all(0 < value < 1 for value in found.p_virus) and all(0 <= value <= 1 for value in found.score)
    counted = set(found.contigs) == set(CLASSES) and all(count >= 0 for count in found.contigs.values())
    points = len(found.score) == len(found.p_virus) and (found.method == "none") == (not found.score)
    known = (found.format_version, found.method in METHODS, found.split in SPLITS) == (FORMAT_VERSION, True, True)
    if not (rising and inside and counted and points and known):
        raise WeightsError(f"{path}: not a calibration of this version; calibrate again")
    return found
