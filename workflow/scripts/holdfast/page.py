"""The page of the report: all figures with their captions, and the contigs as a table to search, sort and save.

One HTML file that needs nothing else, no network, no other file: figures are inline SVG, captions are rendered here,
the table is data in a script that the page's own few lines of JavaScript show. Names come from FASTA headers, so
they are escaped in the data and reach the page as text, never as markup.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from docutils.core import publish_parts

from . import __version__
from .figures import Told
from .files import atomic_text
from .tally import Tally

WARNING = (
    '<p class="warning" role="alert">Synthetic weights: {models} {have} seeded random weights, made to try the '
    "workflow out. No score and no call below says anything about biology.</p>"
)
FIGURE = '<figure id="{name}">\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>\n'
SAFE = {"file_insertion_enabled": False, "raw_enabled": False, "report_level": 2, "halt_level": 2}


def write(template: Path, captions: Sequence[Path], figures: Mapping[str, str], tally: Tally, told: Told) -> None:
    """Write ``report.html`` beside the results of the samples.

    Args:
        template: The page, with ``$``-fields.
        captions: reStructuredText of each figure, in the order of the page; the file is named after the figure.
        figures: SVG by name.
        tally: What was counted.
        told: As the figures were told.
    """
    shown = (FIGURE.format(name=path.stem, svg=figures[path.stem], caption=_caption(path)) for path in captions)
    names = sorted(tally.synthetic)
    warning = WARNING.format(models=" and ".join(names), have="has" if len(names) == 1 else "have") if names else ""
    records = sum(sample.records for sample in tally.samples)
    places = {name: place for place, name in enumerate(dict.fromkeys(row.sample for row in tally.contigs))}
    contigs = [
        (places[row.sample], row.contig, row.length_bp, row.chunks, row.chunks_with_frames, row.outcome, row.score)
        for row in tally.contigs
    ]
    facts = [f"{len(tally.samples):,} samples, {records:,} records."]
    if contigs:
        viruses = sum(sample.outcomes["virus"] for sample in tally.samples)
        facts.append(f"{viruses:,} contigs are called virus, from a score of {told.threshold:g} upward.")
    if len(contigs) < tally.contig_count:
        listed = f"The {len(contigs):,} contigs with the highest scores, of {tally.contig_count:,}."
    else:
        listed = f"All {len(contigs):,} contigs of the samples that were called."
    fields = {
        "warning": warning,
        "facts": " ".join(facts),
        "figures": "".join(shown),
        "listed": listed,
        "table": "" if contigs else "hidden",
        "samples": _data(list(places)),
        "contigs": _data(contigs),
        "version": __version__,
    }
    page = Template(template.read_text(encoding="utf-8")).substitute(fields)
    with atomic_text(told.results / "report.html") as file:
        file.write(page)


def _data(values: object) -> str:
    """Data inside a script: JSON that no markup can end."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _caption(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    body: str = publish_parts(text, writer="html5", settings_overrides=SAFE)["body"]
    return body
