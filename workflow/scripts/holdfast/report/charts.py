"""What all charts of the report share: choices, colours, and the parts that several figures are made of.

Colours are Okabe and Ito's (2008), which people with any kind of colour vision can tell apart.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair
import vl_convert

from ..results.calls import THRESHOLD, VIRUS
from .tally import OUTCOMES, SampleTally

WIDTH = 520
ROWS = 40
RED = "#c00000"
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    *("#000000", "#e69f00", "#56b4e9", "#009e73"),
    *("#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
)
GREY, PALE_GREEN = "#b0b0b0", "#8fd4bd"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW, BLACK)
OUTCOME_COLOURS = dict(
    zip(OUTCOMES, (VERMILION, BLUE, GREEN, SKY, PALE_GREEN, GREY, YELLOW, PURPLE, ORANGE, BLACK), strict=True)
)
SHORT_LABEL = "length(datum.label) > 34 ? slice(datum.label, 0, 17) + '\u2026' + slice(datum.label, -16) : datum.label"
"""Both ends of a long name: names of one study differ at the end, as a rule."""

Chart = altair.Chart | altair.LayerChart | altair.HConcatChart | altair.VConcatChart
Values = list[dict[str, Any]]


@dataclass(frozen=True)
class Choices:
    """What figures need beside the tally.

    Attributes:
        results: Directory of the results, in it ``classifier/``.
        classifier: That contigs were called with; None where there is none.
        threshold: Score from which a contig is a virus.
        method: Of the projection, ``pca`` or ``umap``.
        seed: Of the choice of points and of UMAP.
    """

    results: Path
    classifier: Path | None = None
    threshold: float = THRESHOLD
    method: str = "pca"
    seed: int = 1


def render(chart: Chart, title: str, synthetic: Iterable[str]) -> str:
    """Draw a chart; SVG.

    Args:
        chart: What to draw.
        title: Its heading.
        synthetic: Models whose weights are random, which the heading then says.
    """
    models = ", ".join(sorted(synthetic))
    warning = [f"Synthetic weights ({models}): this says nothing about biology."] if models else []
    heading = altair.TitleParams(title, anchor="start", fontSize=15, subtitle=warning, subtitleColor=RED, offset=12)
    room = {"left": 24, "top": 12, "right": 24, "bottom": 12}  # fonts differ, and some are wider than vl_convert's
    plain = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"}
    specification = (
        chart.properties(title=heading, background="white", padding=room)
        .configure_view(stroke=None)
        .configure_axis(labelLimit=260, **plain)
        .configure_legend(labelLimit=260, titleLimit=400, **plain)
        .to_dict()
    )
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


def shades(values: Values, samples: Sequence[SampleTally], of_what: str) -> altair.Chart:
    """A row of shaded cells for each sample; the caller says where they lie along x."""
    names = [sample.name for sample in samples]
    shade = altair.Color("share:Q", title=f"share of the {of_what}").scale(scheme="blues", domainMin=0)
    return (
        chart_of(values, width=WIDTH, height=altair.Step(16))
        .mark_rect()
        .encode(
            y=altair.Y("sample:N", sort=names, title=None).axis(labelExpr=SHORT_LABEL),
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


def nothing(reason: str) -> Chart:
    """A figure that says why it is empty."""
    return (
        chart_of([{"text": reason}], width=WIDTH, height=60)
        .mark_text(align="left", fontSize=13)
        .encode(x=altair.value(0), text="text:N")
    )


def words(outcome: str) -> str:
    """An outcome as people read it."""
    return outcome.replace("stop_free", "stop-free").replace("_", " ")
