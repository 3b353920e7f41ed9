"""Decisions, tiers and reasons against tables computed by hand; what rules are refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from holdfast.errors import ConfigError
from holdfast.results import decisions
from holdfast.results.decisions import DECISIONS, NOT_CALLED, TIERS, Decisions, FalseDiscoveries, decide, explain, gate
from holdfast.results.presets import PRESETS, CallRules, choose_rules

RELAXED, CONSERVATIVE = PRESETS["relaxed"], PRESETS["conservative"]

# Length in bp, evidence, score; then what is decided by each preset.
TABLE = [
    (9000, 9, 0.97, "virus high", "virus high"),
    (9000, 9, 0.90, "virus high", "virus moderate"),
    (9000, 9, 0.80, "virus moderate", "virus low"),
    (9000, 9, 0.75, "virus moderate", "ambiguous low"),
    (9000, 9, 0.60, "virus low", "ambiguous low"),
    (9000, 9, 0.59, "ambiguous low", "ambiguous low"),
    (9000, 9, 0.40, "non-viral low", "ambiguous low"),
    (9000, 9, 0.25, "non-viral moderate", "ambiguous low"),
    (9000, 9, 0.05, "non-viral high", "non-viral high"),
    (9000, 5, 0.97, "virus high", "virus high"),
    (9000, 4, 0.97, "virus moderate", "virus moderate"),  # four chunks: one step lower
    (9000, 4, 0.88, "virus low", "virus low"),
    (9000, 4, 0.60, "virus low", "ambiguous low"),  # nothing to lower
    (9000, 4, 0.02, "non-viral moderate", "non-viral moderate"),
    (9000, 1, 0.97, "virus moderate", "not called"),  # too few chunks
    (1500, 2, 0.97, "virus moderate", "virus moderate"),
    (1499, 2, 0.97, "virus moderate", "not called"),  # too short
    (9000, 0, np.nan, "not called", "not called"),
]


def curve(score: np.ndarray, p_virus: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What gives these scores these probabilities."""
    known = dict(zip(score.tolist(), p_virus.tolist(), strict=True))
    return lambda scores: np.array([known[one] for one in scores.tolist()])


def decide_all(
    rows: list[tuple[int, int, float]], rules: CallRules, status: list[int], p_virus: np.ndarray | None = None
) -> tuple[Decisions, list[str]]:
    lengths_bp, evidence, score = (np.array(column) for column in zip(*rows, strict=True))
    statuses = np.array(status, np.uint8)
    fdr = None
    if p_virus is not None:
        called = gate(lengths_bp, statuses, evidence, rules) == 0
        fdr = FalseDiscoveries(np.where(called, score, np.nan), curve(score, p_virus)).at(score)
    decided = decide(lengths_bp, statuses, evidence, score, p_virus, fdr, rules)
    words = [
        DECISIONS[decision] if decision == NOT_CALLED else f"{DECISIONS[decision]} {TIERS[tier]}"
        for decision, tier in zip(decided.decision, decided.tier, strict=True)
    ]
    return decided, words


@pytest.mark.parametrize(("rules", "column"), [(RELAXED, 3), (CONSERVATIVE, 4)], ids=["relaxed", "conservative"])
def test_decisions_are_those_of_the_table(rules: CallRules, column: int) -> None:
    decided, words = decide_all([row[:3] for row in TABLE], rules, [0] * len(TABLE))
    assert words == [row[column] for row in TABLE]
    assert np.isnan(decided.p_virus).all()
    assert np.isnan(decided.fdr).all()


def test_reasons_are_in_words() -> None:
    rows = [(9000, 4, 0.97), (9000, 1, 0.97), (800, 3, 0.97), (9000, 9, 0.5), (9000, 0, np.nan), (2, 0, np.nan)]
    rows += [(9000, 9, 0.97), (9000, 9, 0.97), (9000, 2, 0.82)]
    decided, _ = decide_all(rows, CONSERVATIVE, [0, 0, 0, 0, 0, 2, 1, 0, 0])
    evidence = [row[1] for row in rows]
    reasons = [
        explain(reason, chunks, CONSERVATIVE) for reason, chunks in zip(decided.reason.tolist(), evidence, strict=True)
    ]
    assert reasons == [
        "tier lowered: 4 chunks with a stop-free frame, fewer than 5",
        "1 chunk with a stop-free frame, fewer than 2",
        "shorter than 1500 bp",
        "score above 0.2, below 0.8",
        "no chunk has a stop-free frame",
        "shorter than a codon",
        "a sequence of it was given up, see records.tsv",
        "",
        "",  # low as it is
    ]


@pytest.mark.parametrize("at_once", [2, 100_000])
def test_the_fdr_is_the_mean_of_what_is_expected_to_be_wrong_down_the_list(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(decisions, "COUNTED_AT_ONCE", at_once)
    score = np.array([0.7, np.nan, 0.9, 0.5, 0.7, 0.1])
    calibrated = curve(score, np.array([0.75, np.nan, 1.0, 0.5, 0.75, 0.0]))
    fdr = FalseDiscoveries(score, calibrated)
    # Down the list: 0; then (0 + 0.25 + 0.25) / 3 for both of 0.7; (0.5 + 0.5) / 4; (1 + 1) / 5.
    np.testing.assert_allclose(fdr.at(score), [0.5 / 3, np.nan, 0, 0.25, 0.5 / 3, 0.4])
    np.testing.assert_allclose(fdr.at(np.array([np.nan, 0.5])), [np.nan, 0.25])
    assert FalseDiscoveries(score[:0], calibrated).at(score[:0]).tolist() == []


def test_max_fdr_takes_the_place_of_the_score() -> None:
    rows = [(9000, 9, 0.7), (9000, 9, 0.9), (9000, 9, 0.5), (9000, 9, 0.7), (9000, 9, 0.1), (9000, 0, np.nan)]
    p_virus = np.array([0.75, 1.0, 0.5, 0.75, 0.0, np.nan])
    rules = replace(RELAXED, max_fdr=0.17)
    decided, words = decide_all(rows, rules, [0] * 6, p_virus)
    assert words == ["virus low", "virus high", "ambiguous low", "virus low", "non-viral high", "not called"]
    assert explain(int(decided.reason[2]), 9, rules) == "score above 0.4, beyond an FDR of 0.17"
    np.testing.assert_allclose(decided.fdr, [0.5 / 3, 0, 0.25, 0.5 / 3, 0.4, np.nan])
    np.testing.assert_array_equal(decided.p_virus, p_virus)
    assert decide_all(rows, replace(RELAXED, max_fdr=0.25), [0] * 6, p_virus)[1].count("virus low") == 3
    with pytest.raises(ConfigError, match=r"calls\.max_fdr: the classifier is not calibrated"):
        decide_all(rows, rules, [0] * 6)


def test_a_preset_sets_all_numbers_and_a_key_one() -> None:
    unset = dict.fromkeys(vars(RELAXED))
    assert choose_rules({"preset": "relaxed"}) == choose_rules({"preset": "relaxed", **unset}) == RELAXED
    assert choose_rules({"preset": "conservative", "min_chunks": 1}) == replace(CONSERVATIVE, min_chunks=1)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"virus_score": 0.3}, r"calls\.non_viral_score: 0\.4 is above virus_score, 0\.3"),
        ({"high_score": 0.7}, r"calls\.moderate_score: 0\.75 is above high_score, 0\.7"),
        ({"max_fdr": 0.1, "virus_score": 0.7}, r"calls\.virus_score: calls\.max_fdr takes its place"),
    ],
)
def test_rules_that_exclude_each_other_are_refused(keys: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        choose_rules({"preset": "relaxed", **keys})
    choose_rules({"preset": "relaxed", "max_fdr": 0.1, "non_viral_score": 0.9})
