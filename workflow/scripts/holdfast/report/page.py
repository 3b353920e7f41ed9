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

from .. import __version__
from ..files import atomic_text
from ..results.calls import VIRUS
from .charts import Choices
from .figures import write_figures
from .results import Results
from .tally import Tally, count_results

WARNING = (
    '<p class="warning" role="alert">Synthetic weights: {models} {have} seeded random weights, made to try the '
    "workflow out. No score and no call below says anything about biology.</p>"
)
FIGURE = '<figure id="{name}">\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>\n'
SAFE = {"file_insertion_enabled": False, "raw_enabled": False, "report_level": 2, "halt_level": 2}


def write_report(
    results: Results,
    spool: Path,
    template: Path,
    captions: Sequence[Path],
    *,
    threshold: float,
    projection: str,
    seed: int,
) -> None:
    """Read the results of a run, and write ``report.html`` and ``figures/`` beside them.

    Args:
        results: What there is.
        spool: Where the pools left their history.
        template: The page, with ``$``-fields.
        captions: reStructuredText of each figure, in the order of the page; the file is named after the figure.
        threshold: Score from which a contig is a virus.
        projection: How embeddings are projected to a plane, ``pca`` or ``umap``.
        seed: Of the choice of points, and of UMAP.

    Raises:
        HoldfastError: a file that is missing, or cannot be read, or UMAP where it is not installed.
    """
    tally = count_results(results, spool, seed)
    choices = Choices(results.directory, results.classifier, threshold, projection, seed)
    figures = write_figures([path.stem for path in captions], tally, choices)
    _write_page(template, captions, figures, tally, choices)


def _write_page(
    template: Path, captions: Sequence[Path], figures: Mapping[str, str], tally: Tally, choices: Choices
) -> None:
    """Write ``report.html``; ``figures`` are SVG by name."""
    shown = (FIGURE.format(name=path.stem, svg=figures[path.stem], caption=_caption(path)) for path in captions)
    names = sorted(tally.synthetic)
    warning = WARNING.format(models=" and ".join(names), have="has" if len(names) == 1 else "have") if names else ""
    records = sum(sample.records for sample in tally.samples)
    places = {name: place for place, name in enumerate(dict.fromkeys(sample for sample, _ in tally.contigs))}
    contigs = [
        (places[name], call.contig, call.length_bp, call.chunks, call.chunks_with_frames, call.outcome, call.score)
        for name, call in tally.contigs
    ]
    facts = [f"{len(tally.samples):,} samples, {records:,} records."]
    if contigs:
        viruses = sum(sample.outcomes[VIRUS] for sample in tally.samples)
        facts.append(f"{viruses:,} contigs are called virus, from a score of {choices.threshold:g} upward.")
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
    with atomic_text(choices.results / "report.html") as file:
        file.write(page)


def _data(values: object) -> str:
    """Data inside a script: JSON that no markup can end."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _caption(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    body: str = publish_parts(text, writer="html5", settings_overrides=SAFE)["body"]
    return body
