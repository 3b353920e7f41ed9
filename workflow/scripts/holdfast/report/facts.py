"""What the head of the report says in words: what came out, by which run, models, classifier and rules."""

from dataclasses import asdict
from pathlib import Path

from ..documents import DocumentError, read_json
from ..errors import HoldfastError
from ..results.calibration import load_calibration
from ..results.classifier import VIRUS, load_classifier
from ..results.presets import CallRules
from ..run.ending import say_result
from ..run.provenance import sha256
from ..spool.state import Identity
from .charts import Choices
from .results import Results
from .tally import Tally

DIGITS = 12
"""Of a digest, where people read it."""


def headline(summary: Path) -> str:
    """What came out, in a sentence."""
    return say_result(summary)


def describe_run(results: Results, runs: Path, tally: Tally, choices: Choices) -> list[tuple[str, str]]:
    """Lines of the box: a name and a text each.

    Args:
        results: What there is.
        runs: Where running Snakemakes keep their plans, in directories named after them.
        tally: What was counted.
        choices: By which contigs were called.
    """
    run = _running(runs)
    lines = [(name, str(run[key])) for name, key in (("run", "run"), ("begun", "began"), ("command", "command")) if run]
    for name, known in sorted(tally.models.items()):
        precisions = known["precision"]
        digest = str(known["weights_sha256"])[:DIGITS]
        lines.append((f"model {name}", f"{known['source']}, weights {digest}, {known['family']}, {precisions}"))
    if tally.genetic_codes:
        lines.append(("genetic code", ", ".join(map(str, sorted(tally.genetic_codes)))))
    if results.called and results.classifier:
        lines.append(("classifier", _classifier(results, results.classifier)))
        lines.append(("calibration", _calibration(tally, choices.calibration)))
        if tally.calibrated and tally.viruses:
            lines.append(("false discoveries", _false_discoveries(tally, choices.rules)))
        known_rules = {name: value for name, value in asdict(choices.rules).items() if value is not None}
        lines.append(("calls", ", ".join(f"{name} {value:g}" for name, value in known_rules.items())))
    return lines


def _running(runs: Path) -> dict[str, object]:
    """What the run that this process is a job of noted at its start; nothing outside of one."""
    try:
        launcher = Identity.launcher()
        found: dict[str, object] = read_json(runs / f"{launcher.host}-{launcher.pid}" / "start.json")
    except (HoldfastError, OSError, DocumentError):
        return {}
    return found


def _classifier(results: Results, path: Path) -> str:
    labelled = [entry for entry in results.samples.values() if entry.label]
    trained = ", ".join(f"{entry.sample} ({entry.label})" for entry in labelled)
    names = f"; labelled samples: {trained}" if labelled and results.trained else ""
    return f"{path}, sha256 {sha256(path)[:DIGITS]}, {load_classifier(path).source}{names}"


def _calibration(tally: Tally, path: Path | None) -> str:
    found = load_calibration(path) if path else None
    if found and found.method != "none":
        return (
            f"{found.summary()}; p virus is an estimate of the probability, FDR of the share of wrong calls in the list"
        )
    why = f" ({found.reason})" if found else ""
    return f"uncalibrated{why}: a score orders contigs by how sure the classifier is, and is no probability"


def _false_discoveries(tally: Tally, rules: CallRules) -> str:
    """What share of the list of viruses is expected to be none, and on which condition."""
    named = rules.virus_share is not None
    share = "the share of viruses that virus_share names" if named else "as large a share of viruses as those contigs"
    return (
        f"an estimated {tally.expected_false / tally.viruses:.1%} of the {tally.viruses:,} contigs called {VIRUS} are "
        f"none ({tally.expected_false:,.1f} contigs), if the samples have {share}"
    )


def left_from_before(results: Results, calibration: Path | None) -> list[str]:
    """What lies in the results from an earlier run and is not what this report is about."""
    lines = []
    trained = results.directory / "classifier"
    if _is_left(trained / "classifier.safetensors", results.classifier):
        lines.append(f"{trained}: of a classifier trained by an earlier run, not in use.")
    elif _is_left(trained / "calibration.json", calibration):
        lines.append(f"{trained / 'calibration.json'}: a calibration of an earlier run, not in use.")
    called = frozenset(results.called)
    stale = [name for name in results.samples if name not in called and results.contigs(name).exists()]
    if stale:
        names = ", ".join(stale[:5]) + (f" and {len(stale) - 5:,} more" if len(stale) > 5 else "")
        lines.append(f"Calls of an earlier run, which count no more, lie in the directories of {names}.")
    together = [results.directory / name for name in ("contigs.tsv", "virus.fna", "virus.fna.gz")]
    left = [path for path in together if not called and path.exists()]
    return [*lines, *(f"{path}: calls of an earlier run, which count no more." for path in left)]


def _is_left(path: Path, used: Path | None) -> bool:
    """Whether a file is there and is not the one in use."""
    return path.exists() and not (used and used.exists() and path.samefile(used))
