"""The figures of the report, each a Vega-Lite chart made from the counts of :mod:`.tally`, drawn as SVG.

Only counts go into a chart: at most :data:`.ROWS` rows of samples, bins of histograms, cells of a grid for points. So a
figure of a thousand samples is as small as one of fifty. Where weights are synthetic, every figure says so in red.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import altair
import numpy as np

from ..errors import InputError
from ..files import atomic_text
from ..results.calibration import load_calibration
from ..results.classifier import NON_VIRAL, VIRUS
from .charts import (
    BLUE,
    GREY,
    NEUTRAL,
    SHORT_LABEL,
    VERMILION,
    WIDTH,
    Chart,
    Choices,
    Values,
    chart_of,
    colours_of,
    empty,
    head,
    outcome_colours,
    render,
    shades,
    shown,
    specify,
    whole,
    words,
)
from .pools import load, throughput
from .projection import embeddings
from .tally import LENGTH_BINS_A_DECADE, OUTCOMES, SCORE_BINS, Tally

UNCALIBRATED = "No labelled contigs calibrate the classifier: p_virus and fdr of a contig say uncalibrated."
UNTRAINED = "No classifier was trained, since a labelled sample failed."
FEW_EPOCHS = 10
QUARTERS = [0, 0.25, 0.5, 0.75, 1]
TENTHS = [tenth / 10 for tenth in range(11)]


def outcomes(tally: Tally, choices: Choices) -> Chart | str:
    """Share of every sample's records by outcome, and how many records it has."""
    samples = shown(tally.samples)
    names = [sample.name for sample in samples]
    values = [
        {"sample": sample.name, "outcome": words(outcome), "records": number, "order": OUTCOMES.index(outcome)}
        for sample in samples
        for outcome, number in sample.outcomes.items()
    ]
    if not values:
        return "No sample has a record."
    met = [outcome for outcome in OUTCOMES if any(sample.outcomes[outcome] for sample in samples)]
    y = altair.Y("sample:N", sort=names, title=None).axis(labelExpr=SHORT_LABEL)
    bars = (
        chart_of(values, width=WIDTH - 120)
        .mark_bar()
        .encode(
            x=altair.X("records:Q", stack="normalize", title="share of the records").axis(format="%", tickCount=5),
            y=y,
            color=outcome_colours(met),
            order="order:Q",
            tooltip=["sample:N", "outcome:N", altair.Tooltip("records:Q", format=",")],
        )
    )
    totals = [{"sample": sample.name, "records": f"{sample.records:,}"} for sample in samples]
    texts = chart_of(totals).mark_text(align="left", dx=4).encode(x=altair.value(WIDTH - 120), y=y, text="records:N")
    return bars + texts


def scores(tally: Tally, choices: Choices) -> Chart | str:
    """Histogram of contig scores over all samples, and each sample's as a row of shades."""
    samples = [sample for sample in shown(tally.samples) if sample.scores.any()]
    total = sum((sample.scores for sample in samples), np.zeros(SCORE_BINS, np.int64))
    if not total.any():
        return "No contig is called: none has a stop-free frame."
    edges = np.arange(SCORE_BINS + 1) / SCORE_BINS
    bins = list(zip(edges[:-1].round(4).tolist(), edges[1:].round(4).tolist(), strict=True))
    values = [
        {"from": start, "to": stop, "contigs": number}
        for (start, stop), number in zip(bins, total.tolist(), strict=True)
    ]
    x = altair.X("from:Q", title="contig score").bin("binned").scale(domain=[0, 1]).axis(values=TENTHS, grid=False)
    scale = ["from:Q", "to:Q"]
    bars = (
        chart_of(values, width=WIDTH, height=150)
        .mark_bar(color=NEUTRAL)
        .encode(
            x=x, x2="to:Q", y=whole("contigs", total.max()), tooltip=[*scale, altair.Tooltip("contigs:Q", format=",")]
        )
    )
    limits = {"non-viral": choices.rules.non_viral_score}
    if choices.rules.max_fdr is None:
        limits["virus"] = choices.rules.virus_score
    at = [{"score": score, "text": f"{side} {score:g}", "side": side} for side, score in limits.items()]
    rule = chart_of(at).mark_rule(strokeDash=[5, 3], strokeWidth=1.5).encode(x=altair.X("score:Q"))
    texts = (
        chart_of(at).mark_text(dy=-5, baseline="bottom").encode(x=altair.X("score:Q"), y=altair.value(0), text="text:N")
    )
    middle = {sample.name: _mean(sample.scores, (edges[:-1] + edges[1:]) / 2) for sample in samples}
    rows = [
        {"sample": sample.name, "from": start, "to": stop, "share": number / sample.scores.sum()}
        for sample in samples
        for (start, stop), number in zip(bins, sample.scores.tolist(), strict=True)
        if number
    ]
    names = sorted(middle, key=middle.__getitem__, reverse=True)
    below = shades(rows, names, "contigs of the sample").encode(x=x, x2="to:Q")
    return altair.vconcat(bars + rule + texts, below + rule).resolve_scale(color="independent")


def _mean(counts: np.ndarray, values: np.ndarray) -> float:
    """Mean of values that were met so many times."""
    return float((counts * values).sum() / counts.sum())


def lengths(tally: Tally, choices: Choices) -> Chart | str:
    """Contigs by length and outcome: how many, and which share of each length."""
    step = 10 ** (1 / LENGTH_BINS_A_DECADE)
    values = [
        {
            "from": start,
            "to": start * step,
            "outcome": words(outcome),
            "contigs": number,
            "order": OUTCOMES.index(outcome),
        }
        for (start, outcome), number in sorted(tally.lengths.items())
    ]
    if not values:
        return "No sample has a contig."
    met = [outcome for outcome in OUTCOMES if any(outcome == other for _, other in tally.lengths)]
    totals: Counter[float] = Counter()
    for (start, _), number in tally.lengths.items():
        totals[start] += number
    ticks = [digit * 10.0**power for power in range(8) for digit in (1, 2, 5)]
    x = altair.X("from:Q", title="contig length, bp").bin("binned")
    x = x.scale(type="log", nice=False, domain=[min(totals), max(totals) * step]).axis(
        format="~s", values=ticks, grid=False
    )
    bounds = [altair.Tooltip(f"{end}:Q", title=f"{end}, bp", format=",.0f") for end in ("from", "to")]
    counts = [{"from": start, "to": start * step, "contigs": number} for start, number in totals.items()]
    above = (
        chart_of(counts, width=WIDTH, height=90)
        .mark_bar(color=NEUTRAL, stroke="white")
        .encode(x=x.axis(None), x2="to:Q", y=whole("contigs", max(totals.values())))
    )
    below = (
        chart_of(values, width=WIDTH, height=180)
        .mark_bar(stroke="white")
        .encode(
            x=x,
            x2="to:Q",
            y=altair.Y("contigs:Q", stack="normalize", title="share of the contigs").axis(format="%"),
            color=outcome_colours(met),
            order="order:Q",
            tooltip=[*bounds, "outcome:N", altair.Tooltip("contigs:Q", format=",")],
        )
    )
    return altair.vconcat(above, below).resolve_scale(x="shared")


def frames(tally: Tally, choices: Choices) -> Chart | str:
    """Chunks by their number of stop-free frames: of all samples, and of each as a row of shades."""
    samples = [sample for sample in shown(tally.samples) if sample.frames.any()]
    total = sum((sample.frames for sample in samples), np.zeros(7, np.int64))
    if not total.any():
        return "No sample has a chunk."
    x = (
        altair.X("frames:O", title="stop-free frames of the chunk, of six")
        .axis(labelAngle=0)
        .scale(domain=list(range(7)))
    )
    values = [{"frames": number, "chunks": chunks} for number, chunks in enumerate(total.tolist())]
    above = chart_of(values, width=WIDTH, height=150).encode(x=x, y=whole("chunks", total.max()))
    labels = above.mark_text(dy=-6).encode(text=altair.Text("chunks:Q", format=","))
    rows = [
        {"sample": sample.name, "frames": number, "share": chunks / sample.frames.sum()}
        for sample in samples
        for number, chunks in enumerate(sample.frames.tolist())
        if chunks
    ]
    means = {sample.name: _mean(sample.frames, np.arange(len(sample.frames))) for sample in samples}
    below = shades(rows, sorted(means, key=means.__getitem__, reverse=True), "chunks of the sample").encode(x=x)
    return altair.vconcat(above.mark_bar(color=NEUTRAL) + labels, below).resolve_scale(color="independent")


def training(tally: Tally, choices: Choices) -> Chart | str:
    """Loss and held-out accuracy over the epochs."""
    if choices.classifier is None:
        return UNTRAINED
    rows = _read(
        choices.results / "classifier" / "history.tsv", ("epoch", "loss", "held_out_loss", "held_out_accuracy")
    )
    names = {"loss": "trained on", "held_out_loss": "held out"}
    values = [
        {"epoch": row["epoch"], "loss": row[column], "contigs": name} for row in rows for column, name in names.items()
    ]
    x = altair.X("epoch:Q", title="epoch").axis(format="d")
    if len(rows) <= FEW_EPOCHS:
        x = x.axis(format="d", values=[row["epoch"] for row in rows])
    left = (
        chart_of(values, width=220, height=190)
        .mark_line()
        .encode(
            x=x,
            y=altair.Y("loss:Q", title="loss, cross-entropy").scale(zero=True),
            color=colours_of("contigs", {"trained on": BLUE, "held out": VERMILION}, "").legend(orient="top"),
            strokeDash=altair.StrokeDash("contigs:N", sort=["trained on"], legend=None),
        )
    )
    right = (
        chart_of(rows, width=220, height=190)
        .mark_line(color=VERMILION, strokeDash=[4, 2])
        .encode(
            x=x,
            y=altair.Y("held_out_accuracy:Q", title="held-out frames called right")
            .axis(format="%")
            .scale(domain=[0, 1]),
        )
    )
    return altair.hconcat(left, right)


def confusion(tally: Tally, choices: Choices) -> Chart | str:
    """Held-out frames by label and prediction."""
    if choices.classifier is None:
        return UNTRAINED
    path = choices.results / "classifier" / "confusion.tsv"
    rows = _read(path, ("label", NON_VIRAL, VIRUS))
    values = []
    for row in rows:
        total = row[NON_VIRAL] + row[VIRUS]
        for prediction in (NON_VIRAL, VIRUS):
            share = row[prediction] / total if total else 0.0
            values.append(
                {
                    "label": row["label"],
                    "prediction": prediction,
                    "share": share,
                    "text": f"{row[prediction]:,.0f} ({share:.0%})",
                }
            )
    base = chart_of(values, width=400, height=170).encode(
        x=altair.X("prediction:N", title="predicted").axis(labelAngle=0, orient="top"),
        y=altair.Y("label:N", title="labelled"),
    )
    shade = altair.Color("share:Q", title=None).scale(scheme="blues", domain=[0, 1])
    colour = altair.condition("datum.share > 0.55", altair.value("white"), altair.value("black"))
    squares = base.mark_rect(stroke="white", strokeWidth=2).encode(color=shade.legend(None))
    return squares + base.mark_text(fontSize=14).encode(text="text:N", color=colour)


def calibration(tally: Tally, choices: Choices) -> Chart | str:
    """Share of viruses by probability, with its Brier score, and false discovery rates by score."""
    if choices.calibration is None:
        return UNCALIBRATED
    found = load_calibration(choices.calibration)
    if found.method == "none":
        return f"No calibration: {found.reason}."
    size = {"width": 230, "height": 230}
    share = altair.Scale(domain=[0, 1])
    shares = [altair.Tooltip(f"{name}:Q", format=".1%") for name in ("p_virus", "virus_share")]
    x = altair.X("p_virus:Q", title="probability of a virus").axis(format="%", values=QUARTERS).scale(share)
    y = altair.Y("virus_share:Q", title="share of viruses").axis(format="%", values=QUARTERS).scale(share)
    ends = [{"p_virus": end, "virus_share": end} for end in (0, 1)]
    even = chart_of(ends, **size).mark_line(color=GREY, strokeDash=[5, 3]).encode(x=x, y=y)
    points = (
        chart_of(map(asdict, found.reliability))
        .mark_point(filled=True, color=VERMILION, opacity=0.9)
        .encode(
            x=x,
            y=y,
            size=altair.Size("contigs:Q", title="contigs")
            .scale(range=[30, 250], domainMin=1)
            .legend(orient="bottom", format="~s"),
            tooltip=[*shares, altair.Tooltip("contigs:Q", format=",")],
        )
    )
    names = {"fdr": "estimated", "observed_fdr": "observed"}
    values = [
        {"score": cut.score, "contigs": cut.contigs, "rate": getattr(cut, column), "is": name}
        for cut in found.thresholds
        for column, name in names.items()
    ]
    lines = (
        chart_of(values, **size)
        .mark_line(point=True)
        .encode(
            x=altair.X("score:Q", title="contigs from this score upward").scale(zero=False, nice=False),
            y=altair.Y("rate:Q", title="false discovery rate").axis(format="%", tickCount=5).scale(domainMin=0),
            color=colours_of("is", {"estimated": BLUE, "observed": VERMILION}, "").legend(orient="bottom"),
            tooltip=[
                "score:Q",
                "is:N",
                altair.Tooltip("rate:Q", format=".1%"),
                altair.Tooltip("contigs:Q", format=","),
            ],
        )
    )
    contigs = f"{sum(found.contigs.values()):,} contigs, {found.method}"
    left = (even + points).properties(title=_subtitle(f"Brier score {found.brier:.3f} ({contigs})"))
    right = lines.properties(title=_subtitle("The list down to a score"))
    return altair.hconcat(left, right).resolve_scale(color="independent", size="independent")


def _subtitle(text: str) -> altair.TitleParams:
    return altair.TitleParams(text, anchor="start", fontSize=12, fontWeight="normal")


def _read(path: Path, columns: tuple[str, ...]) -> Values:
    """A table of the classifier; numbers as such."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if tuple(rows.fieldnames or ()) != columns:
                raise InputError(f"the columns are not {', '.join(columns)}; train the classifier again", path, 1)
            return [{name: cell if name == "label" else float(cell) for name, cell in row.items()} for row in rows]
    except (ValueError, TypeError):
        raise InputError("a cell is not a number; train the classifier again", path) from None


FIGURES: dict[str, tuple[str, str, Callable[[Tally, Choices], Chart | str]]] = {
    "outcomes": ("What became of every record", "A bar for each sample, divided by outcome.", outcomes),
    "scores": ("Contig scores", "A histogram of scores, and a row of shades for each sample.", scores),
    "lengths": ("Contig length and call", "Histograms of lengths: number of contigs, and share by outcome.", lengths),
    "frames": ("Stop-free frames per chunk", "A histogram of frames, and a row of shades for each sample.", frames),
    "embeddings": ("The embeddings, projected to a plane", "A map for each model, points by group.", embeddings),
    "training": ("Training of the classifier", "Loss and accuracy over the epochs, as lines.", training),
    "confusion": ("Held-out frames of the training samples", "A table of label against prediction.", confusion),
    "calibration": (
        "Calibration: probabilities against the truth",
        "Share of viruses among held-out contigs by probability, and false discovery rates by score.",
        calibration,
    ),
    "throughput": ("Throughput and use of the devices", "Tokens per second and busy share over time.", throughput),
    "load": ("Loading models against embedding", "Two bars: loading once, and in every sample.", load),
}
"""By name: title, what is to be seen for those who cannot see it, and the maker of a chart, or of why there is none."""


@dataclass(frozen=True)
class Figure:
    """A figure: its title, what it shows in words, and the chart, or why there is none."""

    title: str
    description: str
    chart: Chart | str

    def svg(self, synthetic: Sequence[str]) -> str:
        """As a file of its own, with its title."""
        return render(head(self._specified, self.title, synthetic))

    def specification(self, synthetic: Sequence[str]) -> dict[str, Any] | None:
        """For a page that has its title; None where there is nothing to show."""
        return None if isinstance(self.chart, str) else head(self._specified, "", synthetic)

    @cached_property
    def _specified(self) -> dict[str, Any]:
        return specify(empty(self.chart) if isinstance(self.chart, str) else self.chart, self.description)


def make_figure(name: str, tally: Tally, choices: Choices) -> Figure:
    """Make one of :data:`FIGURES`.

    Raises:
        InputError: a table of the classifier that is none.
        ConfigError: UMAP is asked for and not there.
    """
    title, description, make = FIGURES[name]
    return Figure(title, description, make(tally, choices))


def write_figures(names: Iterable[str], tally: Tally, choices: Choices) -> dict[str, Figure]:
    """Draw figures to ``figures/NAME.svg`` below the results, and remove others there, of earlier runs; by name."""
    directory = choices.results / "figures"
    directory.mkdir(exist_ok=True)
    made = {name: make_figure(name, tally, choices) for name in names}
    for path in directory.glob("*.svg"):
        if path.stem not in made:
            path.unlink()
    for name, figure in made.items():
        with atomic_text(directory / f"{name}.svg") as file:
            file.write(figure.svg(tally.synthetic))
    return made
