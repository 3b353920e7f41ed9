"""What all charts of the report share: choices, colours, and the parts that several figures are made of.

Colours are Okabe and Ito's (2008), which people with any kind of colour vision can tell apart.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair
import vl_convert

from ..results.classifier import VIRUS
from ..results.presets import PRESETS, CallRules
from .tally import SampleTally

WIDTH = 520
ROWS = 40
RED = "#c00000"
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    *("#000000", "#e69f00", "#56b4e9", "#009e73"),
    *("#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
)
GREY, PALE_GREEN = "#b0b0b0", "#8fd4bd"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, BLACK)
NEUTRAL = "#5f7480"
"""Of bars that count all together: no category has it."""
OUTCOME_COLOURS = {
    "virus": VERMILION,
    "ambiguous": ORANGE,
    "non-viral": BLUE,
    "not called": GREY,
    "embedded": GREEN,
    "truncated": SKY,
    "windowed": PALE_GREEN,
    "no_stop_free_frame": "#d9d9d9",
    "too_short": YELLOW,
    "too_long": PURPLE,
    "bad_letters": "#e6a0c4",
    "failed": BLACK,
}
SHORT_LABEL = "length(datum.label) > 34 ? slice(datum.label, 0, 17) + '\u2026' + slice(datum.label, -16) : datum.label"
"""Both ends of a long name: names of one study differ at the end, as a rule."""

Chart = altair.Chart | altair.LayerChart | altair.ConcatChart | altair.HConcatChart | altair.VConcatChart
Values = list[dict[str, Any]]


@dataclass(frozen=True)
class Choices:
    """What figures need beside the tally.

    Attributes:
        results: Directory of the results, in it ``classifier/``.
        classifier: That contigs were called with; None where there is none.
        calibration: What calibrates it, ``calibration.json``; likewise.
        rules: By which contigs were called.
        method: Of the projection, ``pca`` or ``umap``.
        seed: Of the choice of points and of UMAP.
    """

    results: Path
    classifier: Path | None = None
    calibration: Path | None = None
    rules: CallRules = PRESETS["relaxed"]
    method: str = "pca"
    seed: int = 1


def specify(chart: Chart, description: str) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, without a heading.

    Args:
        chart: What to draw.
        description: What it shows, for those who cannot see it.
    """
    room = {"left": 24, "top": 12, "right": 24, "bottom": 12}  # fonts differ, and some are wider than vl_convert's
    plain = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"}
    specification: dict[str, Any] = (
        chart.properties(background="white", padding=room, description=description)
        .configure_view(stroke=None)
        .configure_axis(labelLimit=260, **plain)
        .configure_legend(labelLimit=260, titleLimit=400, **plain)
        .configure_mark(tooltip={"content": "encoding"})
        .to_dict(validate=False)  # a second, and the tests do
    )
    return specification


def head(specification: dict[str, Any], title: str, synthetic: Sequence[str]) -> dict[str, Any]:
    """A specification with a heading.

    Args:
        specification: As :func:`specify` gives it.
        title: Its heading; empty on the page, which has headings of its own.
        synthetic: Models whose weights are random, which is then said in red.
    """
    warning = [f"Synthetic weights ({', '.join(synthetic)}): this says nothing about biology."] if synthetic else []
    if not title and not warning:
        return specification
    heading = altair.TitleParams(title, anchor="start", fontSize=15, subtitle=warning, subtitleColor=RED, offset=12)
    return {**specification, "title": heading.to_dict()}


def render(specification: dict[str, Any]) -> str:
    """Draw a specification; SVG."""
    drawn: str = vl_convert.vegalite_to_svg(specification)
    return drawn


def shown(samples: Sequence[SampleTally]) -> list[SampleTally]:
    """At most :data:`ROWS` rows: of more samples, those with the most viruses, then records; the rest in one row."""
    if len(samples) <= ROWS:
        return list(samples)
    ranked = sorted(samples, key=lambda sample: (-sample.outcomes[VIRUS], -sample.records, sample.name))
    rest = SampleTally(f"({len(samples) - ROWS + 1:,} other samples)")
    for sample in ranked[ROWS - 1 :]:
        rest.add(sample)
    return [*ranked[: ROWS - 1], rest]


def chart_of(values: Iterable[Mapping[str, Any]], **properties: Any) -> altair.Chart:
    """A chart of these rows, whatever its marks will be."""
    return altair.Chart(altair.Data(values=list(values)), **properties)


def whole(title: str, largest: float) -> altair.Y:
    """An axis of counts up to the largest, with whole ticks; Vega's own tickMinStep leaves halves between few."""
    y = altair.Y(f"{title}:Q", title=title).axis(format="~s", tickCount=4)
    return y.axis(format="d", values=list(range(int(largest) + 1))) if largest < 5 else y


def shades(values: Values, names: Sequence[str], of_what: str) -> altair.Chart:
    """A row of shaded cells for each sample, in this order; the caller says where they lie along x."""
    shade = altair.Color("share:Q", title=f"share of the {of_what}").scale(scheme="blues", domainMin=0)
    return (
        chart_of(values, width=WIDTH, height=altair.Step(16))
        .mark_rect()
        .encode(
            y=altair.Y("sample:N", sort=list(names), title=None).axis(labelExpr=SHORT_LABEL),
            tooltip=["sample:N", altair.Tooltip("share:Q", format=".1%")],
            color=shade.legend(format="%", orient="bottom", gradientLength=200),
        )
    )


def outcome_colours(met: Sequence[str]) -> altair.Color:
    """The colour of each outcome that is met, with its legend."""
    colours = colours_of("outcome", {words(outcome): OUTCOME_COLOURS[outcome] for outcome in met}, "")
    return colours.legend(orient="top")


def colours_of(field: str, colours: Mapping[str, str], title: str) -> altair.Color:
    """Colours by the values of a field; an empty title leaves the legend without one."""
    scale = altair.Scale(domain=list(colours), range=list(colours.values()))
    return altair.Color(f"{field}:N", title=title or None, scale=scale)


def empty(reason: str) -> Chart:
    """What is drawn where there is nothing to show: one line that says why."""
    return (
        chart_of([{"text": reason}], width=WIDTH, height=24)
        .mark_text(align="left", fontSize=13)
        .encode(x=altair.value(0), text="text:N")
    )


def words(outcome: str) -> str:
    """An outcome as people read it."""
    return outcome.replace("stop_free", "stop-free").replace("_", " ")
