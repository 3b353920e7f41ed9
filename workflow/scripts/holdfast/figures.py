"""The figures of the report, each a Vega-Lite chart made from the counts of :mod:`tally`, drawn as SVG.

Only counts go into a chart: at most :data:`ROWS` rows of samples, bins of histograms, cells of a grid for points. So a
figure of a thousand samples is as small as one of fifty. Colours are Okabe and Ito's (2008), which people with any
kind of colour vision can tell apart. Where weights are synthetic, every figure says so in red.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair
import numpy as np
import vl_convert

from . import projection
from .calls import THRESHOLD
from .errors import InputError
from .files import atomic_text
from .pace import Moment
from .tally import LENGTH_BINS_A_DECADE, OUTCOMES, SCORE_BINS, Points, PoolTally, SampleTally, Tally

WIDTH = 520
ROWS = 40
POOLS = 6
GROUPS = 7
GRID_CELLS = 90
TIME_BINS = 60
RED = "#c00000"
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    *("#000000", "#e69f00", "#56b4e9", "#009e73"),
    *("#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
)
TENTHS = [tenth / 10 for tenth in range(11)]
GREY = "#b0b0b0"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, BLACK)
OUTCOME_COLOURS = dict(zip(OUTCOMES, (VERMILION, BLUE, GREEN, GREY, YELLOW, PURPLE, BLACK), strict=True))
GROUP_COLOURS = {
    "called virus": VERMILION,
    "called other": BLUE,
    "labelled virus": ORANGE,
    "labelled other": SKY,
    "contigs": GREY,
    "proteins": GREEN,
    "dna": PURPLE,
}
SHORT_LABEL = "length(datum.label) > 34 ? slice(datum.label, 0, 17) + '\u2026' + slice(datum.label, -16) : datum.label"
"""Both ends of a long name: names of one study differ at the end, as a rule."""

Chart = altair.Chart | altair.LayerChart | altair.HConcatChart | altair.VConcatChart
Values = list[dict[str, Any]]


@dataclass(frozen=True)
class Told:
    """What figures need beside the tally.

    Attributes:
        results: Directory of the results, in it ``classifier/``.
        threshold: Score from which on a contig is a virus.
        method: Of the projection, ``pca`` or ``umap``.
        seed: Of the choice of points and of UMAP.
    """

    results: Path
    threshold: float = THRESHOLD
    method: str = "pca"
    seed: int = 1


def draw(name: str, tally: Tally, told: Told) -> str:
    """Draw one of :data:`FIGURES`; SVG.

    Raises:
        InputError: a table of the classifier that is none.
        ConfigError: UMAP is asked for and not there.
    """
    title, make = FIGURES[name]
    warning = [f"Synthetic weights ({', '.join(sorted(tally.synthetic))}): this says nothing about biology."]
    heading = altair.TitleParams(
        title, anchor="start", fontSize=15, subtitle=warning if tally.synthetic else [], subtitleColor=RED, offset=12
    )
    room = {"left": 24, "top": 12, "right": 24, "bottom": 12}  # fonts differ, and some are wider than reckoned
    chart = make(tally, told).properties(title=heading, background="white", padding=room).configure_view(stroke=None)
    plain = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"}
    specification = (
        chart.configure_axis(labelLimit=260, **plain)
        .configure_legend(labelLimit=260, titleLimit=400, **plain)
        .to_dict()
    )
    drawn: str = vl_convert.vegalite_to_svg(specification)
    return drawn


def write(names: Iterable[str], tally: Tally, told: Told) -> dict[str, str]:
    """Draw figures to ``figures/NAME.svg`` below the results; SVG by name."""
    directory = told.results / "figures"
    directory.mkdir(exist_ok=True)
    drawn = {name: draw(name, tally, told) for name in names}
    for name, svg in drawn.items():
        with atomic_text(directory / f"{name}.svg") as file:
            file.write(svg)
    return drawn


def outcomes(tally: Tally, told: Told) -> Chart:
    """Share of every sample's records by outcome, and how many records it has."""
    samples = _shown(tally.samples)
    names = [sample.name for sample in samples]
    values = [
        {"sample": sample.name, "outcome": _words(outcome), "records": number, "order": OUTCOMES.index(outcome)}
        for sample in samples
        for outcome, number in sample.outcomes.items()
    ]
    if not values:
        return _nothing("No sample has a record.")
    met = [outcome for outcome in OUTCOMES if any(sample.outcomes[outcome] for sample in samples)]
    y = altair.Y("sample:N", sort=names, title=None).axis(labelExpr=SHORT_LABEL)
    bars = (
        _chart(values, width=WIDTH - 120)
        .mark_bar()
        .encode(
            x=altair.X("records:Q", stack="normalize", title="share of the records").axis(format="%", tickCount=5),
            y=y,
            color=_outcome_colours(met),
            order="order:Q",
        )
    )
    totals = [{"sample": sample.name, "records": f"{sample.records:,}"} for sample in samples]
    texts = _chart(totals).mark_text(align="left", dx=4).encode(x=altair.value(WIDTH - 120), y=y, text="records:N")
    return bars + texts


def scores(tally: Tally, told: Told) -> Chart:
    """Histogram of contig scores over all samples, and each sample's as a row of shades."""
    samples = [sample for sample in _shown(tally.samples) if sample.scores.any()]
    total = sum((sample.scores for sample in samples), np.zeros(SCORE_BINS, np.int64))
    if not total.any():
        return _nothing("No contig is called: none has an open frame.")
    edges = np.arange(SCORE_BINS + 1) / SCORE_BINS
    bins = list(zip(edges[:-1].round(4).tolist(), edges[1:].round(4).tolist(), strict=True))
    values = [
        {"from": start, "to": stop, "contigs": number, "call": "virus" if start >= told.threshold - 1e-9 else "other"}
        for (start, stop), number in zip(bins, total.tolist(), strict=True)
    ]
    x = altair.X("from:Q", title="contig score").bin("binned").scale(domain=[0, 1]).axis(values=TENTHS, grid=False)
    bars = (
        _chart(values, width=WIDTH, height=150)
        .mark_bar()
        .encode(
            x=x,
            x2="to:Q",
            y=altair.Y("contigs:Q", title="contigs").axis(format="~s", tickCount=4),
            color=_colours("call", {call: OUTCOME_COLOURS[call] for call in ("virus", "other")}, "").legend(
                orient="top"
            ),
        )
    )
    at = [{"threshold": told.threshold, "text": f"threshold {told.threshold:g}"}]
    rule = _chart(at).mark_rule(strokeDash=[5, 3], strokeWidth=1.5).encode(x=altair.X("threshold:Q"))
    text = (
        _chart(at)
        .mark_text(align="left", dx=4, dy=-5, baseline="bottom")
        .encode(x="threshold:Q", y=altair.value(0), text="text:N")
    )
    rows = [
        {"sample": sample.name, "from": start, "to": stop, "share": number / sample.scores.sum()}
        for sample in samples
        for (start, stop), number in zip(bins, sample.scores.tolist(), strict=True)
        if number
    ]
    shades = _shades(rows, samples, "contigs of the sample").encode(x=x, x2="to:Q")
    below = shades + rule
    return altair.vconcat(bars + rule + text, below).resolve_scale(color="independent")


def lengths(tally: Tally, told: Told) -> Chart:
    """Contigs by length and outcome: how many, and which share of each length."""
    step = 10 ** (1 / LENGTH_BINS_A_DECADE)
    values = [
        {
            "from": start,
            "to": start * step,
            "outcome": _words(outcome),
            "contigs": number,
            "order": OUTCOMES.index(outcome),
        }
        for (start, outcome), number in sorted(tally.lengths.items())
    ]
    if not values:
        return _nothing("No sample has a contig.")
    met = [outcome for outcome in OUTCOMES if any(outcome == other for _, other in tally.lengths)]
    totals: Counter[float] = Counter()
    for (start, _), number in tally.lengths.items():
        totals[start] += number
    ticks = [digit * 10.0**power for power in range(8) for digit in (1, 2, 5)]
    x = altair.X("from:Q", title="contig length, bp").bin("binned")
    x = x.scale(type="log", nice=False, domain=[min(totals), max(totals) * step]).axis(
        format="~s", values=ticks, grid=False
    )
    counts = [{"from": start, "to": start * step, "contigs": number} for start, number in totals.items()]
    above = (
        _chart(counts, width=WIDTH, height=90)
        .mark_bar(color=GREY, stroke="white")
        .encode(x=x.axis(None), x2="to:Q", y=altair.Y("contigs:Q", title="contigs").axis(format="~s", tickCount=4))
    )
    below = (
        _chart(values, width=WIDTH, height=180)
        .mark_bar(stroke="white")
        .encode(
            x=x,
            x2="to:Q",
            y=altair.Y("contigs:Q", stack="normalize", title="share of the contigs").axis(format="%"),
            color=_outcome_colours(met),
            order="order:Q",
        )
    )
    return altair.vconcat(above, below).resolve_scale(x="shared")


def frames(tally: Tally, told: Told) -> Chart:
    """Chunks by their number of open frames: of all samples, and of each as a row of shades."""
    samples = [sample for sample in _shown(tally.samples) if sample.frames.any()]
    total = sum((sample.frames for sample in samples), np.zeros(7, np.int64))
    if not total.any():
        return _nothing("No sample has a chunk.")
    x = altair.X("frames:O", title="open frames of the chunk, of six").axis(labelAngle=0).scale(domain=list(range(7)))
    values = [{"frames": number, "chunks": chunks} for number, chunks in enumerate(total.tolist())]
    above = _chart(values, width=WIDTH, height=150).encode(
        x=x, y=altair.Y("chunks:Q", title="chunks").axis(format="~s", tickCount=4)
    )
    labels = above.mark_text(dy=-6).encode(text=altair.Text("chunks:Q", format=","))
    rows = [
        {"sample": sample.name, "frames": number, "share": chunks / sample.frames.sum()}
        for sample in samples
        for number, chunks in enumerate(sample.frames.tolist())
        if chunks
    ]
    below = _shades(rows, samples, "chunks of the sample").encode(x=x)
    return altair.vconcat(above.mark_bar(color=BLUE) + labels, below).resolve_scale(color="independent")


def embeddings(tally: Tally, told: Told) -> Chart:
    """A projection of each model's embeddings, as cells of a grid."""
    maps = {model: points for model, points in sorted(tally.points.items()) if len(points.matrix) >= 3}
    if not maps:
        return _nothing("Fewer than three sequences are embedded: there is nothing to project.")
    kept = {
        group for group, _ in Counter(group for points in maps.values() for group in points.groups).most_common(GROUPS)
    }
    groups = {model: [group if group in kept else OTHERS for group in points.groups] for model, points in maps.items()}
    known = [*GROUP_COLOURS, *sorted(kept - GROUP_COLOURS.keys()), OTHERS]
    met = sorted({group for each in groups.values() for group in each}, key=known.index)
    spare = iter(PALETTE)
    colours = {group: GREY if group == OTHERS else GROUP_COLOURS.get(group) or next(spare) for group in met}
    return altair.hconcat(*(_map(model, points, groups[model], colours, told) for model, points in maps.items()))


def _map(model: str, points: Points, groups: list[str], colours: Mapping[str, str], told: Told) -> Chart:
    if told.method == "umap":
        places, titles = projection.umap(points.matrix, told.seed), ["UMAP 1", "UMAP 2"]
    else:
        places, shares = projection.pca(points.matrix)
        titles = [f"component {number}, {share:.0%} of the variance" for number, share in enumerate(shares, 1)]
    size = float(np.ptp(places, axis=0).max() or 1) / GRID_CELLS
    cells = Counter(zip(*(places / size).round().astype(int).T.tolist(), groups, strict=True))
    values = [
        {"x": round(x * size, 4), "y": round(y * size, 4), "group": group, "sequences": number}
        for (x, y, group), number in cells.items()
    ]
    few = f"{len(points.matrix):,} of {points.rows:,}" if len(points.matrix) < points.rows else f"{points.rows:,}"
    heading = altair.TitleParams(
        MODEL_NAMES.get(model, model), fontSize=12, anchor="start", subtitle=f"{few} sequences, seed {told.seed}"
    )
    legend = altair.Legend(orient="bottom", columns=2, symbolOpacity=1, labelExpr=SHORT_LABEL)
    chart = _chart(values, width=250, height=250, title=heading).mark_circle(opacity=0.65)
    return chart.encode(
        x=altair.X("x:Q", title=titles[0]).scale(zero=False),
        y=altair.Y("y:Q", title=titles[1]).scale(zero=False),
        size=altair.Size("sequences:Q").scale(range=[16, 160], domainMin=1).legend(None),
        color=_colours("group", colours, "").legend(legend),
    )


def training(tally: Tally, told: Told) -> Chart:
    """Loss and held-out accuracy over the epochs."""
    rows = _read(told.results / "classifier" / "history.tsv", ("epoch", "loss", "held_out_loss", "held_out_accuracy"))
    names = {"loss": "trained on", "held_out_loss": "held out"}
    values = [
        {"epoch": row["epoch"], "loss": row[column], "contigs": name} for row in rows for column, name in names.items()
    ]
    x = altair.X("epoch:Q", title="epoch").axis(format="d", tickMinStep=1)
    left = (
        _chart(values, width=220, height=190)
        .mark_line()
        .encode(
            x=x,
            y=altair.Y("loss:Q", title="loss, cross-entropy").scale(zero=True),
            color=_colours("contigs", {"trained on": BLUE, "held out": VERMILION}, "").legend(orient="top"),
            strokeDash=altair.StrokeDash("contigs:N", sort=["trained on"], legend=None),
        )
    )
    right = (
        _chart(rows, width=220, height=190)
        .mark_line(color=VERMILION, strokeDash=[4, 2])
        .encode(
            x=x,
            y=altair.Y("held_out_accuracy:Q", title="held-out frames called right")
            .axis(format="%")
            .scale(domain=[0, 1]),
        )
    )
    return altair.hconcat(left, right)


def confusion(tally: Tally, told: Told) -> Chart:
    """Held-out frames by label and prediction."""
    path = told.results / "classifier" / "confusion.tsv"
    rows = _read(path, ("label", "other", "virus"))
    values = []
    for row in rows:
        total = row["other"] + row["virus"]
        for prediction in ("other", "virus"):
            share = row[prediction] / total if total else 0.0
            values.append(
                {
                    "label": row["label"],
                    "prediction": prediction,
                    "share": share,
                    "text": f"{row[prediction]:,.0f} ({share:.0%})",
                }
            )
    base = _chart(values, width=400, height=170).encode(
        x=altair.X("prediction:N", title="predicted").axis(labelAngle=0, orient="top"),
        y=altair.Y("label:N", title="labelled"),
    )
    shades = altair.Color("share:Q", title=None).scale(scheme="blues", domain=[0, 1])
    colour = altair.condition("datum.share > 0.55", altair.value("white"), altair.value("black"))
    squares = base.mark_rect(stroke="white", strokeWidth=2).encode(color=shades.legend(None))
    return squares + base.mark_text(fontSize=14).encode(text="text:N", color=colour)


def throughput(tally: Tally, told: Told) -> Chart:
    """Tokens per second and busy share of the devices over the life of each pool."""
    known = [pool for pool in tally.pools.values() if len(pool.moments) > 1]
    pools = sorted(known, key=lambda pool: pool.tokens, reverse=True)[:POOLS]
    values = [row for pool in pools for row in _pace(pool)]
    if not values:
        return _nothing("No pool of these samples left a record of its pace.")
    names = [_pool_name(pool) for pool in sorted(pools, key=lambda pool: pool.moments[0].time_s)]
    colours = _colours("pool", dict(zip(names, PALETTE, strict=False)), "pool")
    legend = colours.legend(orient="top", columns=1, labelLimit=WIDTH) if len(names) > 1 else colours.legend(None)
    minutes = max(row["seconds"] for row in values) > 600
    if minutes:
        values = [{**row, "seconds": row["seconds"] / 60} for row in values]
    unit = "min" if minutes else "s"
    base = (
        _chart(values, width=WIDTH, height=130)
        .mark_line(interpolate="step-after")
        .encode(x=altair.X("seconds:Q", title=f"time since the pool was ready, {unit}").scale(nice=False), color=legend)
    )
    above = base.encode(y=altair.Y("tokens_per_s:Q", title="tokens per second").axis(format="~s"))
    below = base.encode(
        y=altair.Y("busy:Q", title="devices at work").axis(format="%").scale(domainMin=0, domainMax=1, clamp=True)
    )
    return altair.vconcat(above, below)


def load(tally: Tally, told: Told) -> Chart:
    """Seconds of loading models and of work, as they were and as they would be with a load in every sample."""
    pools = tally.pools.values()
    work_s = sum(pool.device_s for pool in pools)
    once_s = sum(pool.load_s for pool in pools)
    each_s = sum(pool.load_s * pool.samples for pool in pools)
    number = len(tally.pools)
    rows = {
        f"this run: {number} load{'' if number == 1 else 's'}": (once_s, work_s),
        f"a load in each of {sum(pool.samples for pool in pools):,} samples": (each_s, work_s),
    }
    values = [
        {"way": way, "seconds": round(seconds, 3), "part": part, "order": order}
        for way, pair in rows.items()
        for order, (part, seconds) in enumerate(zip(("loading models", "embedding"), pair, strict=True))
    ]
    y = altair.Y("way:N", sort=list(rows), title=None)
    bars = (
        _chart(values, width=WIDTH - 120)
        .mark_bar()
        .encode(
            x=altair.X("seconds:Q", stack="zero", title="seconds on a device").axis(tickCount=5),
            y=y,
            color=_colours("part", {"loading models": ORANGE, "embedding": BLUE}, "").legend(orient="top"),
            order="order:Q",
        )
    )
    shares = [{"way": way, "end": sum(pair), "text": _share(*pair)} for way, pair in rows.items()]
    texts = _chart(shares).mark_text(align="left", dx=4).encode(x="end:Q", y=y, text="text:N")
    return bars + texts


def _share(load_s: float, work_s: float) -> str:
    return f"{load_s / (load_s + work_s):.0%} loading" if load_s + work_s else ""


def _pace(pool: PoolTally) -> Values:
    """Tokens/s and busy share in bins of the pool's life; work between two moments is taken to be even."""
    times, devices, tokens, device_s = (
        np.array(column, float) for column in zip(*map(_numbers, pool.moments), strict=True)
    )
    edges = np.linspace(times[0], times[-1], min(TIME_BINS, max(2, int(times[-1] - times[0]))) + 1)
    width = float(edges[1] - edges[0])
    if width <= 0:
        return []
    rates = np.diff(np.interp(edges, times, tokens)) / width
    present = np.interp((edges[:-1] + edges[1:]) / 2, times, devices)
    busy = np.diff(np.interp(edges, times, device_s)) / width / np.maximum(present, 1)
    columns = (edges - times[0], [*rates, rates[-1]], [*busy, busy[-1]])
    return [
        {
            "pool": _pool_name(pool),
            "seconds": round(float(at), 2),
            "tokens_per_s": round(float(rate), 1),
            "busy": round(float(share), 4),
        }
        for at, rate, share in zip(*columns, strict=True)
    ]


def _numbers(moment: Moment) -> tuple[float, int, int, float]:
    return moment.time_s, moment.devices, moment.tokens, moment.device_s


def _pool_name(pool: PoolTally) -> str:
    return f"{pool.name} ({pool.devices})"


OTHERS = "others"
MODEL_NAMES = {"esm2": "ESM-2", "dnabert_s": "DNABERT-S"}


def _shown(samples: Sequence[SampleTally]) -> list[SampleTally]:
    """At most :data:`ROWS` rows: of more samples, those with the most viruses, then records; the rest in one row."""
    if len(samples) <= ROWS:
        return list(samples)
    ranked = sorted(samples, key=lambda sample: (-sample.outcomes["virus"], -sample.records, sample.name))
    rest = SampleTally(f"({len(samples) - ROWS + 1:,} other samples)")
    for sample in ranked[ROWS - 1 :]:
        rest.add(sample)
    return [*ranked[: ROWS - 1], rest]


def _chart(values: Iterable[Mapping[str, Any]], **properties: Any) -> altair.Chart:
    return altair.Chart(altair.Data(values=list(values)), **properties)


def _shades(values: Values, samples: Sequence[SampleTally], of_what: str) -> altair.Chart:
    """A row of shaded cells for each sample; the caller says where they lie along x."""
    names = [sample.name for sample in samples]
    shade = altair.Color("share:Q", title=f"share of the {of_what}").scale(scheme="blues", domainMin=0)
    return (
        _chart(values, width=WIDTH, height=altair.Step(16))
        .mark_rect()
        .encode(
            y=altair.Y("sample:N", sort=names, title=None).axis(labelExpr=SHORT_LABEL),
            color=shade.legend(format="%", orient="bottom", gradientLength=200),
        )
    )


def _outcome_colours(met: Sequence[str]) -> altair.Color:
    colours = _colours("outcome", {_words(outcome): OUTCOME_COLOURS[outcome] for outcome in met}, "")
    return colours.legend(orient="top")


def _colours(field: str, colours: Mapping[str, str], title: str) -> altair.Color:
    scale = altair.Scale(domain=list(colours), range=list(colours.values()))
    return altair.Color(f"{field}:N", title=title or None, scale=scale)


def _nothing(reason: str) -> Chart:
    """A figure that says why it is empty."""
    return (
        _chart([{"text": reason}], width=WIDTH, height=60)
        .mark_text(align="left", fontSize=13)
        .encode(x=altair.value(0), text="text:N")
    )


def _words(outcome: str) -> str:
    return outcome.replace("_", " ")


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


FIGURES: dict[str, tuple[str, Callable[[Tally, Told], Chart]]] = {
    "outcomes": ("What became of every record", outcomes),
    "scores": ("Contig scores", scores),
    "lengths": ("Contig length and call", lengths),
    "frames": ("Open frames per chunk", frames),
    "embeddings": ("The embeddings, projected to a plane", embeddings),
    "training": ("Training of the classifier", training),
    "confusion": ("Held-out frames of the training samples", confusion),
    "throughput": ("Throughput and use of the devices", throughput),
    "load": ("Loading models against embedding", load),
}
"""By name: title and maker."""
