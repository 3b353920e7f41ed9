"""The figures of the report, each a Vega-Lite chart made from the counts of :mod:`.tally`, drawn as SVG.

Only counts go into a chart: at most :data:`.ROWS` rows of samples, bins of histograms, cells of a grid for points. So a
figure of a thousand samples is as small as one of fifty. Where weights are synthetic, every figure says so in red.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import altair
import numpy as np

from ..errors import InputError
from ..files import atomic_text
from ..results.calls import NON_VIRAL, VIRUS
from ..spool.progress import Moment
from .charts import (
    BLUE,
    GREY,
    ORANGE,
    OUTCOME_COLOURS,
    PALETTE,
    SHORT_LABEL,
    VERMILION,
    WIDTH,
    Chart,
    Choices,
    Values,
    chart_of,
    colours_of,
    nothing,
    outcome_colours,
    render,
    shades,
    shown,
    words,
)
from .projection import embeddings
from .tally import LENGTH_BINS_A_DECADE, OUTCOMES, SCORE_BINS, PoolTally, Tally

POOLS = 6
TIME_BINS = 60
UNTRAINED = "No classifier was trained, since a labelled sample failed."
TENTHS = [tenth / 10 for tenth in range(11)]


def outcomes(tally: Tally, choices: Choices) -> Chart:
    """Share of every sample's records by outcome, and how many records it has."""
    samples = shown(tally.samples)
    names = [sample.name for sample in samples]
    values = [
        {"sample": sample.name, "outcome": words(outcome), "records": number, "order": OUTCOMES.index(outcome)}
        for sample in samples
        for outcome, number in sample.outcomes.items()
    ]
    if not values:
        return nothing("No sample has a record.")
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
        )
    )
    totals = [{"sample": sample.name, "records": f"{sample.records:,}"} for sample in samples]
    texts = chart_of(totals).mark_text(align="left", dx=4).encode(x=altair.value(WIDTH - 120), y=y, text="records:N")
    return bars + texts


def scores(tally: Tally, choices: Choices) -> Chart:
    """Histogram of contig scores over all samples, and each sample's as a row of shades."""
    samples = [sample for sample in shown(tally.samples) if sample.scores.any()]
    total = sum((sample.scores for sample in samples), np.zeros(SCORE_BINS, np.int64))
    if not total.any():
        return nothing("No contig is called: none has a stop-free frame.")
    edges = np.arange(SCORE_BINS + 1) / SCORE_BINS
    bins = list(zip(edges[:-1].round(4).tolist(), edges[1:].round(4).tolist(), strict=True))
    values = [
        {
            "from": start,
            "to": stop,
            "contigs": number,
            "call": VIRUS if start >= choices.threshold - 1e-9 else NON_VIRAL,
        }
        for (start, stop), number in zip(bins, total.tolist(), strict=True)
    ]
    x = altair.X("from:Q", title="contig score").bin("binned").scale(domain=[0, 1]).axis(values=TENTHS, grid=False)
    bars = (
        chart_of(values, width=WIDTH, height=150)
        .mark_bar()
        .encode(
            x=x,
            x2="to:Q",
            y=altair.Y("contigs:Q", title="contigs").axis(format="~s", tickCount=4),
            color=colours_of("call", {call: OUTCOME_COLOURS[call] for call in (VIRUS, NON_VIRAL)}, "").legend(
                orient="top"
            ),
        )
    )
    at = [{"threshold": choices.threshold, "text": f"threshold {choices.threshold:g}"}]
    rule = chart_of(at).mark_rule(strokeDash=[5, 3], strokeWidth=1.5).encode(x=altair.X("threshold:Q"))
    text = (
        chart_of(at)
        .mark_text(align="left", dx=4, dy=-5, baseline="bottom")
        .encode(x="threshold:Q", y=altair.value(0), text="text:N")
    )
    rows = [
        {"sample": sample.name, "from": start, "to": stop, "share": number / sample.scores.sum()}
        for sample in samples
        for (start, stop), number in zip(bins, sample.scores.tolist(), strict=True)
        if number
    ]
    below = shades(rows, samples, "contigs of the sample").encode(x=x, x2="to:Q")
    return altair.vconcat(bars + rule + text, below + rule).resolve_scale(color="independent")


def lengths(tally: Tally, choices: Choices) -> Chart:
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
        return nothing("No sample has a contig.")
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
        chart_of(counts, width=WIDTH, height=90)
        .mark_bar(color=GREY, stroke="white")
        .encode(x=x.axis(None), x2="to:Q", y=altair.Y("contigs:Q", title="contigs").axis(format="~s", tickCount=4))
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
        )
    )
    return altair.vconcat(above, below).resolve_scale(x="shared")


def frames(tally: Tally, choices: Choices) -> Chart:
    """Chunks by their number of stop-free frames: of all samples, and of each as a row of shades."""
    samples = [sample for sample in shown(tally.samples) if sample.frames.any()]
    total = sum((sample.frames for sample in samples), np.zeros(7, np.int64))
    if not total.any():
        return nothing("No sample has a chunk.")
    x = (
        altair.X("frames:O", title="stop-free frames of the chunk, of six")
        .axis(labelAngle=0)
        .scale(domain=list(range(7)))
    )
    values = [{"frames": number, "chunks": chunks} for number, chunks in enumerate(total.tolist())]
    above = chart_of(values, width=WIDTH, height=150).encode(
        x=x, y=altair.Y("chunks:Q", title="chunks").axis(format="~s", tickCount=4)
    )
    labels = above.mark_text(dy=-6).encode(text=altair.Text("chunks:Q", format=","))
    rows = [
        {"sample": sample.name, "frames": number, "share": chunks / sample.frames.sum()}
        for sample in samples
        for number, chunks in enumerate(sample.frames.tolist())
        if chunks
    ]
    below = shades(rows, samples, "chunks of the sample").encode(x=x)
    return altair.vconcat(above.mark_bar(color=BLUE) + labels, below).resolve_scale(color="independent")


def training(tally: Tally, choices: Choices) -> Chart:
    """Loss and held-out accuracy over the epochs."""
    if choices.classifier is None:
        return nothing(UNTRAINED)
    rows = _read(
        choices.results / "classifier" / "history.tsv", ("epoch", "loss", "held_out_loss", "held_out_accuracy")
    )
    names = {"loss": "trained on", "held_out_loss": "held out"}
    values = [
        {"epoch": row["epoch"], "loss": row[column], "contigs": name} for row in rows for column, name in names.items()
    ]
    x = altair.X("epoch:Q", title="epoch").axis(format="d", tickMinStep=1)
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


def confusion(tally: Tally, choices: Choices) -> Chart:
    """Held-out frames by label and prediction."""
    if choices.classifier is None:
        return nothing(UNTRAINED)
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


def throughput(tally: Tally, choices: Choices) -> Chart:
    """Tokens per second and busy share of the devices over the life of each pool."""
    known = [pool for pool in tally.pools.values() if len(pool.moments) > 1]
    pools = sorted(known, key=lambda pool: pool.tokens, reverse=True)[:POOLS]
    values = [row for pool in pools for row in _pace(pool)]
    if not values:
        return nothing("No pool of these samples left its history.")
    names = [_pool_name(pool) for pool in sorted(pools, key=lambda pool: pool.moments[0].time_s)]
    colours = colours_of("pool", dict(zip(names, PALETTE, strict=False)), "pool")
    legend = colours.legend(orient="top", columns=1, labelLimit=WIDTH) if len(names) > 1 else colours.legend(None)
    minutes = max(row["seconds"] for row in values) > 600
    if minutes:
        values = [{**row, "seconds": row["seconds"] / 60} for row in values]
    unit = "min" if minutes else "s"
    base = (
        chart_of(values, width=WIDTH, height=130)
        .mark_line(interpolate="step-after")
        .encode(x=altair.X("seconds:Q", title=f"time since the pool was ready, {unit}").scale(nice=False), color=legend)
    )
    above = base.encode(y=altair.Y("tokens_per_s:Q", title="tokens per second").axis(format="~s"))
    below = base.encode(
        y=altair.Y("busy:Q", title="devices at work").axis(format="%").scale(domainMin=0, domainMax=1, clamp=True)
    )
    return altair.vconcat(above, below)


def load(tally: Tally, choices: Choices) -> Chart:
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
        chart_of(values, width=WIDTH - 120)
        .mark_bar()
        .encode(
            x=altair.X("seconds:Q", stack="zero", title="seconds on a device").axis(tickCount=5),
            y=y,
            color=colours_of("part", {"loading models": ORANGE, "embedding": BLUE}, "").legend(orient="top"),
            order="order:Q",
        )
    )
    shares = [{"way": way, "end": sum(pair), "text": _share(*pair)} for way, pair in rows.items()]
    texts = chart_of(shares).mark_text(align="left", dx=4).encode(x="end:Q", y=y, text="text:N")
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


FIGURES: dict[str, tuple[str, Callable[[Tally, Choices], Chart]]] = {
    "outcomes": ("What became of every record", outcomes),
    "scores": ("Contig scores", scores),
    "lengths": ("Contig length and call", lengths),
    "frames": ("Stop-free frames per chunk", frames),
    "embeddings": ("The embeddings, projected to a plane", embeddings),
    "training": ("Training of the classifier", training),
    "confusion": ("Held-out frames of the training samples", confusion),
    "throughput": ("Throughput and use of the devices", throughput),
    "load": ("Loading models against embedding", load),
}
"""By name: title and maker."""


def draw_figure(name: str, tally: Tally, choices: Choices) -> str:
    """Draw one of :data:`FIGURES`; SVG.

    Raises:
        InputError: a table of the classifier that is none.
        ConfigError: UMAP is asked for and not there.
    """
    title, make = FIGURES[name]
    return render(make(tally, choices), title, tally.synthetic)


def write_figures(names: Iterable[str], tally: Tally, choices: Choices) -> dict[str, str]:
    """Draw figures to ``figures/NAME.svg`` below the results; SVG by name."""
    directory = choices.results / "figures"
    directory.mkdir(exist_ok=True)
    drawn = {name: draw_figure(name, tally, choices) for name in names}
    for name, svg in drawn.items():
        with atomic_text(directory / f"{name}.svg") as file:
            file.write(svg)
    return drawn
