"""Calibration against scikit-learn, and on simulated contigs whose truth is known."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holdfast.errors import ConfigError, WeightsError
from holdfast.results.calibration import Calibration, _predict_by_others, calibrate, read_calibration
from holdfast.results.decisions import FalseDiscoveries
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss


def simulate(contigs: int, virus_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of contigs, and which are viruses: those of viruses are Beta(4, 2), those of the others Beta(2, 5)."""
    random = np.random.default_rng(seed)
    label = (random.random(contigs) < virus_share).astype(int)
    return np.where(label == 1, random.beta(4, 2, contigs), random.beta(2, 5, contigs)), label


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(b"a network")
    return path


def test_many_contigs_give_scikit_learns_isotonic_curve(classifier: Path) -> None:
    score, label = simulate(3000, 0.4, 1)
    found = calibrate(score, label, "contigs", 0.2, classifier)
    assert (found.method, found.contigs) == ("isotonic", {"non-viral": int(sum(label == 0)), "virus": int(sum(label))})
    at = np.linspace(0, 1, 777)
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(score, label)
    expected = fitted.predict(at).clip(1 / 3002, 1 - 1 / 3002)
    np.testing.assert_allclose(found.apply(at), expected, atol=2e-3)  # 1,001 points on a curve of steps
    np.testing.assert_allclose(found.apply(score), fitted.predict(score).clip(1 / 3002, 1 - 1 / 3002), atol=1e-9)
    assert len(found.score) < 600


def test_few_contigs_give_platts_sigmoid(classifier: Path) -> None:
    score, label = simulate(300, 0.4, 2)
    found = calibrate(score, label, "samples", 0.2, classifier)
    assert found.method == "sigmoid"
    # Platt (1999): a logistic regression whose targets are (n + 1) / (n + 2) of viruses and 1 / (m + 2) of the others.
    viruses, others = int(label.sum()), int((1 - label).sum())
    target = np.where(label == 1, (viruses + 1) / (viruses + 2), 1 / (others + 2))
    twice = np.concatenate([score, score])[:, None]
    outcome, weight = np.repeat([1, 0], len(score)), np.concatenate([target, 1 - target])
    fitted = LogisticRegression(C=1e9, tol=1e-8).fit(twice, outcome, weight)
    at = np.linspace(0, 1, 50)
    expected = fitted.predict_proba(at[:, None])[:, 1].clip(1 / 302, 1 - 1 / 302)
    np.testing.assert_allclose(found.apply(at), expected, atol=1e-3)


def test_figures_are_of_contigs_that_the_curve_was_not_fitted_to(classifier: Path) -> None:
    score, label = simulate(2000, 0.3, 3)
    found = calibrate(score, label, "contigs", 0.2, classifier)
    p_virus = _predict_by_others(score, label, "isotonic")
    assert found.brier == pytest.approx(brier_score_loss(label, p_virus))
    assert brier_score_loss(label, found.apply(score)) < found.brier
    share, mean = calibration_curve(label, p_virus, n_bins=10)
    np.testing.assert_allclose([part.virus_share for part in found.reliability], share)
    np.testing.assert_allclose([part.p_virus for part in found.reliability], mean)
    assert sum(part.contigs for part in found.reliability) == 2000
    for threshold in found.thresholds:
        above = score >= threshold.score
        assert threshold.contigs == above.sum()
        assert threshold.observed_fdr == pytest.approx(1 - label[above].mean())
        error = 4 * np.sqrt(0.25 / threshold.contigs)
        assert threshold.fdr == pytest.approx(threshold.observed_fdr, abs=error)


@pytest.mark.parametrize("labelled", [400, 4000])
@pytest.mark.parametrize("max_fdr", [0.02, 0.05, 0.1, 0.2])
def test_the_fdr_of_10000_contigs_is_what_was_estimated_within_its_error(
    classifier: Path, labelled: int, max_fdr: float
) -> None:
    calibration = calibrate(*simulate(labelled, 0.4, 4), "samples", 0.2, classifier)
    score, label = simulate(10_000, 0.4, 5)
    fdr = FalseDiscoveries(score, calibration.apply).at(score)
    called = fdr <= max_fdr
    assert called.sum() > 500
    estimated, observed = fdr[called].max(), 1 - label[called].mean()
    assert estimated <= max_fdr
    # Three standard errors: of the list itself, and of the labelled contigs above the same score.
    above = called.mean() * labelled
    error = 3 * np.sqrt(estimated * (1 - estimated) * (1 / called.sum() + 1 / above))
    assert observed == pytest.approx(estimated, abs=error)


def test_another_share_of_viruses_needs_to_be_named(classifier: Path) -> None:
    """A soil sample is not a virome: with 2% of viruses in place of 50% the list is worse than it says, until told."""
    calibration = calibrate(*simulate(4000, 0.5, 6), "samples", 0.2, classifier)
    score, label = simulate(10_000, 0.02, 7)
    above = score >= 0.7
    observed = 1 - label[above].mean()
    assert FalseDiscoveries(score, calibration.apply).at(score)[above].max() < observed / 3
    assert FalseDiscoveries(score, partial(calibration.apply, virus_share=0.02)).at(score)[
        above
    ].max() == pytest.approx(observed, abs=0.1)
    same = sum(calibration.contigs.values())
    np.testing.assert_allclose(
        calibration.apply(score, calibration.contigs["virus"] / same), calibration.apply(score), atol=1e-12
    )


@pytest.mark.parametrize(
    ("score", "label", "reason"),
    [
        (np.linspace(0, 1, 30), [0] * 21 + [1] * 9, "9 virus and 21 non-viral contigs with evidence are too few"),
        (np.zeros(0), [], "0 virus and 0 non-viral contigs"),
        (np.linspace(0, 1, 40), [1] * 20 + [0] * 20, "higher scores did not mean more viruses"),
        (np.full(40, 0.5), [1] * 20 + [0] * 20, "higher scores did not mean more viruses"),
    ],
)
def test_what_cannot_be_calibrated_says_why(
    classifier: Path, tmp_path: Path, score: np.ndarray, label: list[int], reason: str
) -> None:
    found = calibrate(score, np.array(label, int), "contigs", 0.2, classifier)
    assert (found.method, found.score) == ("none", [])
    assert found.reason.startswith(reason)
    assert found.summary().startswith(f"not calibrated: {reason}")
    found.write(tmp_path / "calibration.json")
    assert read_calibration(tmp_path / "calibration.json", classifier, 0.2) is None


def test_a_calibration_is_read_back_for_its_classifier_and_margin_only(classifier: Path, tmp_path: Path) -> None:
    found = calibrate(*simulate(300, 0.4, 8), "all", 0.2, classifier)
    path = tmp_path / "calibration.json"
    found.write(path)
    assert read_calibration(path, classifier, 0.2) == found
    with pytest.raises(ConfigError, match=r"calls\.margin: 0\.5, but .* was made for 0\.2"):
        read_calibration(path, classifier, 0.5)
    classifier.write_bytes(b"another")
    with pytest.raises(WeightsError, match="calibrates another classifier"):
        read_calibration(path, classifier, 0.2)
    with pytest.raises(WeightsError, match="no such file"):
        read_calibration(tmp_path / "none.json", classifier, 0.2)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 2},
        {"method": "magic"},
        {"method": "none"},
        {"split": "halves"},
        {"p_virus": [0.5, 0.2]},
        {"p_virus": [0.2, 1.0]},
        {"score": [1.0, 0.0]},
        {"score": [0.0, 0.5, 1.0]},
        {"contigs": {"virus": 3}},
        {"brier": "low"},
    ],
)
def test_damaged_calibrations_are_refused(classifier: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = calibrate(*simulate(300, 0.4, 8), "all", 0.2, classifier)
    small: Calibration = replace(found, score=[0.0, 1.0], p_virus=[0.2, 0.8])
    path = tmp_path / "calibration.json"
    small.write(path)
    assert read_calibration(path, classifier, 0.2) == small
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(WeightsError, match="not a calibration of this version"):
        read_calibration(path, classifier, 0.2)
