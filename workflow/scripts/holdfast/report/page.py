"""The page of the report: what came out first, then a table of samples, one of contigs, figures with their captions.

One HTML file that needs nothing else, no network, no other file: captions are rendered here, tables and the
specifications of figures are data in scripts, Vega, which draws these, is part of the page. Names come from FASTA
headers, so they are escaped in the data and reach the page as text, never as markup.
"""

import csv
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from docutils.core import publish_parts

from .. import __version__
from ..files import atomic_text
from .charts import Choices
from .facts import describe_run, headline, left_from_before
from .figures import Figure, write_figures
from .results import Results
from .tally import Tally

FAILED_SHOWN = 20
ADMINISTRATORS = ("throughput", "load")
VEGA = "window.vegaEmbed = vegaEmbed;"
"""What ``vl_convert.javascript_bundle`` makes the script of."""
SAFE = {"file_insertion_enabled": False, "raw_enabled": False, "report_level": 2, "halt_level": 2}
WARNING = (
    '<p class="warning" role="alert">Synthetic weights: {models} {have} seeded random weights, made to try the '
    "workflow out. No score and no call below says anything about biology.</p>\n"
)
FIGURE = (
    '<figure id="{name}">\n<h3><a href="#{name}">{title}</a></h3>\n'
    '<div class="chart" role="img" aria-label="{title}: {description}" data-figure="{name}"></div>\n'
    "<figcaption>{caption}</figcaption>\n</figure>\n"
)
EMPTY = '<figure id="{name}" class="empty">\n<h3><a href="#{name}">{title}</a></h3>\n<p>{reason}</p>\n</figure>\n'
SAMPLE_COLUMNS = {
    "sample": "sample",
    "kind": "kind",
    "label": "label",
    "state": "state",
    "records": "records",
    "called": "called",
    "virus": "virus",
    "virus_high": "high",
    "virus_moderate": "moderate",
    "virus_low": "low",
    "virus_fdr": "FDR",
    "ambiguous": "ambiguous",
    "non_viral": "non-viral",
    "not_called": "not called",
    "failed": "records failed",
    "millions": "Mbp, or M aa",
    "total_s": "seconds",
}
"""Of the table of samples: column of the summary, or what is made of several, and heading."""


def write_report(
    results: Results,
    summary: Path,
    runs: Path,
    tally: Tally,
    choices: Choices,
    template: Path,
    captions: Sequence[Path],
    vega: str,
) -> None:
    """Write ``report.html``, and ``figures/`` beside it.

    Args:
        results: What there is.
        summary: Its table of samples.
        runs: Where running Snakemakes keep their plans.
        tally: What was counted.
        choices: What figures need beside it.
        template: The page, with ``$``-fields.
        captions: reStructuredText of each figure, in the order of the page; the file is named after the figure.
        vega: The script that draws figures, see :data:`VEGA`.

    Raises:
        HoldfastError: a file that cannot be read, or UMAP where it is not installed.
    """
    figures = write_figures([path.stem for path in captions], tally, choices)
    texts = {path.stem: _caption(path) for path in captions}
    synthetic = tally.synthetic
    have = "has" if len(synthetic) == 1 else "have"
    of_users = [name for name in figures if name not in ADMINISTRATORS]
    facts = describe_run(results, runs, tally, choices)
    stale = left_from_before(results, choices.calibration)
    fields = {
        "headline": html.escape(headline(summary)),
        "failed": _failed(results),
        "warning": WARNING.format(models=html.escape(" and ".join(synthetic)), have=have) if synthetic else "",
        "facts": "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>\n" for name, text in facts),
        "stale": "".join(f'<p class="stale">{html.escape(line)}</p>\n' for line in stale),
        "samples": _data(_samples(summary)),
        "listed": _listed(tally),
        "hidden": "" if tally.contigs else "hidden",
        "contigs": _data(_contigs(tally)),
        "contents": "".join(f'<li><a href="#{name}">{html.escape(figures[name].title)}</a></li>' for name in figures),
        "figures": "".join(_figure(name, figures[name], texts[name]) for name in of_users),
        "pools": "".join(_figure(name, figures[name], texts[name]) for name in ADMINISTRATORS if name in figures),
        "specifications": _data(_specifications(figures, synthetic)),
        "vega": vega.replace("</script", "<\\/script"),
        "version": __version__,
    }
    page = Template(template.read_text(encoding="utf-8")).substitute(fields)
    with atomic_text(choices.results / "report.html") as file:
        file.write(page)


def _failed(results: Results) -> str:
    """The samples that failed, in red, with the reasons."""
    if not results.failed:
        return ""
    count = len(results.failed)
    shown = list(results.failed.items())[:FAILED_SHOWN]
    lines = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(reason)}</li>" for name, reason in shown)
    more = f"<li>and {count - FAILED_SHOWN:,} more</li>" if count > FAILED_SHOWN else ""
    return (
        f'<div class="warning" role="alert"><p>{count:,} of {len(results.samples):,} samples failed; all below is '
        f"about the others. <code>results/failures.tsv</code> has the reasons, too.</p>\n<ul>{lines}{more}</ul></div>\n"
    )


def _samples(summary: Path) -> dict[str, object]:
    """The table of samples: headings and rows; numbers as such, null where a cell does not apply."""
    with open(summary, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {"columns": list(SAMPLE_COLUMNS.values()), "rows": [_sample(row) for row in rows]}


def _sample(row: Mapping[str, str]) -> list[str | float | None]:
    calls = [row[name] for name in ("virus", "ambiguous", "non_viral")]
    letters = row["length_bp"] or row["length_aa"]
    made = {
        "called": str(sum(map(int, calls))) if all(calls) else "",
        "millions": str(round(int(letters) / 1e6, 3)) if letters else "",
    }
    cells = {**row, **made}
    texts = ("sample", "kind", "label", "state")
    return [cells[name] if name in texts else float(cells[name]) if cells[name] else None for name in SAMPLE_COLUMNS]


def _contigs(tally: Tally) -> dict[str, object]:
    """The table of contigs: headings and rows, the sample as its index among names."""
    names = {name: place for place, name in enumerate(dict.fromkeys(sample for sample, _ in tally.contigs))}
    columns = ["sample", "contig", "length, bp", "chunks", "evidence", "decision", "tier", "score"]
    columns += ["p virus", "FDR"] if tally.calibrated else []
    rows = []
    for sample, call in tally.contigs:
        row = [names[sample], call.contig, call.length_bp, call.chunks, call.evidence, call.decision, call.tier]
        calibrated = [call.p_virus, call.fdr] if tally.calibrated else []
        rows.append([*row, call.score, *calibrated, call.reason])
    return {"columns": [*columns, "reason"], "samples": list(names), "rows": rows}


def _listed(tally: Tally) -> str:
    if len(tally.contigs) < tally.contig_count:
        return (
            f"The first {len(tally.contigs):,} of {tally.contig_count:,} contigs: viruses by tier and score, then the "
            "others by score."
        )
    return f"All {tally.contig_count:,} contigs of the samples that were called."


def _figure(name: str, figure: Figure, caption: str) -> str:
    title = html.escape(figure.title)
    if isinstance(figure.chart, str):
        return EMPTY.format(name=name, title=title, reason=html.escape(figure.chart))
    return FIGURE.format(name=name, title=title, description=html.escape(figure.description), caption=caption)


def _specifications(figures: Mapping[str, Figure], synthetic: Sequence[str]) -> dict[str, object]:
    made = {name: figure.specification(synthetic) for name, figure in figures.items()}
    return {name: specification for name, specification in made.items() if specification is not None}


def _data(values: object) -> str:
    """Data inside a script: JSON that no markup can end."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _caption(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    body: str = publish_parts(text, writer="html5", settings_overrides=SAFE)["body"]
    return body
